"""The five seed modules for convolutional hosts, in the order in which the heuristic policy tries them.

Group norm, not batch norm, so that a seed carries no running statistics.
"""

from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.models.blueprints import blueprint

_NEAR_IDENTITY_GAIN = 0.1
"""Initial gain of the last norm in a residual branch. Exactly 0 would leave a ReLU behind it without any gradient."""


def _group_norm(channels: int) -> nn.GroupNorm:
    """Returns a group norm with groups of about four channels."""
    return nn.GroupNorm(gcd(channels, max(1, channels // 4)), channels)


def _residual_norm(channels: int) -> nn.GroupNorm:
    norm = _group_norm(channels)
    nn.init.constant_(norm.weight, _NEAR_IDENTITY_GAIN)
    return norm


def _conv3x3(channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=groups, bias=False)


@blueprint("conv_light", topology="cnn")
class ConvLightSeed(nn.Module):
    """One 3×3 convolution, group norm, ReLU; residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3x3(channels)
        self.norm = _residual_norm(channels)

    def forward(self, features: Tensor) -> Tensor:
        return features + F.relu(self.norm(self.conv(features)))


@blueprint("conv_heavy", topology="cnn")
class ConvHeavySeed(nn.Module):
    """Two 3×3 convolutions, each with group norm and ReLU; residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels)
        self.norm1 = _group_norm(channels)
        self.conv2 = _conv3x3(channels)
        self.norm2 = _residual_norm(channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(features)))
        return features + F.relu(self.norm2(self.conv2(hidden)))


@blueprint("attention", topology="cnn")
class SqueezeExciteSeed(nn.Module):
    """Channel attention by squeeze and excitation, reduction 4; every gate starts at 1: exact identity.

    Source: Hu et al., "Squeeze-and-Excitation Networks", 2018. The sigmoid is doubled so that 0 means identity.
    """

    _REDUCTION = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // self._REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(dim=(2, 3))
        gates = 2.0 * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return features * gates[:, :, None, None]


@blueprint("norm", topology="cnn")
class NormSeed(nn.Module):
    """Group-norm correction with a learned scale that starts at 0: exact identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        corrected: Tensor = features + self.scale * self.norm(features)
        return corrected


@blueprint("depthwise", topology="cnn")
class DepthwiseSeed(nn.Module):
    """3×3 depthwise and 1×1 convolution, group norm, ReLU; residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = _conv3x3(channels, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.norm = _residual_norm(channels)

    def forward(self, features: Tensor) -> Tensor:
        return features + F.relu(self.norm(self.pointwise(self.depthwise(features))))
