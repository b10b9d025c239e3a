"""A trained policy from a checkpoint, for one episode at a time."""

from pathlib import Path
from typing import get_args

import torch
from torch.distributions import Categorical
from typing_extensions import Self

from esper_ray.episode.env import Observation
from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.policies.acting import Acting, median_action
from esper_ray.policies.manifest import read_policy_manifest
from esper_ray.policies.network import PolicyNetwork, State, load_policy
from esper_ray.seeding import Stream, derive_seed, seeded


class LearnedPolicy:
    """Acts with a policy network. Sampling, the same episode seed gives the same episode as in an actor.

    Args:
        network: the policy network; a recurrent one keeps its state from step to step.
        actions: names of the actions that it was trained with, in order; an environment with other ones is refused.
        observation: names of the observed values, likewise.
        acting: how its probabilities become an action.

    Raises:
        ConfigurationError: the way of acting is unknown.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        actions: tuple[str, ...],
        observation: tuple[str, ...],
        acting: Acting = "sampled",
    ) -> None:
        if acting not in get_args(Acting):
            raise ConfigurationError(unknown_name("way of acting", acting, get_args(Acting)))
        self._network = network
        self.action_names = actions
        self.observation_names = observation
        self._acting = acting
        self.start_episode(0)

    @classmethod
    def from_checkpoint(cls, checkpoint: Path | str, acting: Acting = "sampled") -> Self:
        """Loads the policy of a checkpoint folder.

        Raises:
            CheckpointError: it is missing, damaged, or was written by another version of this package.
            ConfigurationError: the way of acting is unknown.
        """
        folder = Path(checkpoint)
        manifest = read_policy_manifest(folder)
        return cls(load_policy(folder), manifest.actions, manifest.observation, acting)

    def start_episode(self, episode_seed: int) -> None:
        """Seeds the decisions of the episode and forgets the last one."""
        self._episode_seed = episode_seed
        self._epoch = 0
        self._state: State | None = None
        self._still_waiting = 1.0

    @torch.no_grad()
    def act(self, observation: Observation) -> int:
        """Returns a legal action.

        `run_ppo_episode` first compares the names of actions and observed values with the environment's; your own loop
        can do so with `esper_ray.episode.require_fitting`.

        Raises:
            ConfigurationError: the observation has another size than the policy was trained with.
        """
        found = {name: len(observation[name]) for name in ("observations", "action_mask")}
        spec = self._network.spec
        if found != {"observations": spec.observations, "action_mask": spec.actions}:
            raise ConfigurationError(
                f"the policy expects {spec.observations} observations and {spec.actions} actions, got "
                f"{found['observations']} and {found['action_mask']}: use it with the task that it was trained on"
            )
        rows = (torch.from_numpy(observation[name])[None] for name in ("observations", "action_mask"))
        logits, self._state = self._network(*rows, self._state)
        distribution = Categorical(logits=logits)
        if self._acting == "sampled":
            with seeded(derive_seed(self._episode_seed, Stream.DECISION, self._epoch)):
                action = int(distribution.sample().item())
        elif self._acting == "median":
            action, self._still_waiting = median_action(distribution.probs[0].tolist(), self._still_waiting)
        else:
            action = int(logits.argmax().item())
        self._epoch += 1
        return action
