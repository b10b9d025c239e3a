"""A trained policy out of a checkpoint, for one episode at a time."""

from pathlib import Path

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from esper_ray.episode.env import Observation
from esper_ray.seeding import Stream, derive_seed, seeded

_MODULE_IN_CHECKPOINT = Path("learner_group", "learner", "rl_module", "default_policy")


class LearnedPolicy:
    """Acts as the policy network says. Samples as an actor does: the same episode seed gives the same episode.

    Args:
        module: the policy network.
        greedy: take the likeliest action instead of sampling.
    """

    def __init__(self, module: RLModule, greedy: bool = False) -> None:
        self._module = module
        self._greedy = greedy
        self._episode_seed = 0
        self._epoch = 0

    @classmethod
    def from_checkpoint(cls, checkpoint: Path, greedy: bool = False) -> "LearnedPolicy":
        """Loads the policy of a checkpoint folder. A checkpoint is a pickle: open only those you trust."""
        return cls(RLModule.from_checkpoint(str((checkpoint / _MODULE_IN_CHECKPOINT).absolute())), greedy)

    def start_episode(self, episode_seed: int) -> None:
        """Seeds the decisions of the episode."""
        self._episode_seed = episode_seed
        self._epoch = 0

    @torch.no_grad()
    def act(self, observation: Observation) -> int:
        """Returns a legal action."""
        batch = {Columns.OBS: {name: torch.from_numpy(value)[None] for name, value in observation.items()}}
        logits = self._module.forward_exploration(batch)[Columns.ACTION_DIST_INPUTS]
        distribution = self._module.get_exploration_action_dist_cls().from_logits(logits)
        if self._greedy:
            return int(distribution.to_deterministic().sample().item())
        with seeded(derive_seed(self._episode_seed, Stream.DECISION, self._epoch)):
            action = int(distribution.sample().item())
        self._epoch += 1
        return action
