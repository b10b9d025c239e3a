"""Construction of a task's model and loaders."""

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from esper_ray.data import (
    SPLIT_NAMES,
    BatchLoader,
    CropAndFlip,
    PreparedData,
    SampleLoader,
    TokenLoader,
    find_gpt2_tokenizer,
    get_source,
    prepare,
)
from esper_ray.errors import ConfigurationError, DatasetError, unknown_name
from esper_ray.models import MorphogeneticModel, build_host, registered_blueprints
from esper_ray.models.blueprints import asks_for_causality
from esper_ray.models.hosts import host_factory
from esper_ray.models.probes import is_causal
from esper_ray.seeding import Stream, derive_seed, forked_generators, seeded
from esper_ray.tasks.registry import get_task_spec
from esper_ray.tasks.settings import DataSettings, HostSettings
from esper_ray.tasks.spec import TaskSpec
from esper_ray.tasks.variety import every_host

_AUGMENTATIONS = {"none": None, "crop_and_flip": CropAndFlip()}


def create_model(task: TaskSpec | str, device: str | torch.device = "cpu") -> MorphogeneticModel:
    """Builds a task's host with an empty slot, initialised from torch's global random state. Loads no data.

    Raises:
        ConfigurationError: the task is unknown, or its host does not fit it or has no such injection point.
    """
    spec = get_task_spec(task) if isinstance(task, str) else task
    host = build_host(spec.host.kind, spec.input_shape, spec.classes, spec.host.options)
    lifecycle = spec.lifecycle.resolved(spec.max_epochs)
    model = MorphogeneticModel(host, spec.host.slot, lifecycle, channels_last=spec.host.channels_last)
    if spec.task_type == "lm" or asks_for_causality(model.seed_slot.topology):
        structure = spec.host.model_dump_json(), spec.input_shape, spec.classes
        model.seed_slot.causal = _is_causal(host_factory(spec.host.kind), *structure, spec.task_type == "lm")
    return model.to(device)


@lru_cache
def _is_causal(_factory: object, settings: str, input_shape: tuple[int, ...], classes: int, is_text: bool) -> bool:
    """Builds such a host once, only to try it out; a kind of host may be defined anew under its name."""
    host = HostSettings.model_validate_json(settings)
    with seeded(0):
        built = build_host(host.kind, input_shape, classes, host.options)
    return is_causal(built, input_shape, classes if is_text else None)


def require_sound(task: TaskSpec, inputs: Tensor | None = None) -> None:
    """Tries out every host of the task and every blueprint that it could grow, on the CPU.

    Args:
        inputs: samples (N, …) as its loaders yield them; unset: one made-up sample, of tokens or floating-point values.

    Raises:
        ConfigurationError, LifecycleError: as `MorphogeneticModel.require_sound`; or `decisions.blueprints` names an
            unknown one.
    """
    is_text = task.task_type == "lm"
    if inputs is None:
        inputs = torch.zeros(1, *task.input_shape, dtype=torch.long if is_text else torch.float32)
    outputs = (1, *task.input_shape, task.classes) if is_text else (1, task.classes)
    with forked_generators():
        known = registered_blueprints(create_model(task).seed_slot.topology)
        for name in task.decisions.blueprints or ():
            if name not in known:
                raise ConfigurationError(f"decisions.blueprints: {unknown_name('blueprint', name, known)}")
        for drawn in every_host(task):
            create_model(drawn).require_sound(inputs[:1], outputs)


def with_tokenizer(task: TaskSpec, data_dir: Path | None = None) -> TaskSpec:
    """Returns the task with the tokenizer "auto" replaced by GPT-2's if this machine has it, else by bytes."""
    if task.data.tokenizer != "auto":
        return task
    found = find_gpt2_tokenizer(data_dir, task.data.hub)
    data = task.data.model_copy(update={"tokenizer": "gpt2" if found else "bytes"})
    return TaskSpec.model_validate({**dict(task), "data": data})


@dataclass(frozen=True)
class TaskData:
    """Training and validation data of an episode, on one device. The test split is apart, see `load_test_data`."""

    train: BatchLoader
    validation: BatchLoader

    def of_another_host(self) -> "TaskData":
        """Returns loaders of the same tensors that may be iterated, in another order, at the same time as these."""
        return TaskData(copy.copy(self.train), copy.copy(self.validation))

    def of_host(self, task: TaskSpec, host_seed: int) -> "TaskData":
        """Returns the data for the host of a seed: its share of the training samples, with its wrong labels."""
        share, noise = task.data.train_share, task.data.label_noise
        if share == 1.0 and noise == 0.0:
            return self
        seed = derive_seed(host_seed, Stream.DATA_DRAW)
        return TaskData(self.train.part(share, noise, task.classes, seed), self.validation)


