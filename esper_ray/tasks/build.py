"""From a task to a model and to loaders."""

from dataclasses import dataclass
from pathlib import Path

import torch

from esper_ray.data import SOURCES, BatchLoader, prepare
from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.models import CNNHost, MorphogeneticModel
from esper_ray.tasks.registry import get_task_spec
from esper_ray.tasks.spec import TaskSpec

_EVALUATION_BATCH = 1000


def create_model(task: TaskSpec | str, device: str | torch.device = "cpu") -> MorphogeneticModel:
    """Builds a task's host with an empty slot, initialised from torch's global random state. Loads no data.

    Raises:
        ConfigurationError: the task is unknown, or the host has no such injection point.
    """
    spec = get_task_spec(task) if isinstance(task, str) else task
    host = CNNHost(spec.input_shape[0], spec.classes, spec.host.base_channels, spec.host.blocks)
    lifecycle = spec.lifecycle.resolved(spec.max_epochs)
    return MorphogeneticModel(host, spec.host.slot, lifecycle, channels_last=spec.host.channels_last).to(device)


@dataclass(frozen=True)
class TaskData:
    """The loaders of a task on one device.

    The test split is opened on demand: it is for a final report only.
    """

    train: BatchLoader
    validation: BatchLoader
    folder: Path
    _test: tuple[TaskSpec, str, Path | None]

    def test(self) -> BatchLoader:
        """Returns the loader of the test split."""
        task, device, data_dir = self._test
        return _loader(task, "test", device, data_dir)


def load_task_data(task: TaskSpec, device: str | torch.device = "cpu", data_dir: Path | None = None) -> TaskData:
    """Opens a task's data, preparing it first if this machine has not done so before.

    Raises:
        DatasetError: the data set is missing, truncated or altered; the message says where it looked.
    """
    prepared = prepare(_source(task), data_dir)
    return TaskData(
        train=_loader(task, "train", device, data_dir),
        validation=_loader(task, "validation", device, data_dir),
        folder=prepared.folder,
        _test=(task, str(device), data_dir),
    )


def _source(task: TaskSpec):  # type: ignore[no-untyped-def]
    if task.data.source not in SOURCES:
        raise ConfigurationError(unknown_name("data source", task.data.source, SOURCES))
    return SOURCES[task.data.source]


def _loader(task: TaskSpec, split: str, device: str | torch.device, data_dir: Path | None) -> BatchLoader:
    prepared = prepare(_source(task), data_dir)
    limits = {"train": task.data.train_samples, "validation": task.data.validation_samples, "test": None}
    inputs, targets = prepared.split(split, limits[split])
    is_train = split == "train"
    batch_size = task.data.batch_size if is_train else _EVALUATION_BATCH
    return BatchLoader(inputs, targets, batch_size, device, prepared.mean, prepared.std, shuffle=is_train)
