"""Batch norm, ReLU and 2×2 max-pooling in one, for the CPU."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_FEW_CHANNELS, _MANY_VALUES = 16, 2**18
"""With more channels torch's own operations are as fast; with fewer values in a batch, faster."""
_CHUNK = 2**18
"""Values of a chunk, see `_chunks`: 1 MB."""


def norm_relu_pool(features: Tensor, norm: nn.Module) -> Tensor:
    """Returns `max_pool2d(relu(norm(features)), 2)`; while training within float rounding, else to the last bit.

    Pooling and ReLU can change places, and where the gain is positive pooling and norm as well: then three quarters of
    the values need no norm and no ReLU. On the CPU, in channels-last layout, that is done with operations over whole
    rows of an image, several times as fast as torch's own over few channels.

    Shape:
        features (N, C, H, W); the result (N, C, ⌊H/2⌋, ⌊W/2⌋).
    """
    if not isinstance(norm, nn.BatchNorm2d) or not _is_quick(features, norm):
        return F.relu(F.max_pool2d(norm(features), kernel_size=2))
    if not norm.training:
        return F.relu(norm(_as_images(_pooled(features), features)))
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
        mean, var = _moments(features)
        count = features.numel() // len(mean)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
        inverse = (var + eps).rsqrt_()
        scale = weight * inverse
        pooled = _pooled(features)
        outputs = _affine_relu(pooled, scale, torch.addcmul(bias, mean, scale, value=-1))
        ctx.save_for_backward(features, scale, mean, inverse, pooled, outputs)
        return _as_images(outputs, features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, scale, mean, inverse, pooled, outputs = ctx.saved_tensors
        channels = len(mean)
        gradient = _where_positive(gradients[0].permute(0, 2, 3, 1).reshape(outputs.shape), outputs)
        to_bias = _per_channel(gradient, channels)
        to_weight = (_per_channel(gradient * pooled, channels) - to_bias * mean) * inverse
        # What every value gets because it is a part of the statistics: offset + slope · value.
        samples = features.numel() // channels
        slope = -scale * to_weight * inverse / samples
        offset = -scale * to_bias / samples - slope * mean
        gradient = gradient.mul_(scale.repeat(pooled.shape[2] // channels))
        to_features = _gradient_of_pool(features, gradient, slope, offset)
        return to_features, to_weight, to_bias, None, None, None, None


def _gradient_of_pool(features: Tensor, gradient: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Returns offset + slope · features, and in the largest of each four `gradient` (N, H/2, W/2·C) besides."""
    rows, width = _pairs_of_rows(features), features.shape[3]
    slope, offset = slope.repeat(width), offset.repeat(width)
    found = torch.empty_like(rows)
    for chunk in _chunks(features):
        upper, lower = rows[chunk].unbind(2)
        left, right = _pairs_of_columns(torch.maximum(upper, lower), features)
        to_pair = gradient[chunk].view(left.shape)
        to_left = _where_positive(to_pair, left - right)
        to_taller = torch.stack([to_left, to_pair - to_left], dim=3).view(upper.shape)
        to_upper = _where_positive(to_taller, upper - lower)
        torch.addcmul(offset, rows[chunk], slope, out=found[chunk])
        found[chunk, :, 0].add_(to_upper)
        found[chunk, :, 1].add_(to_taller.sub_(to_upper))
    return _as_images(found, features, 1)


def _chunks(features: Tensor) -> Iterator[slice]:
    """Yields slices of images that stay in a core's cache while several operations pass over them."""
    images = max(1, _CHUNK // features[0].numel())
    return (slice(start, start + images) for start in range(0, len(features), images))


def _where_positive(values: Tensor, condition: Tensor) -> Tensor:
    """Returns the values where the condition is above 0, elsewhere 0; without the detour over a tensor of bools."""
    return cast(Tensor, torch.ops.aten.threshold_backward(values, condition, 0.0))


def _pairs_of_rows(features: Tensor) -> Tensor:
    """Returns the values of each row of the images side by side, by pairs of rows, (N, H/2, 2, W·C); a view."""
    count, channels, height, width = features.shape
    return features.permute(0, 2, 3, 1).reshape(count, height // 2, 2, width * channels)


def _pairs_of_columns(rows: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the left and the right ones of the pairs in rows (N, H/2, W·C) of such features; views."""
    _, channels, height, width = features.shape
    left, right = rows.view(-1, height // 2, width // 2, 2, channels).unbind(3)
    return left, right


def _as_images(rows: Tensor, features: Tensor, step: int = 2) -> Tensor:
    """Returns rows as images, every `step`-th row and column of such features; a view."""
    count, channels, height, width = features.shape
    return rows.view(count, height // step, width // step, channels).permute(0, 3, 1, 2)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of each channel, (C,). Those of each column are put together."""
    channels, width = features.shape[1], features.shape[3]
    rows = _pairs_of_rows(features).flatten(0, 2)
    means, variances = torch.batch_norm_update_stats(
        rows, rows.new_zeros(rows.shape[1]), rows.new_ones(rows.shape[1]), 0.0
    )
    means, variances = means.view(width, channels), variances.view(width, channels)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square_().mean(0)


def _pooled(features: Tensor) -> Tensor:
    """Returns the largest of each four values, (N, H/2, W/2·C)."""
    rows = _pairs_of_rows(features)
    count, pairs, _, values = rows.shape
    pooled = rows.new_empty(count, pairs, values // 2)
    for chunk in _chunks(features):
        left, right = _pairs_of_columns(torch.maximum(rows[chunk, :, 0], rows[chunk, :, 1]), features)
        torch.maximum(left, right, out=pooled[chunk].view(left.shape))
    return pooled


def _affine_relu(pooled: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    times = pooled.shape[-1] // len(scale)
    return torch.addcmul(shift.repeat(times), pooled, scale.repeat(times)).relu_()


def _per_channel(values: Tensor, channels: int) -> Tensor:
    return values.flatten(0, 1).sum(0).view(-1, channels).sum(0)
