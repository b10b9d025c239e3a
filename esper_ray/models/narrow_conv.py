"""3×3 convolutions of few channels, for the CPU."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LANES = 16
"""Values that an AVX-512 instruction works on: of a convolution to 8 channels torch leaves half of them idle."""


def conv3x3(images: Tensor, conv: nn.Module) -> Tensor:
    """Returns `conv(images)`, of a 3×3 convolution; while training within float rounding, else to the last bit.

    In channels-last layout two pixels of 8 channels that stand side by side are one of 16. So a convolution to 8
    channels is done as one to 16, in steps of 2 with a kernel 4 wide, of which each half sees 3 columns: a third more
    arithmetic, and still less time. To 4 channels or fewer it is done with four pixels. The gradient of few input
    channels is such a convolution too.

    Shape:
        images (N, C, H, W); the result (N, out channels, H, W).
    """
    if type(conv) is not nn.Conv2d or not _is_quick(images, conv):
        return cast(Tensor, conv(images))
    return cast(Tensor, _Conv3x3.apply(images, conv.weight))  # type: ignore[no-untyped-call]


def _is_quick(images: Tensor, conv: nn.Conv2d) -> bool:
    pixels = _pixels(images, conv.out_channels), _pixels(images, conv.in_channels) if images.requires_grad else 1
    return (
        conv.training
        and max(pixels) > 1
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and images.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and images.dtype == torch.float32
        and images.is_contiguous(memory_format=torch.channels_last)
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
        and conv.bias is None
    )


def _pixels(images: Tensor, channels: int) -> int:
    """Returns how many neighbouring pixels of a row are processed as one, with so many channels."""
    return next((count for count in (4, 2) if count * channels <= _LANES and images.shape[3] % count == 0), 1)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return _convolved(images, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        for_images, for_weight = ctx.needs_input_grad
        return (
            _convolved(gradient, weight.flip(2, 3).transpose(0, 1)) if for_images else None,
            _grad_weight(gradient, images, weight) if for_weight else None,
        )


def _convolved(images: Tensor, weight: Tensor) -> Tensor:
    pixels = _pixels(images, len(weight))
    if pixels == 1:
        return F.conv2d(images, weight, padding=1)
    found = F.conv2d(images, _widened(weight, pixels), stride=(1, pixels), padding=1).permute(0, 2, 3, 1)
    return found.reshape(len(images), *images.shape[2:], len(weight)).permute(0, 3, 1, 2)


def _grad_weight(gradient: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    channels, pixels = len(weight), _pixels(images, len(weight))
    if images.shape[1] == 1:  # then it does not pay
        pixels = 1
    if pixels > 1:
        count, _, height, width = gradient.shape
        rows = gradient.permute(0, 2, 3, 1).reshape(count, height, width // pixels, pixels * channels)
        gradient, weight = rows.permute(0, 3, 1, 2), _widened(weight, pixels)
    ones, no_bias, only_weight = [1, 1], None, [False, True, False]
    _, found, _ = torch.ops.aten.convolution_backward(
        gradient, images, weight, no_bias, [1, pixels], ones, ones, False, [0, 0], 1, only_weight
    )
    first, *others = (kernel[..., at : at + 3] for at, kernel in enumerate(found.split(channels)))
    return cast(Tensor, sum(others, first))


def _widened(weight: Tensor, pixels: int) -> Tensor:
    """Returns weights (K, C, 3, 3) for several pixels, one after the other: (pixels · K, C, 3, 2 + pixels)."""
    kernels = [F.pad(weight, (first, pixels - 1 - first)) for first in range(pixels)]
    return torch.cat(kernels).contiguous(memory_format=torch.channels_last)
