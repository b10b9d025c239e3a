"""The structure of a policy network, and its weights on disk."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper_ray.errors import CheckpointError
from esper_ray.orchestration.learner.rl_module import MaskedPPOTorchRLModule

_SPEC = "network.json"
_WEIGHTS = "policy.safetensors"
POLICY_FILES = (_SPEC, _WEIGHTS)
"""Files of a checkpoint that decisions follow from."""


class NetworkSpec(BaseModel):
    """A policy network, as plain values.

    Attributes:
        kind: "mlp", or "lstm": the same with a recurrent layer behind it.
        hidden: widths of the tanh layers; policy and value function have networks of their own.
        lstm_width: width of the recurrent layer.
        observations: values that it sees.
        actions: actions that it chooses from.
        steps: longest episode, steps; a recurrent network is trained on whole episodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp", "lstm"]
    hidden: tuple[PositiveInt, ...]
    lstm_width: PositiveInt
    observations: PositiveInt
    actions: PositiveInt
    steps: PositiveInt

    @classmethod
    def of(cls, module: RLModule, steps: int) -> "NetworkSpec":
        """Returns the specification of a network."""
        config = module.model_config
        values = config if isinstance(config, dict) else asdict(config)
        return cls(
            kind="lstm" if values["use_lstm"] else "mlp",
            hidden=tuple(values["fcnet_hiddens"]),
            lstm_width=values["lstm_cell_size"],
            observations=module.observation_space["observations"].shape[0],
            actions=int(module.action_space.n),
            steps=steps,
        )

    def build(self) -> RLModule:
        """Returns the network with initial weights."""
        observation_space = gym.spaces.Dict(
            {
                "observations": gym.spaces.Box(-np.inf, np.inf, (self.observations,), np.float32),
                "action_mask": gym.spaces.MultiBinary(self.actions),
            }
        )
        return MaskedPPOTorchRLModule(
            observation_space=observation_space,
            action_space=gym.spaces.Discrete(self.actions),
            model_config=rllib_model_config(self.kind, self.hidden, self.lstm_width, self.steps),
        )


def rllib_model_config(
    kind: Literal["mlp", "lstm"], hidden: Sequence[int], lstm_width: int, steps: int
) -> DefaultModelConfig:
    """Returns a network in RLlib's words; arguments as the attributes of `NetworkSpec`."""
    return DefaultModelConfig(
        fcnet_hiddens=list(hidden),
        fcnet_activation="tanh",
        vf_share_layers=False,
        use_lstm=kind == "lstm",
        lstm_cell_size=lstm_width,
        max_seq_len=steps + 1,  # RLlib adds a step, at which it takes the last value
    )


def write_policy(folder: Path, spec: NetworkSpec, weights: dict[str, Tensor]) -> None:
    """Writes a policy network into a folder: plain numbers, nothing of which is executed when they are read."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)
    (folder / _SPEC).write_text(spec.model_dump_json(indent=2) + "\n")


def read_policy(folder: Path) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Returns a policy network of `write_policy`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        spec = NetworkSpec.model_validate_json((folder / _SPEC).read_text())
        return spec, read_tensors(folder / _WEIGHTS)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError.damaged(folder, error) from None


def load_policy(folder: Path) -> RLModule:
    """Returns the policy network of a checkpoint folder, ready to act.

    Raises:
        CheckpointError: it is missing, damaged, or its weights do not fit what it says of itself.
    """
    spec, weights = read_policy(folder)
    widths = {spec.observations, spec.actions, *spec.hidden, *([spec.lstm_width] if spec.kind == "lstm" else [])}
    if not widths <= {size for tensor in weights.values() for size in tensor.shape}:  # before they take memory
        raise CheckpointError(f"the weights in {folder} are another network's: not of the widths {sorted(widths)}")
    module = spec.build()
    load_weights(module, weights, folder)
    return module


def load_weights(module: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Gives a network weights out of `folder`.

    Raises:
        CheckpointError: they are another network's.
    """
    try:
        module.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"the weights in {folder} are another network's: {reason}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads a safetensors file of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged, or a value is no number, as after an update that diverged.
    """
    try:
        tensors = load_file(file)
    except Exception as error:  # the library raises its own type
        raise CheckpointError.damaged(file.parent, f"{file.name}: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError.damaged(file.parent, f"{file.name}: {name} holds values that are no numbers")
    return tensors


def initial_state(module: RLModule, episodes: int) -> Any:
    """Returns the initial state of a recurrent network for `episodes` episodes, each tensor (episodes, width)."""
    device = next(iter(module.parameters())).device

    def repeated(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: repeated(inner) for name, inner in value.items()}
        tensor = torch.as_tensor(value, dtype=torch.float32, device=device)
        return tensor[None].repeat(episodes, *[1] * tensor.dim())

    return repeated(module.get_initial_state())
