"""The registry of tasks."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, TypeVar

from pydantic import ValidationError

from esper_ray.errors import ConfigurationError, setting_error, unknown_name
from esper_ray.models import host_options
from esper_ray.plugins import is_redefinition
from esper_ray.tasks.settings import HostSettings
from esper_ray.tasks.spec import TaskSpec

_TASKS: dict[str, TaskSpec] = {}

_IDENTITY = frozenset({"name", "summary", "task_type", "input_shape", "classes", "data.source"})
"""Settings that make a task this task; no override changes them."""


_OPTION_PREFIX = "variety.options."
"""Begins the name of a range of a host's option."""


_WRONG: dict[str, str] = {}
"""Errors in the tasks of functions, by the names of the functions."""

_CLASHES: dict[str, str] = {}
"""Names of functions that return another task under a name that is taken, by the names of the tasks."""

_FUNCTIONS: dict[str, Callable[[], TaskSpec]] = {}
"""The functions that returned tasks, by the names of the tasks."""

_Task = TypeVar("_Task", TaskSpec, Callable[[], TaskSpec])


def register_task(task: _Task) -> _Task:
    """Registers a task under its name; also decorates a function that returns one. Returns its argument.

    A function that raises does not keep a plugin's other tasks from being registered: the error is reported where the
    task is listed or asked for, under the function's name.

    Raises:
        ConfigurationError: the argument is neither, or the name is taken by another task.
    """
    if isinstance(task, TaskSpec):
        _add(task)
        return task
    if not callable(task):
        raise ConfigurationError(f"register_task takes a TaskSpec or a function that returns one, got {task!r}")
    name = getattr(task, "__name__", repr(task))
    _WRONG.pop(name, None)
    for taken in [taken for taken, function in _CLASHES.items() if function == name]:
        del _CLASHES[taken]
    try:
        spec = task()
        if not isinstance(spec, TaskSpec):
            raise ConfigurationError(f"its function must return a TaskSpec, got {spec!r}")
        _add(spec, task)
    except ValidationError as error:
        _WRONG[name] = setting_error(error)
    except ConfigurationError as error:
        _WRONG[name] = str(error)
    except Exception as error:
        _WRONG[name] = f"its function raises {type(error).__name__}: {' '.join(str(error).split())}"
    return task


def _add(spec: TaskSpec, function: Callable[[], TaskSpec] | None = None) -> None:
    known = _FUNCTIONS.get(spec.name)
    redefines = known is not None and is_redefinition(known, function)
    if spec.name in _TASKS and _TASKS[spec.name] != spec and not redefines:
        if function is not None:
            _CLASHES[spec.name] = getattr(function, "__name__", repr(function))
        raise ConfigurationError(f"task '{spec.name}' is already registered")
    _TASKS[spec.name] = spec
    if function is not None:
        _FUNCTIONS[spec.name] = function


def task_names() -> list[str]:
    """Returns the names of all tasks, in the order of their registration, and those of functions that raised."""
    return [*_TASKS, *(name for name in _WRONG if name not in _TASKS)]


def get_task_spec(name: str, overrides: Mapping[str, Any] | None = None) -> TaskSpec:
    """Returns a task, changed by `overrides`: dotted key → value, for example {"lifecycle.blending_steps": 3}.

    Raises:
        ConfigurationError: the task or a key is unknown (the nearest is named), or a value is out of range.
    """
    if name in _CLASHES:  # nobody knows which one is meant
        raise ConfigurationError(f"task '{name}' is registered, and {_CLASHES[name]} returns another one of that name")
    if name not in _TASKS and name in _WRONG:
        raise ConfigurationError(f"task '{name}' is wrong: {_WRONG[name]}")
    if name not in _TASKS:
        wrong = "".join(f"; task '{other}' is wrong: {reason}" for other, reason in _WRONG.items())
        raise ConfigurationError(unknown_name("task", name, _TASKS) + wrong)
    values = _TASKS[name].model_dump()
    overrides = dict(overrides or {})
    kind = overrides.get("host.kind", values["host"]["kind"])
    if kind != values["host"]["kind"]:  # another host has other options, with defaults of their own
        shared = {name: field.default for name, field in HostSettings.model_fields.items()}
        values["host"] = {**shared, "kind": kind, **host_options(str(kind), {})}
        values["variety"] |= {"hosts": (), "options": {}}
    known = [key for key in _dotted_keys(values) if key not in _IDENTITY]
    for key, value in overrides.items():
        if key not in known and not (key.startswith(_OPTION_PREFIX) and "." not in key.removeprefix(_OPTION_PREFIX)):
            raise ConfigurationError(unknown_name("task setting", key, known))
        _assign(values, key, value)
    try:
        task = TaskSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(setting_error(error)) from None
    _require_not_drawn(task, overrides)
    return task


def _require_not_drawn(task: TaskSpec, overrides: Mapping[str, Any]) -> None:
    """Refuses an option of the host that each episode draws for itself."""
    variety = task.variety
    for option in variety.drawn_options if variety.enabled else ():
        if f"host.{option}" in overrides:
            single = variety.options.get(option)
            source = "variety.hosts" if single is None else f"variety.options.{option}={list(single)}"
            raise ConfigurationError(
                f"host.{option} is drawn for each host, from {source}: change that, or leave --host-variety out"
            )


def task_settings(task: TaskSpec) -> dict[str, Any]:
    """Returns every setting of a task that an override can change, by its dotted key, in reading order."""
    values = task.model_dump()
    return {key: _look_up(values, key) for key in _dotted_keys(values) if key not in _IDENTITY}


def _look_up(values: dict[str, Any], dotted: str) -> Any:
    return reduce(lambda section, part: section[part], dotted.split("."), values)


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    path, _, last = dotted.rpartition(".")
    section = _look_up(values, path) if path else values
    section[last] = value


def _dotted_keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys += _dotted_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys
