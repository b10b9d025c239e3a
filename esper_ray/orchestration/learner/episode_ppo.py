"""PPO over whole episodes."""

from collections.abc import Sequence

from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from esper_ray.orchestration.fleet.env_runner import PlayedEpisode
from esper_ray.orchestration.fleet.tickets import Ticket, assign
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm


class EpisodePPO(EpisodeAlgorithm):
    """PPO. Each iteration is a set of tickets, shared out evenly over the actors, and all of them are waited for."""

    def _collect(self) -> list[PlayedEpisode]:
        tickets = self._tickets(self.iteration)
        return sorted(self._play(tickets, self._start_training), key=lambda episode: episode.ticket)

    def training_seeds(self, iterations: int) -> set[int]:
        """Returns the host seeds of the first `iterations` iterations."""
        return {ticket.episode_seed for number in range(iterations) for ticket in self._tickets(number)}

    def _tickets(self, iteration: int) -> list[Ticket]:
        config = self.config
        pool = config.env_config["host_pool"]
        return assign(self.episodes_per_iteration, self.runners, iteration, config.seed, pool)

    @property
    def _trace_decay(self) -> float:
        return float(self.config.lambda_)

    def _learn(self, rollouts: Sequence[SingleAgentEpisode]) -> None:
        results = self.learner_group.update(
            episodes=list(rollouts),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._steps_after},
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
