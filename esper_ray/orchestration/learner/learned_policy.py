"""A trained policy out of a checkpoint, for one episode at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from esper_ray.episode.env import Observation
from esper_ray.orchestration.learner.policy_network import initial_state, load_policy
from esper_ray.seeding import Stream, derive_seed, seeded


class LearnedPolicy:
    """Acts as the policy network says. Samples as an actor does: the same episode seed gives the same episode.

    Args:
        module: the policy network; a recurrent one keeps its state from step to step.
        greedy: take the likeliest action instead of sampling.
    """

    def __init__(self, module: RLModule, greedy: bool = False) -> None:
        self._module = module
        self._greedy = greedy
        self._recurrent = bool(module.is_stateful())
        self.start_episode(0)

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, greedy: bool = False) -> "LearnedPolicy":
        """Loads the policy of a checkpoint folder.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return cls(load_policy(checkpoint), greedy)

    def start_episode(self, episode_seed: int) -> None:
        """Seeds the decisions of the episode."""
        self._episode_seed = episode_seed
        self._epoch = 0
        self._state: Any = initial_state(self._module, 1) if self._recurrent else None

    @torch.no_grad()
    def act(self, observation: Observation) -> int:
        """Returns a legal action."""
        index: Any = (np.newaxis, np.newaxis) if self._recurrent else np.newaxis  # batch, and time for a recurrent one
        batch: dict[str, Any] = {
            Columns.OBS: {name: torch.from_numpy(value[index]) for name, value in observation.items()}
        }
        if self._recurrent:
            batch[Columns.STATE_IN] = self._state
        outputs = self._module.forward_exploration(batch)
        self._state = outputs.get(Columns.STATE_OUT)
        logits = outputs[Columns.ACTION_DIST_INPUTS].reshape(1, -1)
        distribution = self._module.get_exploration_action_dist_cls().from_logits(logits)
        if self._greedy:
            return int(distribution.to_deterministic().sample().item())
        with seeded(derive_seed(self._episode_seed, Stream.DECISION, self._epoch)):
            action = int(distribution.sample().item())
        self._epoch += 1
        return action
