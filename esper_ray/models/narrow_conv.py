"""3×3 convolutions of few channels, for the CPU."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_NARROW = 8
"""Half of the 16 values that an AVX-512 instruction works on: torch leaves the other half idle."""


def conv3x3(images: Tensor, conv: nn.Module) -> Tensor:
    """Returns `conv(images)`, a 3×3 convolution; to the last bit, its gradients within float rounding.

    In channels-last layout two pixels of 8 channels that stand side by side are one of 16. So a convolution to 8
    channels is done as one to 16, in steps of 2 with a kernel 4 wide, of which each half sees 3 columns: a third more
    arithmetic, and still less time. The gradient of 8 input channels is such a convolution too.

    Shape:
        images (N, C, H, W); the result (N, out channels, H, W).
    """
    if not isinstance(conv, nn.Conv2d) or not _is_quick(images, conv):
        return cast(Tensor, conv(images))
    return cast(Tensor, _Conv3x3.apply(images, conv.weight))  # type: ignore[no-untyped-call]


def _is_quick(images: Tensor, conv: nn.Conv2d) -> bool:
    return (
        _NARROW in (conv.in_channels, conv.out_channels)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and images.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and images.dtype == torch.float32
        and images.shape[3] % 2 == 0
        and images.is_contiguous(memory_format=torch.channels_last)
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.groups, conv.dilation, conv.padding_mode, conv.bias) == (1, (1, 1), "zeros", None)
    )


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return _convolved(images, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        images, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        to_images = None
        if ctx.needs_input_grad[0]:
            to_images = _convolved(gradient, weight.flip(2, 3).transpose(0, 1))
        return to_images, _to_weight(gradient, images, weight)


def _convolved(images: Tensor, weight: Tensor) -> Tensor:
    if len(weight) != _NARROW:
        return F.conv2d(images, weight, padding=1)
    pairs = F.conv2d(images, _of_pairs(weight), stride=(1, 2), padding=1).permute(0, 2, 3, 1)
    return pairs.reshape(len(images), *images.shape[2:], _NARROW).permute(0, 3, 1, 2)


def _to_weight(gradient: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    def found(gradient: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
        ones, no_bias, only_weight = [1, 1], None, [False, True, False]
        gradients = torch.ops.aten.convolution_backward(
            gradient, images, weight, no_bias, stride, ones, ones, False, [0, 0], 1, only_weight
        )
        return cast(Tensor, gradients[1])

    if len(weight) != _NARROW:
        return found(gradient, weight, [1, 1])
    count, _, height, width = gradient.shape
    pairs = gradient.permute(0, 2, 3, 1).reshape(count, height, width // 2, 2 * _NARROW).permute(0, 3, 1, 2)
    both = found(pairs, _of_pairs(weight), [1, 2])
    return both[:_NARROW, ..., :3] + both[_NARROW:, ..., 1:]


def _of_pairs(weight: Tensor) -> Tensor:
    """Returns weights (8, C, 3, 3) for pairs of pixels, (16, C, 3, 4)."""
    return torch.cat([F.pad(weight, (0, 1)), F.pad(weight, (1, 0))]).contiguous(memory_format=torch.channels_last)