def load_task_data(task: TaskSpec, device: str | torch.device = "cpu", data_dir: Path | None = None) -> TaskData:
    """Opens a task's data, preparing it first if this machine has not done so before.

    Raises:
        DatasetError: the data set is missing, truncated or altered (the message says where it looked), or does not fit
            the task: other shapes, more classes, too little text for one sequence.
    """
    prepared = prepare_data(task, data_dir)
    return TaskData(_loader(task, prepared, "train", device), _loader(task, prepared, "validation", device))


def load_test_data(task: TaskSpec, device: str | torch.device = "cpu", data_dir: Path | None = None) -> BatchLoader:
    """Opens the test split, which is for a final report only: no signal, gate or reward may depend on it.

    Raises:
        DatasetError: as `load_task_data`.
    """
    return _loader(task, prepare_data(task, data_dir), "test", device)


def prepare_data(task: TaskSpec, data_dir: Path | None = None) -> PreparedData:
    """Prepares and opens a task's data set, and checks that it fits the task.

    Raises:
        DatasetError: as `load_task_data`.
        ConfigurationError: the source is of another kind than the task, or `data.mean` does not fit its channels.
    """
    source = get_source(task.data.source)
    if (source.kind == "text") != (task.task_type == "lm"):
        raise ConfigurationError(
            f"task {task.name} is of type {task.task_type}, but its data source {source.name} holds {source.kind}: a "
            "text needs task_type='lm', samples need 'classification'"
        )
    tokenizer = "bytes" if task.data.tokenizer == "auto" else task.data.tokenizer
    prepared = prepare(source, data_dir, hub=task.data.hub, tokenizer=tokenizer)
    if prepared.classes > task.classes:
        raise DatasetError(
            f"labels of {source.name} run up to {prepared.classes - 1}, out of range for the {task.classes} classes of "
            f"task {task.name}: mend the labels, or give the task {prepared.classes} classes"
        )
    for split in SPLIT_NAMES:
        _require_fits(task, prepared, split)
    return _standardised(task.data, prepared)


def _standardised(settings: DataSettings, prepared: PreparedData) -> PreparedData:
    """Returns the prepared data with the mean and deviation that the task's settings say."""
    if not settings.standardise:
        return replace(prepared, mean=(), std=())
    if settings.mean is None or settings.deviation is None:
        return prepared
    channels = prepared.split("train")[0].shape[1]
    for name, values in {"mean": settings.mean, "deviation": settings.deviation}.items():
        if len(values) not in (1, channels):
            raise ConfigurationError(
                f"data.{name} has {len(values)} values, but samples of {settings.source} have {channels} channels: "
                "give one for each, or one for all"
            )
    mean, deviation = (values * (channels // len(values)) for values in (settings.mean, settings.deviation))
    return replace(prepared, mean=mean, std=deviation)


def _require_fits(task: TaskSpec, prepared: PreparedData, split: str) -> None:
    if task.task_type == "lm":
        tokens, (length,) = len(prepared.tokens(split)), task.input_shape
        if tokens <= length:
            raise DatasetError(
                f"the {split} split of {task.data.source} has {tokens} tokens, too few for one sequence of {length} "
                "and its last target: lower data.sequence_length, or give it more text"
            )
        return
    shape = tuple(prepared.split(split)[0].shape[1:])
    if shape != task.input_shape:
        raise DatasetError(
            f"samples of {task.data.source} have shape {shape}, task {task.name} says {task.input_shape}: correct its "
            "input_shape"
        )


def _loader(task: TaskSpec, prepared: PreparedData, split: str, device: str | torch.device) -> BatchLoader:
    settings, training = task.data, split == "train"
    limit = {"train": settings.train_samples, "validation": settings.validation_samples}.get(split)
    batch_size = settings.batch_size if training else settings.evaluation_batch_size
    if task.task_type == "lm":
        (length,) = task.input_shape
        return TokenLoader(prepared.tokens(split), length, batch_size, device, shuffle=training, limit=limit)
    return SampleLoader(
        *prepared.split(split, limit),
        batch_size,
        device,
        prepared.mean,
        prepared.std,
        shuffle=training,
        augmentation=_AUGMENTATIONS[settings.augmentation] if training else None,
    )
