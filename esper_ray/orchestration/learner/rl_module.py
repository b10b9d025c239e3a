"""The policy networks: RLlib's default modules behind an action mask."""

import logging
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from ray.rllib.utils.torch_utils import FLOAT_MIN
from torch import Tensor

# RLlib warns of an argument that it passes to itself, whenever a network is built.
logging.getLogger("ray._common.deprecation").addFilter(lambda record: "RLModule(config=" not in record.getMessage())


class MaskedPPOTorchRLModule(DefaultPPOTorchRLModule):
    """Gives an action that the mask forbids probability 0, in inference, exploration and training.

    The networks see the "observations" part of {"observations", "action_mask"}. The batch is never changed: RLlib
    shares it between the forward pass and the value function.

    It keeps nothing from step to step but a recurrent state. By itself `explore=False` is therefore RLlib's: the
    likeliest action of each step. Actors act by `median_action` then, see `ChosenActions`.
    """

    def __init__(self, *, observation_space: gym.spaces.Dict, **kwargs: Any) -> None:
        super().__init__(observation_space=observation_space["observations"], **kwargs)
        self.observation_space = observation_space

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return _masked(super()._forward(_inner(batch), **kwargs), batch)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return _masked(super()._forward_train(_inner(batch), **kwargs), batch)

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Returns the value of each step, of the batch's shape: (N,) or, for a recurrent network, (B, T)."""
        values: Tensor = super().compute_values(_inner(batch), embeddings)
        return values

    def get_non_inference_attributes(self) -> list[str]:
        """Returns the parts that an actor does not need. A recurrent one needs all: it records the critic's states."""
        return [] if self.is_stateful() else super().get_non_inference_attributes()


class MaskedAPPOTorchRLModule(MaskedPPOTorchRLModule, DefaultAPPOTorchRLModule):
    """The same for APPO, whose target network is masked as well. Actors have no target network."""

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the target network's action distribution."""
        outputs = super().forward_target(_inner(batch))
        return _masked(outputs, batch, TARGET_NETWORK_ACTION_DIST_INPUTS)

    def get_non_inference_attributes(self) -> list[str]:
        """Returns the parts that an actor does not need."""
        targets = ["_old_encoder", "_old_pi"]
        return targets if self.is_stateful() else super().get_non_inference_attributes()


def _inner(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns a shallow copy of the batch in which the observation is the "observations" part."""
    return {**batch, Columns.OBS: batch[Columns.OBS]["observations"]}


def _masked(outputs: dict[str, Any], batch: dict[str, Any], column: str = Columns.ACTION_DIST_INPUTS) -> dict[str, Any]:
    forbidden = batch[Columns.OBS]["action_mask"] == 0
    outputs[column] = outputs[column].masked_fill(forbidden, FLOAT_MIN)
    return outputs
