"""The loops behind `esper_ray.models.pooled_norm`, compiled by Numba when they are first called on a machine.

Images come as (N, H, W, C), values next to each other in that order, with even H and W; all numbers are float32. The
inner loops go over whole rows of an image, and write to one place each, so that they become vector instructions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Values = NDArray[np.float32]

_ZERO = np.float32(0)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder that a cache may be written to
        return njit(**options)(function)  # type: ignore[no-any-return]


@_compiled
def _across(channels: Values, width: int) -> Values:
    """Returns a value per channel as a row of an image, (width · C,)."""
    row = np.empty(width * len(channels), np.float32)
    for j in range(len(row)):
        row[j] = channels[j % len(channels)]
    return row


@_compiled
def _pool_rows(upper: Values, lower: Values, taller: Values, pooled: Values) -> None:
    """Writes the largest of each four values of two rows (W · C,) to (W/2, C); NaN where one is NaN.

    Those of each two values, one above the other, are in `taller` then, (W/2, 2, C).
    """
    flat = taller.reshape(taller.size)
    for j in range(len(upper)):
        flat[j] = upper[j] if (upper[j] >= lower[j]) | np.isnan(upper[j]) else lower[j]
    for w in range(pooled.shape[0]):
        for c in range(pooled.shape[1]):
            left, right = taller[w, 0, c], taller[w, 1, c]
            pooled[w, c] = left if (left >= right) | np.isnan(left) else right


@_compiled
def pool(images: Values, pooled: Values) -> None:
    """Writes the largest of each 2×2 values to (N, H/2, W/2, C); NaN where one is NaN."""
    count, height, width, channels = images.shape
    rows = images.reshape(count, height // 2, 2, width * channels)
    taller = np.empty((width // 2, 2, channels), np.float32)
    for n in range(count):
        for h in range(height // 2):
            _pool_rows(rows[n, h, 0], rows[n, h, 1], taller, pooled[n, h])


@_compiled
def _pool_and_sum(images: Values, pooled: Values, mean: Values, variance: Values) -> None:
    """As `pool`; besides writes mean and variance of each channel, (C,)."""
    count, height, width, channels = images.shape
    rows = images.reshape(count, height // 2, 2, width * channels)
    taller = np.empty((width // 2, 2, channels), np.float32)
    # Squares are taken of distances to any one value, so that no digits are lost where the mean is far from 0.
    center = images[0, height // 2, width // 2].copy()
    centers = _across(center, width)
    sums, squares = np.empty(width * channels, np.float32), np.empty(width * channels, np.float32)
    sum_of, square_of = np.zeros(channels), np.zeros(channels)
    for n in range(count):
        sums[:] = 0
        squares[:] = 0
        for h in range(height // 2):
            upper, lower = rows[n, h, 0], rows[n, h, 1]
            _pool_rows(upper, lower, taller, pooled[n, h])
            for j in range(width * channels):
                sums[j] += (upper[j] - centers[j]) + (lower[j] - centers[j])
            for j in range(width * channels):
                above, below = upper[j] - centers[j], lower[j] - centers[j]
                squares[j] += above * above + below * below
        for w in range(width):
            for c in range(channels):
                sum_of[c] += sums[w * channels + c]
                square_of[c] += squares[w * channels + c]
    values = count * height * width
    for c in range(channels):
        distance = sum_of[c] / values
        mean[c] = center[c] + distance
        spread = square_of[c] / values - distance * distance
        variance[c] = 0.0 if spread < 0 else spread  # NaN stays NaN, here and below


@_compiled
def forward(
    images: Values,
    weight: Values,
    bias: Values,
    running_mean: Values,
    running_var: Values,
    momentum: float,
    eps: float,
    pooled: Values,
    outputs: Values,
) -> tuple[Values, Values]:
    """Normalises by the batch, and moves the running statistics.

    Writes the pooled images and the outputs, (N, H/2, W/2, C).

    Returns:
        mean and 1/√(variance + eps) of each channel, (C,).
    """
    count, height, width, channels = images.shape
    mean, variance = np.empty(channels, np.float32), np.empty(channels, np.float32)
    _pool_and_sum(images, pooled, mean, variance)
    values = count * height * width
    for c in range(channels):
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_var[c] += momentum * (variance[c] * values / (values - 1) - running_var[c])
    inverse = (1 / np.sqrt(variance + eps)).astype(np.float32)
    scale = weight * inverse
    scales, shifts = _across(scale, width // 2), _across(bias - mean * scale, width // 2)
    rows, found = pooled.reshape(-1, len(scales)), outputs.reshape(-1, len(scales))
    for i in range(len(rows)):
        for j in range(len(scales)):
            value = rows[i, j] * scales[j] + shifts[j]
            found[i, j] = _ZERO if value < 0 else value
    return mean, inverse


@_compiled
def backward(
    gradient: Values,
    images: Values,
    pooled: Values,
    outputs: Values,
    weight: Values,
    mean: Values,
    inverse: Values,
    to_images: Values,
) -> tuple[Values, Values]:
    """Writes the gradient of the images, (N, H, W, C), from that of the outputs.

    Returns:
        the gradients of weight and bias, (C,).
    """
    channels, row = len(mean), pooled.shape[2] * pooled.shape[3]
    to_pooled, to_weight, to_bias = np.empty_like(pooled), np.zeros(channels), np.zeros(channels)
    sums, products = np.empty(row, np.float32), np.empty(row, np.float32)
    means = _across(mean, pooled.shape[2])
    for n in range(len(pooled)):
        given, found = gradient[n].reshape(-1, row), to_pooled[n].reshape(-1, row)
        chosen, ends = pooled[n].reshape(-1, row), outputs[n].reshape(-1, row)
        sums[:] = 0
        products[:] = 0
        for h in range(len(chosen)):
            for j in range(row):
                found[h, j] = given[h, j] if ends[h, j] > 0 else _ZERO
            for j in range(row):
                sums[j] += found[h, j]
                products[j] += found[h, j] * (chosen[h, j] - means[j])
        for w in range(pooled.shape[2]):
            for c in range(channels):
                to_bias[c] += sums[w * channels + c]
                to_weight[c] += products[w * channels + c] * inverse[c]
    # What every value gets because it is a part of the statistics: offset + slope · value.
    values = images.size // channels
    scale = weight * inverse
    slope = -scale * to_weight * inverse / values
    offset = -scale * to_bias / values - slope * mean
    slope, offset = slope.astype(np.float32), offset.astype(np.float32)
    _backward_of_pool(to_pooled, images, scale, slope, offset, to_images)
    return to_weight.astype(np.float32), to_bias.astype(np.float32)


@_compiled
def _backward_of_pool(
    to_pooled: Values,
    images: Values,
    scale: Values,
    slope: Values,
    offset: Values,
    to_images: Values,
) -> None:
    """Writes offset + slope · image, and in the chosen one of each four `scale · to_pooled` besides."""
    count, height, width, channels = images.shape
    rows = images.reshape(count, height // 2, 2, width * channels)
    found = to_images.reshape(count, height // 2, 2, width * channels)
    slopes, offsets = _across(slope, width), _across(offset, width)
    taller, pairs = np.empty((width // 2, 2, channels), np.float32), np.empty((width // 2, 2, channels), np.float32)
    flat, to_taller = taller.reshape(taller.size), pairs.reshape(pairs.size)
    for n in range(count):
        for h in range(height // 2):
            upper, lower, to_upper, to_lower = rows[n, h, 0], rows[n, h, 1], found[n, h, 0], found[n, h, 1]
            given = to_pooled[n, h]
            for j in range(width * channels):
                flat[j] = upper[j] if upper[j] >= lower[j] else lower[j]
            for w in range(width // 2):
                for c in range(channels):
                    value = given[w, c] * scale[c]
                    to_left = value if taller[w, 0, c] >= taller[w, 1, c] else _ZERO
                    pairs[w, 0, c] = to_left
                    pairs[w, 1, c] = value - to_left
            for j in range(width * channels):
                more = to_taller[j] if upper[j] >= lower[j] else _ZERO
                to_upper[j] = offsets[j] + slopes[j] * upper[j] + more
            for j in range(width * channels):
                more = _ZERO if upper[j] >= lower[j] else to_taller[j]
                to_lower[j] = offsets[j] + slopes[j] * lower[j] + more
