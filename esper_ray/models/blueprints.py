"""The registry of seed modules, and the five for convolutional hosts.

A blueprint builds a module that maps features of a given width to features of the same shape, and starts as, or near,
the identity. Group norm, not batch norm, so that a seed carries no running statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.errors import ConfigurationError, unknown_name

SeedFactory = Callable[[int], nn.Module]

_REGISTRY: dict[tuple[str, str], SeedFactory] = {}

_NEAR_IDENTITY_GAIN = 0.1
"""Initial gain of the last norm in a residual branch. Exactly 0 would leave a ReLU behind it without any gradient."""


@dataclass(frozen=True)
class Blueprint:
    """A registered seed module at a given width.

    Attributes:
        blueprint_id: name, unique within the topology.
        topology: "cnn" or "transformer", the kind of features it fits.
        parameter_count: trainable parameters at this width.
    """

    blueprint_id: str
    topology: str
    parameter_count: int


def blueprint(blueprint_id: str, topology: str) -> Callable[[SeedFactory], SeedFactory]:
    """Registers a seed module; decorates a class or function that takes the feature width (channels).

    Raises:
        ConfigurationError: another blueprint of that topology has the name already.
    """

    def register(factory: SeedFactory) -> SeedFactory:
        if (topology, blueprint_id) in _REGISTRY:
            raise ConfigurationError(f"blueprint '{blueprint_id}' is already registered for topology '{topology}'")
        _REGISTRY[topology, blueprint_id] = factory
        list_blueprints.cache_clear()
        return factory

    return register


def build_seed(blueprint_id: str, topology: str, width: int) -> nn.Module:
    """Builds a seed module, initialised from torch's global random state.

    Raises:
        ConfigurationError: no such blueprint for this topology.
    """
    if (topology, blueprint_id) not in _REGISTRY:
        known = [name for kind, name in _REGISTRY if kind == topology]
        raise ConfigurationError(unknown_name(f"{topology} blueprint", blueprint_id, known))
    return _REGISTRY[topology, blueprint_id](width)


@cache
def list_blueprints(topology: str, width: int) -> tuple[Blueprint, ...]:
    """Returns the blueprints of a topology in order of their parameter count at feature width `width`."""
    with torch.device("meta"):
        counted = [
            Blueprint(name, kind, sum(p.numel() for p in factory(width).parameters() if p.requires_grad))
            for (kind, name), factory in _REGISTRY.items()
            if kind == topology
        ]
    return tuple(sorted(counted, key=lambda b: (b.parameter_count, b.blueprint_id)))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Returns a group norm with groups of about four channels."""
    return nn.GroupNorm(gcd(channels, max(1, channels // 4)), channels)


def _residual_norm(channels: int) -> nn.GroupNorm:
    norm = _group_norm(channels)
    nn.init.constant_(norm.weight, _NEAR_IDENTITY_GAIN)
    return norm


def _conv3x3(channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=groups, bias=False)


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
