"""The registry of seed modules.

A blueprint builds a module that maps features of a given width to features of the same shape, and starts as, or near,
the identity. It should carry no running statistics, because a seed is also judged by what the host does without it.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.plugins import is_redefinition
from esper_ray.seeding import seeded
from esper_ray.user_code import remember_code

SeedFactory = Callable[..., nn.Module]
"""Takes the feature width and, if it has such a parameter, `causal`: whether no position may see a later one."""
Obstacle = Callable[[torch.device, int], str | None]
"""Device, feature width → why a module cannot be trained there, or None if it can."""


@dataclass(frozen=True)
class Blueprint:
    """A registered seed module at a given width.

    Attributes:
        blueprint_id: name, unique within the topology.
        topology: the kind of features it fits: "cnn", "transformer", or one of a user's own.
        parameter_count: parameters at this width.
    """

    blueprint_id: str
    topology: str
    parameter_count: int


@dataclass
class _Entry:
    factory: SeedFactory
    obstacle: Obstacle | None

    def __post_init__(self) -> None:
        self.takes_causal = _takes_causal(self.factory)
        self.parameter_counts: dict[int, int] = {}
        self.obstacles: dict[tuple[torch.device, int], str | None] = {}


_REGISTRY: dict[tuple[str, str], _Entry] = {}


def blueprint(
    blueprint_id: str, topology: str, obstacle: Obstacle | None = None
) -> Callable[[SeedFactory], SeedFactory]:
    """Registers a seed module; decorates a class or function `(width)` or `(width, causal)`.

    With a parameter `causal` it is told whether the host is causal, so that no position may depend on a later one. It
    has as many parameters either way.

    The heuristic policy tries the blueprints of a topology in the order of their registration.

    Args:
        blueprint_id: name, unique within the topology.
        topology: the kind of features it fits, as its hosts state it.
        obstacle: says why the module cannot be trained on a device, or None if it can; asked once per device and width.

    Raises:
        ConfigurationError: the name is not of lower-case letters, digits and _, or is taken within the topology.
    """

    if not isinstance(blueprint_id, str) or not isinstance(topology, str):
        raise ConfigurationError("a blueprint needs names: write @blueprint('my_seed', topology='cnn')")

    def register(factory: SeedFactory) -> SeedFactory:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", blueprint_id):
            raise ConfigurationError(f"blueprint '{blueprint_id}': expected a name of lower-case letters, digits and _")
        known = _REGISTRY.get((topology, blueprint_id))
        if known is not None and not is_redefinition(known.factory, factory):
            raise ConfigurationError(f"blueprint '{blueprint_id}' is already registered for topology '{topology}'")
        _REGISTRY[topology, blueprint_id] = _Entry(factory, obstacle)
        remember_code(factory)
        return factory

    return register


def build_seed(blueprint_id: str, topology: str, width: int, causal: bool = True) -> nn.Module:
    """Builds a seed module, initialised from torch's global random state.

    Args:
        causal: no position may depend on a later one; for blueprints that ask.

    Raises:
        ConfigurationError: no such blueprint for this topology, or it fails at this width.
    """
    if (topology, blueprint_id) not in _REGISTRY:
        raise ConfigurationError(unknown_name(f"{topology} blueprint", blueprint_id, registered_blueprints(topology)))
    entry = _REGISTRY[topology, blueprint_id]
    try:
        seed = entry.factory(width, causal=causal) if entry.takes_causal else entry.factory(width)
    except Exception as error:
        raise ConfigurationError(
            f"blueprint '{blueprint_id}' cannot be built at width {width}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(seed, nn.Module):
        raise ConfigurationError(f"blueprint '{blueprint_id}' must return an nn.Module, got {type(seed).__name__}")
    return seed


def asks_for_causality(topology: str) -> bool:
    """Returns whether a blueprint of the topology is built in another way for a causal host."""
    return any(entry.takes_causal for (kind, _), entry in _REGISTRY.items() if kind == topology)


def _takes_causal(factory: SeedFactory) -> bool:
    try:
        return "causal" in inspect.signature(factory).parameters
    except ValueError:  # some that are written in C have none
        return False


def seed_factory(blueprint_id: str, topology: str) -> SeedFactory:
    """Returns the constructor of a registered blueprint."""
    return _REGISTRY[topology, blueprint_id].factory


def seed_factories() -> list[SeedFactory]:
    """Returns the constructors of the registered blueprints, of every topology."""
    return [entry.factory for entry in _REGISTRY.values()]


def topologies() -> list[str]:
    """Returns the topologies that blueprints are registered for."""
    return list(dict.fromkeys(kind for kind, _ in _REGISTRY))


def registered_blueprints(topology: str) -> tuple[str, ...]:
    """Returns the names of a topology's blueprints in the order of their registration, wherever they can run."""
    return tuple(name for kind, name in _REGISTRY if kind == topology)


def list_blueprints(topology: str, width: int, device: str | torch.device = "cpu") -> tuple[Blueprint, ...]:
    """Returns the blueprints that can be trained on `device`, in order of parameter count at feature width `width`.

    Raises:
        ConfigurationError: one of them fails at this width.
    """
    barred = barred_blueprints(topology, width, device)
    names = (name for name in registered_blueprints(topology) if name not in barred)
    listed = [Blueprint(name, topology, _parameter_count(name, topology, width)) for name in names]
    return tuple(sorted(listed, key=lambda b: (b.parameter_count, b.blueprint_id)))


def barred_blueprints(topology: str, width: int, device: str | torch.device = "cpu") -> dict[str, str]:
    """Returns the blueprints of a topology that cannot be trained at this width on `device`, each with the reason."""
    device = torch.device(device)
    reasons = {name: _obstacle(name, topology, device, width) for name in registered_blueprints(topology)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _obstacle(blueprint_id: str, topology: str, device: torch.device, width: int) -> str | None:
    entry = _REGISTRY[topology, blueprint_id]
    if (device, width) not in entry.obstacles:
        try:
            entry.obstacles[device, width] = entry.obstacle(device, width) if entry.obstacle is not None else None
        except torch.OutOfMemoryError:
            raise  # that says nothing about the blueprint
        except Exception as error:
            raise ConfigurationError(
                f"the obstacle of blueprint '{blueprint_id}' raises {type(error).__name__}: {error}; it must return "
                f"why the seed cannot be trained on {device.type} at width {width}, or None"
            ) from error
    return entry.obstacles[device, width]


def _parameter_count(blueprint_id: str, topology: str, width: int) -> int:
    counts = _REGISTRY[topology, blueprint_id].parameter_counts
    if width not in counts:
        with seeded(0):  # so that counting draws nothing from the caller's generator
            seed = build_seed(blueprint_id, topology, width)
        counts[width] = sum(p.numel() for p in seed.parameters())
    return counts[width]
