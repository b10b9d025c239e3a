"""What a learner needs to go on as if nothing had been: on disk as plain numbers, never as a pickle."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from esper_ray.errors import CheckpointError
from esper_ray.orchestration.policy_network import read_tensors

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
    model_config = ConfigDict(extra="forbid")

    iteration: int
    consumed: tuple[int, ...]
    param_groups: list[dict[str, Any]]


def write_learner_state(folder: Path, state: LearnerState) -> None:
    """Writes it into a folder."""
    tensors = {f"target/{name}": tensor for name, tensor in state.target.items()}
    for parameter, values in state.optimizer["state"].items():
        tensors |= {f"optimizer/{parameter}/{name}": tensor for name, tensor in values.items()}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
    groups = [
        {name: value.item() if isinstance(value, Tensor) else value for name, value in group.items()}
        for group in state.optimizer["param_groups"]
    ]
    values = _Values(iteration=state.iteration, consumed=state.consumed, param_groups=groups)
    (folder / _VALUES).write_text(values.model_dump_json(indent=2) + "\n")


def read_learner_state(folder: Path) -> LearnerState:
    """Returns what `write_learner_state` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        values = _Values.model_validate_json((folder / _VALUES).read_text())
    except (OSError, ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} is damaged: {' '.join(str(error).split())}; take another one"
        ) from None
    target: dict[str, Tensor] = {}
    of_parameters: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(folder / _TENSORS).items():
        part, _, rest = name.partition("/")
        if part == "target":
            target[rest] = tensor
        else:
            parameter, _, key = rest.partition("/")
            of_parameters.setdefault(int(parameter), {})[key] = tensor
    optimizer = {"state": of_parameters, "param_groups": values.param_groups}
    return LearnerState(values.iteration, optimizer, target, values.consumed)
