"""Hosts that differ: the task of one particular host, derived from a task and a host seed."""

import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import exp, log
from typing import Any

import numpy as np

from esper_ray.models import build_host, host_options
from esper_ray.models.hosts import host_factory
from esper_ray.seeding import Stream, derive_seed, seeded
from esper_ray.tasks.settings import HostSettings
from esper_ray.tasks.spec import TaskSpec


def draw_host(task: TaskSpec, host_seed: int) -> TaskSpec:
    """Returns the task of the host that a seed stands for: the task itself unless `variety.enabled`.

    Drawn are, in this order: one of `variety.hosts`, the `variety.options` by name, the slot, the learning rate, the
    share of the training data and the label noise. The result has no variety left.

    Raises:
        ConfigurationError: an option is unknown, or a value is not valid.
    """
    variety = task.variety
    if not variety.enabled:
        return task
    rng = np.random.default_rng(derive_seed(host_seed, Stream.HOST_DRAW))
    together = variety.hosts[int(rng.integers(len(variety.hosts)))] if variety.hosts else {}
    single = {option: values[int(rng.integers(len(values)))] for option, values in sorted(variety.options.items())}
    host = _host_with(task, {**together, **single})
    if variety.any_slot:
        slots = _injection_points(task, host)
        host = host.model_copy(update={"slot": slots[int(rng.integers(len(slots)))]})
    slowest, fastest = variety.lr_factor
    factor = exp(rng.uniform(log(slowest), log(fastest)))
    data = task.data.model_copy(
        update={
            "train_share": task.data.train_share * float(rng.uniform(*variety.train_share)),
            "label_noise": task.data.label_noise + float(rng.uniform(*variety.label_noise)),
        }
    )
    optimizer = task.host_optimizer.model_copy(update={"lr": task.host_optimizer.lr * factor})
    settled = variety.model_copy(update={"enabled": False})
    return task.model_copy(update={"host": host, "host_optimizer": optimizer, "data": data, "variety": settled})


def drawn_settings(task: TaskSpec) -> dict[str, Any]:
    """Returns the settings that distinguish the host of a drawn task, by their dotted names."""
    options = {f"host.{option}": task.host.options[option] for option in task.variety.drawn_options}
    return {
        **options,
        "host.slot": task.host.slot,
        "host_optimizer.lr": task.host_optimizer.lr,
        "data.train_share": task.data.train_share,
        "data.label_noise": task.data.label_noise,
    }


def every_host(task: TaskSpec) -> Iterator[TaskSpec]:
    """Yields the task with each combination of host options and slot that can be drawn; without variety, the task.

    Raises:
        ConfigurationError: as `draw_host`.
    """
    variety = task.variety
    if not variety.enabled:
        yield task
        return
    for together, *values in itertools.product(variety.hosts or ({},), *variety.options.values()):
        host = _host_with(task, {**together, **dict(zip(variety.options, values, strict=True))})
        for slot in _injection_points(task, host) if variety.any_slot else [host.slot]:
            yield task.model_copy(update={"host": host.model_copy(update={"slot": slot})})


def _host_with(task: TaskSpec, drawn: Mapping[str, Any]) -> HostSettings:
    options = host_options(task.host.kind, {**task.host.options, **drawn})
    return HostSettings.model_validate({**task.host.model_dump(), **options})


def _injection_points(task: TaskSpec, host: HostSettings) -> list[str]:
    return _points_of(host_factory(host.kind), host.model_dump_json(), task.input_shape, task.classes)


@lru_cache
def _points_of(_factory: object, settings: str, input_shape: tuple[int, ...], classes: int) -> list[str]:
    """Builds such a host once, only to ask it; a kind of host may be defined anew under its name."""
    host = HostSettings.model_validate_json(settings)
    with seeded(0):
        return list(build_host(host.kind, input_shape, classes, host.options).injection_points)  # type: ignore[arg-type]
