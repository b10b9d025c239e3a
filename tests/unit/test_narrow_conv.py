"""Convolutions of few channels, against torch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from esper_ray.models import narrow_conv
from esper_ray.models.narrow_conv import conv3x3

avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="a processor without AVX-512 has nothing to win here"
)


def conv_of(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return conv.to(memory_format=torch.channels_last)


def images_of(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@avx512
@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (8, 16), (8, 8), (1, 8), (1, 4), (4, 8), (5, 2)])
@pytest.mark.parametrize("size", [(32, 32), (5, 14), (1, 2)])
def test_outputs_and_gradients_are_those_of_the_convolution(
    inputs: int, outputs: int, size: tuple[int, int], needs_gradient: bool
) -> None:
    conv, images = conv_of(inputs, outputs), images_of(6, inputs, *size)
    exact, twin = copy.deepcopy(conv).double(), images.double().requires_grad_(needs_gradient)
    images.requires_grad_(needs_gradient)
    assert narrow_conv._is_quick(images, conv) or (outputs > 8 and not needs_gradient)
    found, expected = conv3x3(images, conv), exact(twin)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert conv.weight.grad is not None and exact.weight.grad is not None
    assert (conv.weight.grad - exact.weight.grad).norm() <= 1e-5 * exact.weight.grad.norm()
    assert (images.grad is not None) == needs_gradient
    if images.grad is not None:
        torch.testing.assert_close(images.grad.double(), twin.grad, rtol=1e-5, atol=1e-5)


@avx512
def test_a_frozen_convolution_lets_the_gradient_through_in_whatever_layout_it_comes() -> None:
    conv, images = conv_of(8, 8).requires_grad_(False), images_of(6, 8, 4, 4).requires_grad_()
    twin = images.detach().clone().requires_grad_()
    gradient = torch.randn(6, 8, 4, 4)
    conv3x3(images, conv).backward(gradient)
    conv(twin).backward(gradient)
    assert conv.weight.grad is None and images.grad is not None and twin.grad is not None
    torch.testing.assert_close(images.grad, twin.grad, rtol=1e-5, atol=1e-5)


def test_a_processor_without_avx_512_convolves_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    conv, images = conv_of(3, 8), images_of(6, 3, 32, 32)
    assert not narrow_conv._is_quick(images, conv)
    assert torch.equal(conv3x3(images, conv), conv(images))


def test_in_evaluation_it_is_torch_s_to_the_last_bit() -> None:
    for count, channels in ((1, 8), (6, 8), (6, 4)):
        conv, images = conv_of(3, channels).eval(), images_of(count, 3, 32, 32)
        assert torch.equal(conv3x3(images, conv), conv(images))


@pytest.mark.parametrize(
    ("conv", "images"),
    [
        (conv_of(3, 16), images_of(6, 3, 8, 8)),
        (conv_of(3, 8), images_of(6, 3, 8, 7)),
        (conv_of(3, 8), torch.randn(6, 3, 8, 8)),
        (conv_of(3, 8).double(), images_of(6, 3, 8, 8).double()),
        (nn.Conv2d(3, 8, 3, padding=1), images_of(6, 3, 8, 8)),
        (nn.Conv2d(3, 8, 1, bias=False), images_of(6, 3, 8, 8)),
        (nn.Conv2d(3, 8, 3, padding=1, bias=False, stride=2), images_of(6, 3, 8, 8)),
        (nn.Conv2d(3, 8, 3, padding=2, bias=False, dilation=2), images_of(6, 3, 8, 8)),
        (nn.Conv2d(3, 8, 3, padding=1, bias=False, padding_mode="circular"), images_of(6, 3, 8, 8)),
        (nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=2), images_of(6, 8, 8, 8)),
    ],
    ids=[
        *["many channels", "odd width", "layout", "double", "bias", "1×1", "stride", "dilation", "padding", "groups"],
    ],
)
def test_other_convolutions_are_left_to_torch(conv: nn.Conv2d, images: Tensor) -> None:
    assert not narrow_conv._is_quick(images, conv)
    assert torch.equal(conv3x3(images, conv), conv(images))
