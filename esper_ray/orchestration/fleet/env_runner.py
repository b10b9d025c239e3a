"""The actor: an RLlib EnvRunner that plays the episodes of its tickets, several at the same time."""

import copy
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from esper_ray.episode import EpisodeRecord, Policy
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.rollout import play_episodes
from esper_ray.numerics import numeric_settings, play_as_actor
from esper_ray.orchestration.fleet.actor_envs import DECISION_SEED, WORKER_INDEX, ActorEnv, OtherDecisionError
from esper_ray.orchestration.fleet.rllib_seeding import without_deterministic_mode
from esper_ray.orchestration.fleet.tickets import Ticket
from esper_ray.policies.acting import median_action
from esper_ray.process import process_memory
from esper_ray.seeding import seeded


@dataclass(frozen=True)
class WorkerInfo:
    """Placement, speed and memory of an actor.

    Attributes:
        runner: index, from 1; 0: this process.
        node: name of its machine.
        node_id: of the machine in Ray.
        device: where its hosts live.
        hosts: that it trains at the same time.
        epoch_seconds: wall time of an epoch of all of them, while the other actors work as well; of large hosts where
            hosts differ.
        memory: bytes; of what it has in common with other processes a share, where the system says so.
        numerics: what decides the last digits of its numbers, see `numeric_settings`.
    """

    runner: int
    node: str
    node_id: str
    device: str
    hosts: int
    epoch_seconds: float
    memory: int
    numerics: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Versioned policy weights for an actor.

    Attributes:
        version: tells them from earlier ones.
        state: of an EnvRunner.
    """

    version: int
    state: dict[str, Any]


@dataclass(frozen=True)
class PlayedEpisode:
    """The result of a ticket: rollout, record and weights, or a failure.

    Attributes:
        rollout: observations, actions, rewards for the learner; None for a scripted policy.
        record: the episode's record; None if it failed.
        weights: those of what the episode kept, if it was good enough.
        metrics: RLlib's own metrics of the actor.
        failure: the traceback if the episode raised.
        process: that raised it, see `EpisodeRunner.process`.
    """

    ticket: Ticket
    rollout: SingleAgentEpisode | None = None
    record: EpisodeRecord | None = None
    weights: dict[str, torch.Tensor] | None = None
    metrics: dict[str, Any] | None = None
    failure: str | None = None
    process: str | None = None


_STILL_WAITING = "still_waiting"


class ChosenActions(ConnectorV2):
    """Chooses the action of each environment, whatever the others do.

    With exploration it is sampled with the seed that the last `info` holds, without it by `median_action`, whose
    `still_waiting` is kept in the episode.
    """

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: Any, explore: bool | None = None, **kwargs: Any
    ) -> Any:
        """Adds actions and the logarithm of their probability to the batch."""
        kind = rl_module.get_exploration_action_dist_cls()
        rows = batch[Columns.ACTION_DIST_INPUTS].split(1)
        actions, logarithms = [], []
        for episode, row in zip(episodes, rows, strict=True):
            distribution = kind.from_logits(row)
            action = _sampled(distribution, episode) if explore else _median(row, episode)
            actions.append(action)
            logarithms.append(distribution.logp(action))
        batch[Columns.ACTIONS], batch[Columns.ACTION_LOGP] = torch.cat(actions), torch.cat(logarithms)
        return batch


def _sampled(distribution: Any, episode: SingleAgentEpisode) -> torch.Tensor:
    info = episode.get_infos(-1) if episode.is_reset else {}  # RLlib puts an empty one where one has ended
    with seeded(int(info.get(DECISION_SEED, 0))):
        action: torch.Tensor = distribution.sample()
    return action


def _median(logits: torch.Tensor, episode: SingleAgentEpisode) -> torch.Tensor:
    probabilities = logits.softmax(-1).flatten().tolist()
    action, left = median_action(probabilities, episode.custom_data.get(_STILL_WAITING, 1.0))
    episode.custom_data[_STILL_WAITING] = left
    return torch.full(logits.shape[:-1], action)


class EpisodeRunner(SingleAgentEnvRunner):
    """An EnvRunner that plays whole episodes, several at the same time. A failure is returned, never hidden."""

    def __init__(self, **settings: Any) -> None:
        play_as_actor(max(1, int(settings["config"].num_cpus_per_env_runner)))
        without_deterministic_mode()
        super().__init__(**settings)
        self._module_to_env.insert_before(GetActions, ChosenActions())

    def make_env(self) -> None:
        """Makes the environments. RLlib forgets the worker index where it makes several at once."""
        self.config: AlgorithmConfig = self.config.copy(copy_frozen=False)
        self.config.env_config = {**self.config.env_config, WORKER_INDEX: self.worker_index}
        super().make_env()

    def process(self) -> str:
        """Returns an id of this process, which differs from that of its replacement."""
        return str(ray.get_runtime_context().get_worker_id())

    def action_names(self) -> tuple[str, ...]:
        """Returns the names of the actions on this actor's device."""
        return self._hosts()[0].action_table.names

    def worker_info(self) -> WorkerInfo:
        """Says where this actor sits, trains its hosts for two epochs and times the second."""
        envs = self._envs()
        seconds = envs.time_epoch()
        node_id, device = ray.get_runtime_context().get_node_id(), str(envs.envs[0].device)
        return WorkerInfo(
            self.worker_index,
            socket.gethostname(),
            node_id,
            device,
            envs.num_envs,
            seconds,
            process_memory(),
            numeric_settings(),
        )

    def play(self, tickets: Sequence[Ticket], keep_from: float, weights: Weights) -> list[PlayedEpisode]:
        """Plays episodes at the same time, sampling the actions.

        Args:
            tickets: which episodes, at most as many as the actor has hosts.
            keep_from: return what was grown if its kept validation accuracy is at least this, percent.
            weights: of the policy, for the whole episodes. Whatever a restarted actor has, it plays with these.
        """
        try:
            if getattr(self, "_weights_version", None) != weights.version:
                self.set_state(weights.state)
                self._weights_version = weights.version
            return self._retry_stale(tickets, lambda chosen: self._sampled(chosen, keep_from))
        except Exception:
            return self._failed(tickets, traceback.format_exc())

    def _sampled(self, tickets: Sequence[Ticket], keep_from: float) -> list[PlayedEpisode | Exception]:
        self._assign_tickets(tickets)
        rollouts = {rollout.infos[-1]["place"]: rollout for rollout in self.sample(num_episodes=len(tickets))}
        played: list[PlayedEpisode | Exception] = []
        metrics = self.get_metrics()
        for place, ticket in enumerate(tickets):
            last = rollouts[place].infos[-1]
            if "failure" in last:
                played.append(last["failure"])
                continue
            record = last.pop("record")
            weights = self._weights(place, record, keep_from)
            played.append(PlayedEpisode(ticket, rollouts[place], record, weights, metrics))
            metrics = None  # of all of them, so only once
        return played

    def play_scripted(
        self, tickets: Sequence[Ticket], policy: Policy, keep_from: float, measure_test: bool
    ) -> list[PlayedEpisode]:
        """Plays episodes at the same time with a policy that does not learn, epoch by epoch.

        Args:
            tickets: which episodes, at most as many as the actor has hosts.
            policy: decides, a copy of it for each episode.
            keep_from: as in `play`.
            measure_test: measure the test accuracy of what is kept, for a final report.
        """
        envs = self._envs()

        def play(chosen: Sequence[Ticket]) -> list[PlayedEpisode | Exception]:
            self._assign_tickets(chosen)
            agents = [copy.deepcopy(policy) for _ in chosen]
            found = play_episodes(envs, agents, [ticket.decision_seed for ticket in chosen])
            played: list[PlayedEpisode | Exception] = []
            for place, (ticket, record) in enumerate(zip(chosen, found, strict=True)):
                if isinstance(record, Exception):
                    played.append(record)
                    continue
                if measure_test:
                    record.kept_test_accuracy = self._hosts()[place].measure_test()
                played.append(PlayedEpisode(ticket, record=record, weights=self._weights(place, record, keep_from)))
            return played

        skips = [env.skip_forced_waits for env in self._hosts()]
        try:
            for env in self._hosts():
                env.skip_forced_waits = False
            return self._retry_stale(tickets, play)
        except Exception:
            return self._failed(tickets, traceback.format_exc())
        finally:
            for env, skip in zip(self._hosts(), skips, strict=True):
                env.skip_forced_waits = skip

    def _assign_tickets(self, tickets: Sequence[Ticket]) -> None:
        envs = self._envs()
        envs.playing = len(tickets)
        for env, ticket in zip(self._hosts(), tickets, strict=False):
            env.ticket = ticket

    def _retry_stale(
        self, tickets: Sequence[Ticket], play: Callable[[Sequence[Ticket]], list[PlayedEpisode | Exception]]
    ) -> list[PlayedEpisode]:
        """Plays episodes; those that were saved by another policy are played again from their first epoch."""
        found = dict(zip(tickets, play(tickets), strict=True))
        begun = [ticket for ticket, episode in found.items() if isinstance(episode, OtherDecisionError)]
        if begun:
            for env in self._hosts():
                if env.ticket in begun:
                    env.start_over()
            found |= dict(zip(begun, play(begun), strict=True))
        played = []
        for ticket, episode in found.items():
            if isinstance(episode, Exception):
                played += self._failed([ticket], "".join(traceback.format_exception(episode)))
            else:
                played.append(episode)
        return played

    def _failed(self, tickets: Sequence[Ticket], why: str) -> list[PlayedEpisode]:
        return [PlayedEpisode(ticket, failure=why, process=self.process()) for ticket in tickets]

    def _weights(self, place: int, record: EpisodeRecord, keep_from: float) -> dict[str, torch.Tensor] | None:
        kept = record.kept_val_accuracy >= keep_from
        return self._hosts()[place].run.model.kept_weights() if kept else None

    def _envs(self) -> LockstepEnvs:
        return cast(LockstepEnvs, self.env.unwrapped)

    def _hosts(self) -> tuple[ActorEnv, ...]:
        return cast("tuple[ActorEnv, ...]", self._envs().envs)
