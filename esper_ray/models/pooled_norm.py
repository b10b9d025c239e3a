"""Batch norm, ReLU and 2×2 max-pooling in one, for the CPU."""

from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_FEW_CHANNELS = 32
"""With more, torch's own operations lose less."""
_MANY_VALUES, _MANY_OF_A_CHANNEL = 2**17, 2**13
"""With fewer in a batch there is not enough to win for what the compiler takes of each actor."""


def norm_relu_pool(features: Tensor, norm: nn.Module) -> Tensor:
    """Returns `max_pool2d(relu(norm(features)), 2)`; while training within float rounding, else to the last bit.

    Pooling and ReLU can change places, and where the gain is positive pooling and norm as well: then three quarters of
    the values need no norm and no ReLU. On the CPU, in channels-last layout, compiled loops do that, with half as many
    passes over the values as torch needs.

    Shape:
        features (N, C, H, W); the result (N, C, ⌊H/2⌋, ⌊W/2⌋).
    """
    if type(norm) is not nn.BatchNorm2d or not _is_quick(features, norm):
        return F.relu(F.max_pool2d(norm(features), kernel_size=2))
    if not norm.training:
        return F.relu(norm(_pooled(features)))
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    arguments = norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
    return cast(Tensor, _NormReluPool.apply(features, *arguments))  # type: ignore[no-untyped-call]


def _is_quick(features: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        features.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and features.dtype == torch.float32
        and features.shape[2] % 2 == features.shape[3] % 2 == 0
        and features.shape[1] <= _FEW_CHANNELS
        and features.numel() >= max(_MANY_VALUES, features.shape[1] * _MANY_OF_A_CHANNEL)
        and features.is_contiguous(memory_format=torch.channels_last)
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and (norm.training or (not torch.is_grad_enabled() and _kernels.cache_info().currsize > 0))
        and norm.weight.dtype == torch.float32
        and bool((norm.weight > 0).all())
    )


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        images = _channels_last(features)
        of_norm = (values.detach().numpy() for values in (weight, bias, running_mean, running_var))
        outputs, pooled, *ctx.moments = _kernels().forward(images.numpy(), *of_norm, momentum, eps)
        result = torch.from_numpy(outputs)
        ctx.save_for_backward(images, torch.from_numpy(pooled), result, weight)
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        arrays = (values.detach().numpy() for values in (_channels_last(gradients[0]), *ctx.saved_tensors))
        found = _kernels().backward(*arrays, *ctx.moments)
        grad_images, grad_weight, grad_bias = map(torch.from_numpy, found)
        return grad_images.permute(0, 3, 1, 2), grad_weight, grad_bias, None, None, None, None


def _pooled(features: Tensor) -> Tensor:
    pooled: Tensor = torch.from_numpy(_kernels().pool(_channels_last(features).numpy()))
    return pooled.permute(0, 3, 1, 2)


def _channels_last(features: Tensor) -> Tensor:
    """Returns (N, C, H, W) as (N, H, W, C); a view, where the values lie in that order."""
    return features.detach().permute(0, 2, 3, 1).contiguous()


@cache
def _kernels() -> ModuleType:
    # Imported by who trains on large batches: others shall not load a compiler, least of all for validation.
    from esper_ray.models import pooled_norm_kernels

    return pooled_norm_kernels
