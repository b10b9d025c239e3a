"""Batch norm, ReLU and 2×2 max-pooling in one, for the CPU."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def norm_relu_pool(features: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Returns `max_pool2d(relu(norm(features)), 2)`, within float rounding.

    Pooling and ReLU can change places, and where the gain is positive pooling and norm as well: then three quarters of
    the values need no norm and no ReLU. On the CPU, in channels-last layout, that is done with operations over whole
    rows of an image, several times as fast as torch's own over few channels.

    Shape:
        features (N, C, H, W); the result (N, C, ⌊H/2⌋, ⌊W/2⌋).
    """
    if not _is_quick(features, norm):
        return F.relu(F.max_pool2d(norm(features), kernel_size=2))
    if norm.training:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return cast(
            Tensor,
            _NormReluPool.apply(  # type: ignore[no-untyped-call]
                features, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
            ),
        )
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return _as_images(_affine_relu(_pooled(features)[1], scale, norm.bias - norm.running_mean * scale), features)


def _is_quick(features: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        features.device.type == "cpu"
        and features.dtype == torch.float32
        and features.shape[2] % 2 == features.shape[3] % 2 == 0
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
        wider, pooled = _pooled(features)
        outputs = _affine_relu(pooled, scale, torch.addcmul(bias, mean, scale, value=-1))
        ctx.save_for_backward(features, scale, mean, inverse, wider, pooled, outputs)
        return _as_images(outputs, features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, scale, mean, inverse, wider, pooled, outputs = ctx.saved_tensors
        count, channels, height, width = features.shape
        gradient = gradients[0].permute(0, 2, 3, 1).reshape(outputs.shape)
        gradient = torch.ops.aten.threshold_backward(gradient, outputs, 0.0)
        to_bias = _per_channel(gradient, channels)
        to_weight = (_per_channel(gradient * pooled, channels) - to_bias * mean) * inverse
        # What every value gets because it is part of the statistics …
        samples = count * height * width
        slope = -scale * to_weight * inverse / samples
        offset = -scale * to_bias / samples - slope * mean
        rows = _rows(features)
        to_features = torch.addcmul(offset.repeat(width), rows, slope.repeat(width))
        # … and what the largest of each four gets besides: first the row, then the column of it.
        gradient = gradient * scale.repeat(width // 2)
        upper, lower = wider.unbind(2)
        to_upper = gradient * (upper >= lower)
        to_wider = torch.stack([to_upper, gradient - to_upper], dim=2).flatten(1, 2)
        left, right = _columns(rows, features).unbind(3)
        to_left = to_wider * ((left - right).view_as(to_wider) >= 0)
        to_pairs = _columns(to_features, features)
        to_pairs[:, :, :, 0].add_(to_left.view_as(left))
        to_pairs[:, :, :, 1].add_((to_wider - to_left).view_as(right))
        return _as_images(to_features, features, 1), to_weight, to_bias, None, None, None, None


def _rows(features: Tensor) -> Tensor:
    """Returns the values of each row of the images side by side, (N·H, W·C); a view."""
    return features.permute(0, 2, 3, 1).reshape(features.shape[0] * features.shape[2], -1)


def _columns(rows: Tensor, features: Tensor) -> Tensor:
    """Returns `_rows` of such features by pairs of columns, (N, H, W/2, 2, C); a view."""
    count, channels, height, width = features.shape
    return rows.view(count, height, width // 2, 2, channels)


def _as_images(rows: Tensor, features: Tensor, step: int = 2) -> Tensor:
    """Returns rows as images, every `step`-th row and column of such features; a view."""
    count, channels, height, width = features.shape
    return rows.view(count, height // step, width // step, channels).permute(0, 3, 1, 2)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of each channel, (C,). Those of each column are put together."""
    rows = _rows(features)
    columns, channels = features.shape[3], features.shape[1]
    means, variances = torch.batch_norm_update_stats(
        rows, rows.new_zeros(rows.shape[1]), rows.new_ones(rows.shape[1]), 0.0
    )
    means, variances = means.view(columns, channels), variances.view(columns, channels)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square_().mean(0)


def _pooled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the larger of each two columns, (N, H/2, 2, W/2·C), and of these the larger of each two rows."""
    count, channels, height, width = features.shape
    left, right = _columns(_rows(features), features).unbind(3)
    wider = torch.maximum(left, right).view(count, height // 2, 2, width // 2 * channels)
    return wider, torch.maximum(wider[:, :, 0], wider[:, :, 1])


def _affine_relu(pooled: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    times = pooled.shape[-1] // len(scale)
    return torch.addcmul(shift.repeat(times), pooled, scale.repeat(times)).relu_()


def _per_channel(values: Tensor, channels: int) -> Tensor:
    return values.flatten(0, 1).sum(0).view(-1, channels).sum(0)
