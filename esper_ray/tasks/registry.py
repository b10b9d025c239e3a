"""The named tasks."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from pydantic import ValidationError

from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.tasks.settings import DataSettings, DecisionSettings, HostSettings
from esper_ray.tasks.spec import TaskSpec
from esper_ray.training import OptimizerSettings

_TASKS: dict[str, TaskSpec] = {}

_IDENTITY = frozenset({"name", "summary", "task_type", "input_shape", "classes", "data.source"})
"""What makes a task this task; no override changes it."""


def register_task(task: TaskSpec) -> TaskSpec:
    """Adds a task under its name.

    Raises:
        ConfigurationError: the name is taken.
    """
    if task.name in _TASKS:
        raise ConfigurationError(f"task '{task.name}' is already registered")
    _TASKS[task.name] = task
    return task


def task_names() -> list[str]:
    """Returns the names of all tasks, in the order of their registration."""
    return list(_TASKS)


def get_task_spec(name: str, overrides: Mapping[str, Any] | None = None) -> TaskSpec:
    """Returns a task, changed by `overrides`: dotted key → value, for example {"lifecycle.blending_steps": 3}.

    Raises:
        ConfigurationError: the task or a key is unknown (the nearest is named), or a value is out of range.
    """
    if name not in _TASKS:
        raise ConfigurationError(unknown_name("task", name, _TASKS))
    values = _TASKS[name].model_dump()
    known = [key for key in _dotted_keys(values) if key not in _IDENTITY]
    for key, value in (overrides or {}).items():
        if key not in known:
            raise ConfigurationError(unknown_name("task setting", key, known))
        _assign(values, key, value)
    try:
        return TaskSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or name
        raise ConfigurationError(f"task setting {where}={first['input']!r}: {first['msg']}") from None


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


register_task(
    TaskSpec(
        name="digits",
        summary="a host of one narrow block on 8×8 handwritten digits; seconds per episode, no download",
        input_shape=(1, 8, 8),
        classes=10,
        max_epochs=25,
        data=DataSettings(source="digits", batch_size=64),
        host=HostSettings(base_channels=8, blocks=1),
        host_optimizer=OptimizerSettings(lr=0.02, weight_decay=5e-4),
        seed_optimizer=OptimizerSettings(lr=0.05),
        lifecycle=LifecycleSettings(training_dwell=2, blending_steps=3, shadowing_dwell=1, embargo_epochs=2),
        decisions=DecisionSettings(min_germination_epoch=3, min_plateau=0, require_stabilised=False, min_cull_age=3),
    )
)
register_task(
    TaskSpec(
        name="fashion_mnist",
        summary="a narrow host of two blocks on 10,000 images of Fashion-MNIST",
        input_shape=(1, 28, 28),
        classes=10,
        max_epochs=25,
        episodes_per_iteration=8,
        data=DataSettings(source="fashion_mnist", train_samples=10_000, validation_samples=2_000, batch_size=128),
        host=HostSettings(base_channels=4, blocks=2),
        lifecycle=LifecycleSettings(training_dwell=2, blending_steps=3, shadowing_dwell=1, embargo_epochs=2),
        decisions=DecisionSettings(min_germination_epoch=3, min_plateau=0, require_stabilised=False, min_cull_age=3),
    )
)
register_task(
    TaskSpec(
        name="cifar10",
        summary="a deliberately weak host of three blocks on CIFAR-10",
        input_shape=(3, 32, 32),
        classes=10,
        max_epochs=75,
        episodes_per_iteration=8,
        data=DataSettings(source="cifar10", batch_size=128),
        host=HostSettings(base_channels=8, blocks=3),
    )
)
