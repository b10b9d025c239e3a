"""What a seed's gradients look like after a backward pass."""

from collections.abc import Iterable
from math import sqrt

import torch
from torch import nn

GradientStats = dict[str, float | bool]

_VANISHING_NORM = 1e-7
_EXPLODING_NORM = 100.0
_VANISHING_WEIGHT = 0.5
_EXPLODING_WEIGHT = 0.8


def collect_seed_gradients(parameters: Iterable[nn.Parameter]) -> GradientStats:
    """Summarises the gradients that the last backward pass left on `parameters`. Reads the device once.

    Returns:
        `gradient_norm`: total L2 norm ÷ number of gradient tensors; `gradient_health`: 1 − 0.5·share of tensors with
        a norm below 1e-7 − 0.8·share with a norm above 100 (or not finite), clipped to 0…1; `has_vanishing`,
        `has_exploding`: whether there is any such tensor; `gradient_rms`: total L2 norm ÷ √number of elements.
        Without any gradient: 0, 1, False, False, 0.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return {
            "gradient_norm": 0.0,
            "gradient_health": 1.0,
            "has_vanishing": False,
            "has_exploding": False,
            "gradient_rms": 0.0,
        }
    norms = torch.stack(torch._foreach_norm(gradients))
    exploding = (norms > _EXPLODING_NORM) | ~norms.isfinite()
    vanishing = norms < _VANISHING_NORM
    summary = torch.stack([norms.norm(), vanishing.sum().to(norms.dtype), exploding.sum().to(norms.dtype)])
    total, vanishing_count, exploding_count = summary.tolist()
    count = len(gradients)
    health = 1.0 - (_VANISHING_WEIGHT * vanishing_count + _EXPLODING_WEIGHT * exploding_count) / count
    return {
        "gradient_norm": total / count,
        "gradient_health": min(1.0, max(0.0, health)),
        "has_vanishing": vanishing_count > 0,
        "has_exploding": exploding_count > 0,
        "gradient_rms": total / sqrt(sum(g.numel() for g in gradients)),
    }
