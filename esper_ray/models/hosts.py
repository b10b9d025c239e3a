"""The registry of host networks.

A host is any `nn.Module` with `injection_points: dict[str, int]` (slot id → feature width) and
`register_slot(slot_id, module)`, after which it runs `module` on the features at that point. It may have `topology`,
the kind of its features, which decides the blueprints that fit ("cnn" unless it says otherwise), and `default_slot`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor, nn

from esper_ray.errors import ConfigurationError, EsperError, unknown_name
from esper_ray.plugins import is_redefinition
from esper_ray.user_code import remember_code

HostFactory = TypeVar("HostFactory", bound=Callable[..., nn.Module])

_RESERVED = ("kind", "slot", "channels_last")
"""Settings that every host has, see `HostSettings`."""

_FACTORIES: dict[str, Callable[..., nn.Module]] = {}
_OPTIONS: dict[str, type[BaseModel]] = {}


class SlottedHost(nn.Module):
    """A base for hosts that keep their slots in `self.slots`, by injection point.

    A subclass fills `injection_points` and, where a point lies in its forward, writes
    `features = self.at(slot_id, features)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.injection_points: dict[str, int] = {}
        self.slots = nn.ModuleDict()

    def register_slot(self, slot_id: str, module: nn.Module) -> None:
        """Runs `module` on the features at injection point `slot_id` from now on.

        Raises:
            ConfigurationError: the host has no such injection point.
        """
        if slot_id not in self.injection_points:
            raise ConfigurationError(unknown_name("injection point", slot_id, self.injection_points))
        self.slots[slot_id] = module

    def at(self, slot_id: str, features: Tensor) -> Tensor:
        """Returns the output of the module at `slot_id` for the features (N, …); without a module, the features."""
        if slot_id not in self.slots:
            return features
        changed: Tensor = self.slots[slot_id](features)
        return changed


def host(kind: str) -> Callable[[HostFactory], HostFactory]:
    """Registers a host network; decorates a class or function `(input_shape, classes, *, option=default, …)`.

    `input_shape` is that of one sample, (channels, height, width) of an image or (tokens,) of a text; `classes` the
    number of outputs. Each keyword-only parameter is an option that tasks and `--set host.OPTION=VALUE` can change; its
    annotation says what it takes (`Annotated[int, pydantic.Field(ge=1)]`), and it needs a default.

    Raises:
        ConfigurationError: the kind is taken, or an option has no annotation or no default.
    """

    if not isinstance(kind, str):
        raise ConfigurationError("a host needs a name: write @host('my_host')")

    def register(factory: HostFactory) -> HostFactory:
        if kind in _FACTORIES and not is_redefinition(_FACTORIES[kind], factory):
            raise ConfigurationError(f"host '{kind}' is already registered")
        _OPTIONS[kind] = _options_of(kind, factory)
        remember_code(factory)
        _FACTORIES[kind] = factory
        return factory

    return register


def host_kinds() -> list[str]:
    """Returns the registered kinds of host."""
    return list(_FACTORIES)


def host_factory(kind: str) -> Callable[..., nn.Module]:
    """Returns the constructor of a registered kind of host."""
    return _FACTORIES[kind]


def host_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every option of a kind of host: the given ones, checked, and the defaults of the others.

    Raises:
        ConfigurationError: the kind or an option is unknown (the nearest is named), or a value is not valid.
    """
    if kind not in _OPTIONS:
        raise ConfigurationError(f"{unknown_name('host', kind, _OPTIONS)} (a host of your own needs its --plugin)")
    for option in given:
        if option not in _OPTIONS[kind].model_fields:
            raise ConfigurationError(unknown_name(f"option of host '{kind}'", option, _OPTIONS[kind].model_fields))
    try:
        return _OPTIONS[kind].model_validate(dict(given)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"host.{option}={first['input']!r}: {first['msg']}") from None


def build_host(kind: str, input_shape: tuple[int, ...], classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Builds a host network, initialised from torch's global random state.

    Raises:
        ConfigurationError: as `host_options`; or the host refuses the input shape or a combination of options.
    """
    valid = host_options(kind, options)
    try:
        built = _FACTORIES[kind](input_shape, classes, **valid)
    except EsperError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"host '{kind}' cannot be built for samples of shape {input_shape} and {classes} classes: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(built, nn.Module):
        raise ConfigurationError(f"host '{kind}' must be an nn.Module, got {type(built).__name__}")
    return built


def _options_of(kind: str, factory: Callable[..., nn.Module]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(factory, eval_str=True).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if name in _RESERVED:
            raise ConfigurationError(f"option '{name}' of host '{kind}' has the name of a task setting; rename it")
        if parameter.annotation is parameter.empty or parameter.default is parameter.empty:
            raise ConfigurationError(f"option '{name}' of host '{kind}' needs an annotation and a default")
        fields[name] = (parameter.annotation, parameter.default)
    return create_model(f"{kind}_options", __config__=ConfigDict(extra="forbid"), **fields)
