"""The policy network: plain torch, and its weights on disk."""

from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from esper_ray.errors import CheckpointError

_SPEC = "network.json"
_WEIGHTS = "policy.safetensors"
POLICY_FILES = (_SPEC, _WEIGHTS)
"""Files of a checkpoint that decisions follow from."""

State = tuple[Tensor, Tensor]
"""Hidden and cell state of a recurrent network, each (1, episodes, width)."""


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


class PolicyNetwork(nn.Module):
    """Policy and value function for inference. The parameters have the names of RLlib's module, which is trained.

    Args:
        spec: layers and widths.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        encoder = _LSTMEncoder if spec.kind == "lstm" else _MLPEncoder
        self.encoder = nn.ModuleDict({role: encoder(spec) for role in ("actor_encoder", "critic_encoder")})
        width = spec.lstm_width if spec.kind == "lstm" else spec.hidden[-1]
        self.pi, self.vf = _Head(width, spec.actions), _Head(width, 1)

    def forward(
        self, observations: Tensor, action_mask: Tensor, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Returns the logits (N, A) of the actions, and the recurrent state after the step.

        Args:
            observations: (N, F) float32, a step of N episodes.
            action_mask: (N, A), 0 where an action is illegal; it then has probability 0.
            state: recurrent state before the step; None: it is the first one, or the network has none.
        """
        features, state = self.encoder["actor_encoder"](observations, state)
        logits: Tensor = self.pi(features)
        return logits.masked_fill(action_mask == 0, torch.finfo(logits.dtype).min), state


class _Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.mlp(features)
        return output


class _MLPEncoder(nn.Module):
    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([spec.observations, *spec.hidden]):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.net = _Net(*layers)

    def forward(self, observations: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        return self.net(observations), state


class _LSTMEncoder(nn.Module):
    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.tokenizer = _MLPEncoder(spec)
        self.lstm = nn.LSTM(spec.hidden[-1], spec.lstm_width, batch_first=True)

    def forward(self, observations: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        features, _ = self.tokenizer(observations, None)
        outputs, state = self.lstm(features[:, None], state)
        return outputs[:, 0], state


class _Head(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = _Net(nn.Linear(inputs, outputs))
        self.register_buffer("log_std_clip_param_const", torch.zeros(1))  # RLlib's, unused by discrete actions

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.net(features)
        return output


def write_policy(folder: Path, spec: NetworkSpec, weights: dict[str, Tensor]) -> None:
    """Writes a policy network into a folder: plain numbers, nothing of which is executed when they are read."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    (folder / _WEIGHTS).write_bytes(save(stored))  # `save_file` would let nobody else read it
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


def load_policy(folder: Path) -> PolicyNetwork:
    """Returns the policy network of a checkpoint folder, ready to act.

    Raises:
        CheckpointError: it is missing, damaged, or its weights do not have the widths that its specification names.
    """
    spec, weights = read_policy(folder)
    widths = {spec.observations, spec.actions, *spec.hidden, *([spec.lstm_width] if spec.kind == "lstm" else [])}
    if not widths <= {size for tensor in weights.values() for size in tensor.shape}:  # before they take memory
        raise CheckpointError(f"the weights in {folder} are another network's: not of the widths {sorted(widths)}")
    network = PolicyNetwork(spec)
    load_weights(network, weights, folder)
    return network


def load_weights(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Gives a network the weights read from `folder`.

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
