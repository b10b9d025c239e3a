"""APPO over whole episodes: nobody waits for a slow actor."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from ray.actor import ActorHandle
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
)

from esper_ray.orchestration.fleet.dispatch import SeriesTickets
from esper_ray.orchestration.fleet.env_runner import PlayedEpisode
from esper_ray.orchestration.fleet.tickets import Ticket, assign_number
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm, call


class EpisodeAPPOLearner(APPOTorchLearner):
    """V-trace, clipped ratio and target network are RLlib's; updated like PPO's, to the end of the update.

    RLlib's own hands batches to a thread, and answers before they were learned from. Here whoever is in the middle of
    an episode plays on while the learner learns, which takes far less time than an episode; a thread would gain little.
    """

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Updates the policy in this thread; as `Learner.update`."""
        return Learner.update(self, *args, **kwargs)


class EpisodeAPPO(EpisodeAlgorithm):
    """APPO. Every actor plays without pause; an iteration is the next episodes to end, of any actor."""

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds actors and learner."""
        super().setup(config)
        self._series = SeriesTickets(self._ticket, self.runners, self._start_with_own_weights)
        self._collected: list[PlayedEpisode] = []
        self._weights_of: dict[Ticket, Any] = {}

    def _ticket(self, runner: int, number: int) -> Ticket:
        return assign_number(runner, number, self.config.seed, self.config.env_config["host_pool"])

    def _start_with_own_weights(self, actor: ActorHandle, tickets: Sequence[Ticket]) -> Any:
        """Starts tickets on an actor; a repeated ticket is played with the weights of its first attempt."""
        weights = self._weights_of.setdefault(tickets[0], self._weights)
        for ticket in tickets[1:]:
            self._weights_of.setdefault(ticket, weights)
        return call(actor, "play", tickets, self.keep_from, weights)

    def _collect(self) -> list[PlayedEpisode]:
        assert self.dispatcher is not None, "APPO has actors"
        while len(self._collected) < self.episodes_per_iteration:
            episode = self.dispatcher.next_episode(self._series)
            del self._weights_of[episode.ticket]
            self._collected.append(episode)
        collected, self._collected = self._collected, []
        self._series.count(collected)
        return collected

    def training_seeds(self, iterations: int) -> set[int]:
        """Returns every host seed that the first `iterations` iterations can have: any one actor may play them all."""
        most = iterations * self.episodes_per_iteration + 1
        return {self._ticket(runner, n).episode_seed for runner in range(1, self.runners + 1) for n in range(most)}

    @property
    def _trace_decay(self) -> float:
        return 1.0

    def _learn(self, rollouts: Sequence[SingleAgentEpisode]) -> None:
        """Takes whole episodes at a time, as V-trace needs them; the target network follows with the last ones."""
        config = self.config
        size = config.minibatch_size // config.rollout_fragment_length if config.minibatch_size else len(rollouts)
        before, after = self.iteration * config.train_batch_size_per_learner, self._steps_after
        batches = []
        for _ in range(config.num_epochs):
            order = [rollouts[i] for i in torch.randperm(len(rollouts)).tolist()]
            batches += [order[i : i + size] for i in range(0, len(order), size)]
        for number, batch in enumerate(batches, start=1):
            results = self.learner_group.update(
                episodes=copy.deepcopy(batch),  # RLlib lengthens them
                timesteps={
                    NUM_ENV_STEPS_SAMPLED_LIFETIME: after,
                    NUM_ENV_STEPS_TRAINED_LIFETIME: after if number == len(batches) else before,
                },
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)

    @property
    def consumed(self) -> tuple[int, ...]:
        """Number of episodes learned from, per actor's own series."""
        return self._series.consumed

    def _load_consumed(self, consumed: tuple[int, ...]) -> None:
        self._series.resume_from(consumed)
