"""Batch norm, ReLU and 2×2 max-pooling in one, for the CPU."""

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_FEW_CHANNELS, _MANY_VALUES = 32, 2**17
"""With more channels torch's own operations lose less; with fewer values in a batch, there is not enough to win for the
60 MB that the compiler takes. Hosts in lockstep have many channels, and so are done as each of them is alone."""


def norm_relu_pool(features: Tensor, norm: nn.Module) -> Tensor:
    """Returns `max_pool2d(relu(norm(features)), 2)`; while training within float rounding, else to the last bit.

    Pooling and ReLU can change places, and where the gain is positive pooling and norm as well: then three quarters of
    the values need no norm and no ReLU. On the CPU, in channels-last layout, compiled loops do that in one pass forward
    and one backward.

    Shape:
        features (N, C, H, W); the result (N, C, ⌊H/2⌋, ⌊W/2⌋).
    """
    if not isinstance(norm, nn.BatchNorm2d) or not _is_quick(features, norm):
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
        and features.numel() >= _MANY_VALUES
        and features.is_contiguous(memory_format=torch.channels_last)
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and (norm.training or not torch.is_grad_enabled())
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
        images, pooled, outputs = _channels_last(features), _halved(features), _halved(features)
        of_norm = (values.detach().numpy() for values in (weight, bias, running_mean, running_var))
        mean, inverse = _kernels().forward(images.numpy(), *of_norm, momentum, eps, pooled.numpy(), outputs.numpy())
        ctx.save_for_backward(images, pooled, outputs, weight)
        ctx.moments = mean, inverse
        return outputs.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, pooled, outputs, weight = ctx.saved_tensors
        gradient, to_images = _channels_last(gradients[0]), torch.empty_like(images)
        arrays = (values.numpy() for values in (gradient, images, pooled, outputs, weight.detach()))
        to_weight, to_bias = _kernels().backward(*arrays, *ctx.moments, to_images.numpy())
        to_features = to_images.permute(0, 3, 1, 2)
        return to_features, torch.from_numpy(to_weight), torch.from_numpy(to_bias), None, None, None, None


def _pooled(features: Tensor) -> Tensor:
    pooled = _halved(features)
    _kernels().pool(_channels_last(features).numpy(), pooled.numpy())
    return pooled.permute(0, 3, 1, 2)


def _channels_last(features: Tensor) -> Tensor:
    """Returns (N, C, H, W) as (N, H, W, C); a view, where the values lie in that order."""
    return features.detach().permute(0, 2, 3, 1).contiguous()


def _halved(features: Tensor) -> Tensor:
    count, channels, height, width = features.shape
    return features.new_empty(count, height // 2, width // 2, channels)


def _kernels() -> ModuleType:
    # Imported where it is needed: not every actor shall load a compiler.
    from esper_ray.models import pooled_norm_kernels

    return pooled_norm_kernels
