"""Statistics of a seed's gradients after a backward pass."""

from collections.abc import Iterable, Sequence
from math import hypot, isfinite, sqrt

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
        return summarise_norms([], 0)
    return summarise_norms(torch.stack(torch._foreach_norm(gradients)).tolist(), sum(g.numel() for g in gradients))


def summarise_norms(norms: Sequence[float], elements: int) -> GradientStats:
    """Returns the statistics of `collect_seed_gradients` for gradients of these L2 norms, `elements` numbers in all."""
    if not norms:
        return {
            "gradient_norm": 0.0,
            "gradient_health": 1.0,
            "has_vanishing": False,
            "has_exploding": False,
            "gradient_rms": 0.0,
        }
    count, total = len(norms), hypot(*norms)
    vanishing = sum(norm < _VANISHING_NORM for norm in norms)
    exploding = sum(norm > _EXPLODING_NORM or not isfinite(norm) for norm in norms)
    health = 1.0 - (_VANISHING_WEIGHT * vanishing + _EXPLODING_WEIGHT * exploding) / count
    return {
        "gradient_norm": total / count,
        "gradient_health": min(1.0, max(0.0, health)),
        "has_vanishing": vanishing > 0,
        "has_exploding": exploding > 0,
        "gradient_rms": total / sqrt(elements),
    }


def with_host(seed: GradientStats, host: GradientStats) -> GradientStats:
    """Returns a seed's statistics with `host_gradient_norm` and `seed_gradient_ratio`, see `_train_one_epoch`."""
    ratio = seed["gradient_rms"] / host["gradient_rms"] if host["gradient_rms"] else 0.0
    return {**seed, "host_gradient_norm": host["gradient_norm"], "seed_gradient_ratio": ratio}
