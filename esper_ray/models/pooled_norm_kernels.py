"""The loops behind `esper_ray.models.pooled_norm`, compiled by Numba when this module is first imported on a machine.

Images come as (N, H, W, C) float32, values next to each other in that order, with even H and W. A loop over a whole row
of an image that writes to one place becomes vector instructions; hence the several loops where one would do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Values = NDArray[np.float32]

_ZERO = np.float32(0)


def _compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function. In its signature C are values of channels or a row, R rows, P pairs of rows, I images."""
    types = {"C": "float32[::1]", "R": "float32[:, ::1]", "P": "float32[:, :, ::1]", "I": "float32[:, :, :, ::1]"}
    for short, long in types.items():
        signature = signature.replace(short, long)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(signature, cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
        except (RuntimeError, OSError):  # there is no folder, or no room, for what is compiled
            return njit(signature, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]

    return compiled


@_compiled("C(C, int64)")
def _tiled(channels: Values, width: int) -> Values:
    """Returns a value per channel as a row of an image, (width · C,)."""
    row = np.empty(width * len(channels), np.float32)
    for j in range(len(row)):
        row[j] = channels[j % len(channels)]
    return row


@_compiled("void(C, C, P, R)")
def _pool_rows(upper: Values, lower: Values, pairs: Values, pooled: Values) -> None:
    """Writes the largest of each four values of two rows (W · C,) to `pooled` (W/2, C); NaN where one is NaN.

    The larger of each two, one above the other, is in `pairs` then, (W/2, 2, C).
    """
    columns = pairs.reshape(pairs.size)
    for j in range(len(upper)):
        columns[j] = upper[j] if (upper[j] >= lower[j]) | np.isnan(upper[j]) else lower[j]
    for w in range(pooled.shape[0]):
        for c in range(pooled.shape[1]):
            left, right = pairs[w, 0, c], pairs[w, 1, c]
            pooled[w, c] = left if (left >= right) | np.isnan(left) else right


@_compiled("I(I)")
def pool(images: Values) -> Values:
    """Returns the largest of each 2×2 values, (N, H/2, W/2, C); NaN where one is NaN."""
    count, height, width, channels = images.shape
    pooled = np.empty((count, height // 2, width // 2, channels), np.float32)
    rows = images.reshape(count, height // 2, 2, width * channels)
    pairs = np.empty((width // 2, 2, channels), np.float32)
    for n in range(count):
        for h in range(height // 2):
            _pool_rows(rows[n, h, 0], rows[n, h, 1], pairs, pooled[n, h])
    return pooled


@_compiled("C(P)")
def _mean_of(image: Values) -> Values:
    """Returns the mean of each channel of an image (H, W, C)."""
    means = np.zeros(image.shape[2])
    for h in range(image.shape[0]):
        for w in range(image.shape[1]):
            for c in range(image.shape[2]):
                means[c] += image[h, w, c]
    return np.asarray(means / (image.shape[0] * image.shape[1]), np.float32)


@_compiled("Tuple((I, C, C))(I)")
def _pool_and_moments(images: Values) -> tuple[Values, Values, Values]:
    """Returns the result of `pool`, and mean and variance of each channel, (C,)."""
    count, height, width, channels = images.shape
    pooled = np.empty((count, height // 2, width // 2, channels), np.float32)
    rows = images.reshape(count, height // 2, 2, width * channels)
    pairs = np.empty((width // 2, 2, channels), np.float32)
    # Squares are taken of distances to the mean of one image: few digits are lost then where the mean is far from 0.
    center = _mean_of(images[0])
    centers = _tiled(center, width)
    sums, squares = np.empty(width * channels, np.float32), np.empty(width * channels, np.float32)
    total, total_square = np.zeros(channels), np.zeros(channels)
    for n in range(count):
        sums[:] = 0
        squares[:] = 0
        for h in range(height // 2):
            upper, lower = rows[n, h, 0], rows[n, h, 1]
            _pool_rows(upper, lower, pairs, pooled[n, h])
            for j in range(width * channels):
                sums[j] += (upper[j] - centers[j]) + (lower[j] - centers[j])
            for j in range(width * channels):
                above, below = upper[j] - centers[j], lower[j] - centers[j]
                squares[j] += above * above + below * below
        for w in range(width):
            for c in range(channels):
                total[c] += sums[w * channels + c]
                total_square[c] += squares[w * channels + c]
    mean, variance = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for c in range(channels):
        distance = total[c] / (count * height * width)
        mean[c] = center[c] + distance
        spread = total_square[c] / (count * height * width) - distance * distance
        variance[c] = 0.0 if spread < 0 else spread  # NaN stays NaN, here and below
    return pooled, mean, variance


@_compiled("Tuple((I, I, C, C))(I, C, C, C, C, float64, float64)")
def forward(
    images: Values,
    weight: Values,
    bias: Values,
    running_mean: Values,
    running_var: Values,
    momentum: float,
    eps: float,
) -> tuple[Values, Values, Values, Values]:
    """Normalises by the batch, and moves the running statistics.

    Returns:
        the outputs and the pooled images, (N, H/2, W/2, C); mean and 1/√(variance + eps) of each channel, (C,).
    """
    pooled, mean, variance = _pool_and_moments(images)
    samples = images.size // len(mean)
    for c in range(len(mean)):
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_var[c] += momentum * (variance[c] * samples / (samples - 1) - running_var[c])
    inverse = (1 / np.sqrt(variance + eps)).astype(np.float32)
    scale = weight * inverse
    scales, shifts = _tiled(scale, pooled.shape[2]), _tiled(bias - mean * scale, pooled.shape[2])
    outputs = np.empty_like(pooled)
    rows, output_rows = pooled.reshape(-1, len(scales)), outputs.reshape(-1, len(scales))
    for i in range(len(rows)):
        for j in range(len(scales)):
            value = rows[i, j] * scales[j] + shifts[j]
            output_rows[i, j] = _ZERO if value < 0 else value
    return outputs, pooled, mean, inverse


@_compiled("I(I, I, C, C, C)")
def _backward_of_pool(grad_norm: Values, images: Values, scale: Values, slope: Values, offset: Values) -> Values:
    """Returns offset + slope · image, and in one largest of each four `scale · grad_norm` besides."""
    count, height, width, channels = images.shape
    grad_images = np.empty_like(images)
    rows = images.reshape(count, height // 2, 2, width * channels)
    found = grad_images.reshape(count, height // 2, 2, width * channels)
    slopes, offsets = _tiled(slope, width), _tiled(offset, width)
    pairs, grad_pairs = np.empty((width // 2, 2, channels), np.float32), np.empty((width // 2, 2, channels), np.float32)
    columns, grad_columns = pairs.reshape(pairs.size), grad_pairs.reshape(pairs.size)
    for n in range(count):
        for h in range(height // 2):
            upper, lower, grad_upper, grad_lower = rows[n, h, 0], rows[n, h, 1], found[n, h, 0], found[n, h, 1]
            given = grad_norm[n, h]
            for j in range(width * channels):
                columns[j] = upper[j] if upper[j] >= lower[j] else lower[j]
            for w in range(width // 2):
                for c in range(channels):
                    value = given[w, c] * scale[c]
                    grad_left = value if pairs[w, 0, c] >= pairs[w, 1, c] else _ZERO
                    grad_pairs[w, 0, c] = grad_left
                    grad_pairs[w, 1, c] = value - grad_left
            for j in range(width * channels):
                more = grad_columns[j] if upper[j] >= lower[j] else _ZERO
                grad_upper[j] = offsets[j] + slopes[j] * upper[j] + more
            for j in range(width * channels):
                more = _ZERO if upper[j] >= lower[j] else grad_columns[j]
                grad_lower[j] = offsets[j] + slopes[j] * lower[j] + more
    return grad_images


@_compiled("Tuple((I, C, C))(I, I, I, I, C, C, C)")
def backward(
    grad_outputs: Values,
    images: Values,
    pooled: Values,
    outputs: Values,
    weight: Values,
    mean: Values,
    inverse: Values,
) -> tuple[Values, Values, Values]:
    """Returns the gradients of the images, (N, H, W, C), of weight and of bias, (C,)."""
    channels, row = len(mean), pooled.shape[2] * pooled.shape[3]
    grad_norm, grad_weight, grad_bias = np.empty_like(pooled), np.zeros(channels), np.zeros(channels)
    sums, products = np.empty(row, np.float32), np.empty(row, np.float32)
    means = _tiled(mean, pooled.shape[2])
    for n in range(len(pooled)):
        given, found = grad_outputs[n].reshape(-1, row), grad_norm[n].reshape(-1, row)
        values, ends = pooled[n].reshape(-1, row), outputs[n].reshape(-1, row)
        sums[:] = 0
        products[:] = 0
        for h in range(len(values)):
            for j in range(row):
                found[h, j] = given[h, j] if ends[h, j] > 0 else _ZERO
            for j in range(row):
                sums[j] += found[h, j]
                products[j] += found[h, j] * (values[h, j] - means[j])
        for w in range(pooled.shape[2]):
            for c in range(channels):
                grad_bias[c] += sums[w * channels + c]
                grad_weight[c] += products[w * channels + c] * inverse[c]
    # What every value gets because it is a part of the statistics: offset + slope · value.
    samples = images.size // channels
    scale = weight * inverse
    slope = -scale * grad_weight * inverse / samples
    offset = -scale * grad_bias / samples - slope * mean
    slope, offset = slope.astype(np.float32), offset.astype(np.float32)
    grad_images = _backward_of_pool(grad_norm, images, scale, slope, offset)
    return grad_images, grad_weight.astype(np.float32), grad_bias.astype(np.float32)
