"""From a task to a model and to loaders."""

from dataclasses import dataclass
from pathlib import Path

import torch

from esper_ray.data import BatchLoader, get_source, prepare
from esper_ray.errors import ConfigurationError
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
    smallest = 2**spec.host.blocks
    if min(spec.input_shape[1:]) < smallest:
        height, width = spec.input_shape[1:]
        raise ConfigurationError(
            f"host.blocks={spec.host.blocks} halves the image {spec.host.blocks} times and needs at least "
            f"{smallest}×{smallest}; {spec.name} has {height}×{width}: use fewer blocks"
        )
    host = CNNHost(spec.input_shape[0], spec.classes, spec.host.base_channels, spec.host.blocks)
    lifecycle = spec.lifecycle.resolved(spec.max_epochs)
    return MorphogeneticModel(host, spec.host.slot, lifecycle, channels_last=spec.host.channels_last).to(device)


@dataclass(frozen=True)
class TaskData:
    """What an episode sees of a data set, on one device. The test split is not part of it, see `load_test_data`."""

    train: BatchLoader
    validation: BatchLoader


def load_task_data(task: TaskSpec, device: str | torch.device = "cpu", data_dir: Path | None = None) -> TaskData:
    """Opens a task's data, preparing it first if this machine has not done so before.

    Raises:
        DatasetError: the data set is missing, truncated or altered; the message says where it looked.
    """
    prepared = prepare(get_source(task.data.source), data_dir)
    train = prepared.split("train", task.data.train_samples)
    validation = prepared.split("validation", task.data.validation_samples)
    return TaskData(
        BatchLoader(*train, task.data.batch_size, device, prepared.mean, prepared.std, shuffle=True),
        BatchLoader(*validation, _EVALUATION_BATCH, device, prepared.mean, prepared.std),
    )


def load_test_data(task: TaskSpec, device: str | torch.device = "cpu", data_dir: Path | None = None) -> BatchLoader:
    """Opens the test split, which is for a final report only: no signal, gate or reward may depend on it.

    Raises:
        DatasetError: as `load_task_data`.
    """
    prepared = prepare(get_source(task.data.source), data_dir)
    return BatchLoader(*prepared.split("test"), _EVALUATION_BATCH, device, prepared.mean, prepared.std)
