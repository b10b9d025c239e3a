"""Writing a grown host: weights, topology, and the code that runs it with torch alone."""

import json
import runpy
import shutil
import textwrap
import uuid
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.errors import EsperError, LifecycleError
from esper_ray.export.program import DeployedModel, Program, trace
from esper_ray.models import MorphogeneticModel
from esper_ray.tasks import PreparedData, TaskSpec, load_task_data, load_test_data

WEIGHTS = "weights.safetensors"
TOPOLOGY = "topology.json"
MODEL = "model.py"
_FORMAT = 1

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class Exportable(Protocol):
    """A seed whose own operations cannot be traced, with a traceable equivalent of the same weights."""

    def exportable(self) -> nn.Module:
        """Returns the traceable equivalent."""


def export_model(
    model: MorphogeneticModel,
    task: TaskSpec,
    prepared: PreparedData,
    data_dir: Path | None,
    folder: Path,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Writes the kept network into `folder`, and measures the written copy on the validation and test split.

    Args:
        model: with an empty slot or a fossilized seed, on the CPU. A live seed is refused rather than dropped: the
            accuracy of record is that without it, and whoever holds the model can still choose (`advance_stage`,
            `cull_seed`).
        task: the task that it was trained on.
        prepared: the task's data.
        data_dir: folder of the data set, where the source needs one.
        folder: made here; written under another name and renamed.
        origin: where the host comes from, for topology.json.

    Returns:
        the content of topology.json.

    Raises:
        ConfigurationError: `torch.export` cannot trace the model.
        LifecycleError: the seed is live, not FOSSILIZED.
        EsperError: the written network does not compute what the model does.
        DatasetError: the test split cannot be read.
    """
    if model.has_active_seed:
        raise LifecycleError(
            f"the seed {_grown(model)} is {model.seed_slot.stage.name}, and only a FOSSILIZED one is kept: fossilize "
            "it, or remove it with cull_seed()"
        )
    if isinstance(model.seed_slot.seed, Exportable):
        model.seed_slot.seed = model.seed_slot.seed.exportable()
    deployed = DeployedModel(model, prepared, len(task.input_shape)).eval()
    first = next(iter(_stored_batches(task, prepared, data_dir, "test")))[0]
    program = trace(deployed, torch.cat([first[:1], first[:1]]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".writing-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        (temporary / WEIGHTS).write_bytes(save(program.tensors))  # `save_file` would let nobody else read it
        (temporary / MODEL).write_text(_model_source(program, model, task, first))
        written = runpy.run_path(str(temporary / MODEL))["load"](temporary)
        with torch.inference_mode():
            if not torch.equal(written(first), deployed(first)):
                raise EsperError(f"the exported {task.name} host does not compute what the grown one does; report this")
        topology = _topology(program, model, task, first, origin)
        for split in ("validation", "test"):
            topology[split] = measure(written, _stored_batches(task, prepared, data_dir, split))
        (temporary / TOPOLOGY).write_text(json.dumps(topology, indent=2) + "\n")
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return topology


@torch.inference_mode()
def measure(network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Returns accuracy (percent), mean loss (nats) and the number of predictions over all batches."""
    loss, correct, count = 0.0, 0, 0
    for inputs, targets in batches:
        logits, targets = network(inputs).flatten(0, -2), targets.flatten()
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == targets).sum())
        count += len(targets)
    return {"accuracy": 100.0 * correct / count, "loss": loss / count, "predictions": count}


def _stored_batches(task: TaskSpec, prepared: PreparedData, data_dir: Path | None, split: str) -> Iterator[Batch]:
    """Yields the validation split, as far as episodes used it, or the test split, as it is stored."""
    if task.task_type == "lm":
        is_test = split == "test"
        yield from (
            load_test_data(task, "cpu", data_dir) if is_test else load_task_data(task, "cpu", data_dir).validation
        )
        return
    inputs, targets = prepared.split(split, None if split == "test" else task.data.validation_samples)
    size = task.data.evaluation_batch_size
    yield from zip(inputs.split(size), targets.split(size), strict=True)


def _model_source(program: Program, model: MorphogeneticModel, task: TaskSpec, first: Tensor) -> str:
    grown = _grown(model) or "nothing"
    names = json.dumps(program.weights, indent=4)
    template = (files("esper_ray.export") / "template.py.txt").read_text()
    return template.format(
        title=f"A {type(model.host).__name__} that learned {task.name} and grew {grown} at {model.slot_id}.",
        description_file=TOPOLOGY,
        weights_file=WEIGHTS,
        inputs=_shape_in_words(first),
        outputs="logits (N, T, tokens)" if task.task_type == "lm" else "logits (N, classes)",
        names=names,
        trainable=json.dumps(program.trainable, indent=4),
        memory_format="channels_last" if task.host.channels_last else "contiguous_format",
        forward=textwrap.indent(program.forward, "    "),
    )


def _grown(model: MorphogeneticModel) -> str | None:
    """Returns the blueprint of the fossilized seed; None without one, be it that a seed was culled."""
    return model.seed_state.blueprint_id if model.seed_state and model.seed_slot.seed is not None else None


def _topology(
    program: Program, model: MorphogeneticModel, task: TaskSpec, first: Tensor, origin: dict[str, Any]
) -> dict[str, Any]:
    grown = _grown(model)
    return {
        "format": _FORMAT,
        "origin": origin,
        "task": {
            "name": task.name,
            "type": task.task_type,
            "classes": task.classes,
            "data": task.data.model_dump(mode="json"),
        },
        "host": {
            "class": type(model.host).__name__,
            **task.host.model_dump(mode="json"),
            "parameters": sum(parameter.numel() for parameter in model.get_host_parameters()),
            "injection_points": model.host.injection_points,
        },
        "slot": {"injection_point": model.slot_id, "width": model.seed_slot.width},
        "seed": {"blueprint": grown, "parameters": model.active_seed_params} if grown else None,
        "input": {"shape": [None, *first.shape[1:]], "dtype": str(first.dtype).removeprefix("torch.")},
        "weights": {name: list(tensor.shape) for name, tensor in program.tensors.items()},
    }


def _shape_in_words(first: Tensor) -> str:
    return f"({', '.join(['N', *map(str, first.shape[1:])])}) {str(first.dtype).removeprefix('torch.')}"
