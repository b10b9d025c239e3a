"""The learner's state for exact resumption, on disk as plain numbers, never as a pickle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from esper_ray.errors import CheckpointError
from esper_ray.policies.network import read_tensors

_TENSORS = "learner.safetensors"
_VALUES = "learner.json"


@dataclass(frozen=True)
class LearnerState:
    """A learner between two updates. The random state follows from seed and iteration.

    Attributes:
        iteration: updates so far.
        optimizer: the state dictionary of its torch optimizer.
        target: weights of APPO's target network by name; empty for PPO.
        consumed: for each runner, episodes of its own series that the learner has had; empty for PPO, where they follow
            from the iteration.
    """

    iteration: int
    optimizer: dict[str, Any]
    target: dict[str, Tensor] = field(default_factory=dict)
    consumed: tuple[int, ...] = ()


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    iteration: int = Field(ge=0)
    consumed: tuple[Annotated[int, Field(ge=0)], ...]
    param_groups: list[dict[str, Any]]


def write_learner_state(folder: Path, state: LearnerState) -> None:
    """Writes it into a folder."""
    tensors = {f"target/{name}": tensor for name, tensor in state.target.items()}
    for parameter, values in state.optimizer["state"].items():
        tensors |= {f"optimizer/{parameter}/{name}": tensor for name, tensor in values.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (folder / _TENSORS).write_bytes(save(stored))  # `save_file` would let nobody else read it
    groups = [
        {name: value.item() if isinstance(value, Tensor) else value for name, value in group.items()}
        for group in state.optimizer["param_groups"]
    ]
    values = _Values(iteration=state.iteration, consumed=state.consumed, param_groups=groups)
    (folder / _VALUES).write_text(values.model_dump_json(indent=2) + "\n")


def read_learner_state(folder: Path) -> LearnerState:
    """Reads the state that `write_learner_state` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        values = _Values.model_validate_json((folder / _VALUES).read_text())
    except (OSError, ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError.damaged(folder, f"{_VALUES}: {error}") from None
    target: dict[str, Tensor] = {}
    of_parameters: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(folder / _TENSORS).items():
        part, _, rest = name.partition("/")
        parameter, _, key = rest.partition("/")
        if part == "target":
            target[rest] = tensor
        elif part == "optimizer" and parameter.isdecimal() and key:
            of_parameters.setdefault(int(parameter), {})[key] = tensor
        else:
            raise CheckpointError.damaged(folder, f"{_TENSORS} holds {name}, which is no part of a learner")
    optimizer = {"state": of_parameters, "param_groups": values.param_groups}
    return LearnerState(values.iteration, optimizer, target, values.consumed)


def require_fitting_optimizer(state: LearnerState, optimizer: Optimizer, folder: Path) -> None:
    """Refuses the optimizer's state of a checkpoint in `folder` that is not of such an optimizer.

    torch takes it as it is. The learning rate alone may be another one: it follows a schedule.

    Raises:
        CheckpointError: it says what differs.
    """
    groups = optimizer.state_dict()["param_groups"]
    for name, then, now in _settings(state.optimizer["param_groups"], groups):
        if then != now and not (name == "lr" and isinstance(then, float) and isfinite(then) and then >= 0):
            raise CheckpointError.damaged(folder, f"{_VALUES}: {name} of the optimizer is {then}, here it is {now}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    there = state.optimizer["state"]
    if there.keys() != (set(range(len(parameters))) if state.iteration else set()):
        raise CheckpointError.damaged(
            folder, f"{_TENSORS} holds the state of {len(there)} of the {len(parameters)} parameters"
        )
    for number, values in there.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
        shape = tuple(parameters[number].shape)
        if shapes != {"step": (), "exp_avg": shape, "exp_avg_sq": shape}:
            raise CheckpointError.damaged(
                folder, f"{_TENSORS} holds {shapes} of parameter {number}, which has shape {shape}"
            )


def _settings(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Returns name, value then and value now of every setting of every group of parameters."""
    if len(then) != len(now):
        return [("number of groups", len(then), len(now))]
    return [
        (name, _plain(old.get(name)), _plain(new.get(name)))
        for old, new in zip(then, now, strict=True)
        for name in sorted({*old, *new})
    ]


def _plain(value: Any) -> Any:
    """Returns a value as it is after a round trip through JSON."""
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value
