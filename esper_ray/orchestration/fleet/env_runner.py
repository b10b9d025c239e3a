"""The actor: owns one host and its slot, and plays the episodes it is told to."""

import copy
import socket
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import psutil
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from typing_extensions import Self

from esper_ray.episode import EpisodeRecord, MorphogenesisEnv, Policy
from esper_ray.episode.env import Observation, StepResult
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.rollout import play_episodes
from esper_ray.lean_torch import without_compiler
from esper_ray.orchestration.fleet.host_checkpoint import EpisodeSoFar, HostCheckpoints
from esper_ray.orchestration.fleet.placement import assigned_device
from esper_ray.orchestration.fleet.progress import ProgressReporter
from esper_ray.orchestration.fleet.rllib_seeding import without_deterministic_mode
from esper_ray.orchestration.fleet.tickets import Ticket
from esper_ray.plugins import load_plugins
from esper_ray.seeding import Stream, derive_seed, seeded
from esper_ray.tasks import TaskSpec
from esper_ray.training import Steps

DECISION_SEED = "decision_seed"
_WORKER_INDEX, _HOST, _DATA = "worker_index", "host", "data"


@dataclass(frozen=True)
class ActorSettings:
    """What an actor is told about its environment.

    Attributes:
        data_dir: folder of the data set on the actors' machines.
        board: name of the progress board actor, or None.
        plugins: modules to import first.
        host_pool: the host seeds are drawn from this many, so beginnings are shared; None: each episode has its own.
        skip_forced_waits: leave steps without a choice out of the trajectories.
        host_checkpoints: folder, key (hexadecimal) and epochs between them, of `HostCheckpoints`; None: there are none.
    """

    task: TaskSpec
    data_dir: Path | None = None
    board: str | None = None
    plugins: tuple[str, ...] = ()
    host_pool: int | None = None
    skip_forced_waits: bool = False
    host_checkpoints: dict[str, Any] | None = None

    def as_env_config(self) -> dict[str, Any]:
        """Returns them as plain values, which a checkpoint can hold."""
        return {
            "task": self.task.model_dump(mode="json"),
            "data_dir": str(self.data_dir) if self.data_dir else None,
            "board": self.board,
            "plugins": list(self.plugins),
            "host_pool": self.host_pool,
            "skip_forced_waits": self.skip_forced_waits,
            "host_checkpoints": self.host_checkpoints,
        }


@dataclass(frozen=True)
class Seat:
    """An actor where it sits.

    Attributes:
        runner: index, from 1; 0: this process.
        node: name of its machine.
        node_id: of the machine in Ray.
        device: where its hosts live.
        hosts: that it trains at the same time.
        epoch_seconds: wall time of an epoch of all of them, while the other actors work as well; of large hosts where
            hosts differ.
        memory: bytes; of what it has in common with other processes a share, where the system says so.
    """

    runner: int
    node: str
    node_id: str
    device: str
    hosts: int
    epoch_seconds: float
    memory: int


@dataclass(frozen=True)
class Weights:
    """Weights of the policy, as an actor takes them.

    Attributes:
        version: tells them from earlier ones.
        state: of an EnvRunner.
    """

    version: int
    state: dict[str, Any]


@dataclass(frozen=True)
class PlayedEpisode:
    """What an actor returns for a ticket.

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


class OtherDecisionError(Exception):
    """A replaced actor's policy decides otherwise than the lost one's did: the episode has to begin again."""


class ActorEnv(MorphogenesisEnv):
    """The environment inside an actor.

    The device is the one that Ray assigned. The seeds are those of the environment's present ticket: the seed that
    RLlib would pass depends on how often the actor was restarted. Each `info` holds the seed that the next action is
    sampled with, see `SeededActions`.

    Args:
        context: as `ActorSettings.as_env_config` returns it.
    """

    def __init__(self, context: dict[str, Any]) -> None:
        without_compiler()
        load_plugins(context["plugins"])
        task = TaskSpec.model_validate(context["task"])
        data_dir = Path(context["data_dir"]) if context["data_dir"] else None
        super().__init__(
            task,
            assigned_device(),
            data_dir,
            skip_forced_waits=context["skip_forced_waits"],
            share_beginnings=context["host_pool"] is not None,
            data=context.get(_DATA),
        )
        self.ticket = Ticket(context[_WORKER_INDEX], 0, 0, 0)
        self._reporter = ProgressReporter(context["board"], context[_WORKER_INDEX], context[_HOST])
        kept = context["host_checkpoints"]
        self._checkpoints = (
            HostCheckpoints(Path(kept["folder"]), bytes.fromhex(kept["key"]), kept["every"]) if kept else None
        )

    def reset_steps(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> Steps[tuple[Observation, dict[str, Any]]]:
        """Starts a fresh host as the present ticket says, or goes on with one that a lost actor left.

        `seed` is RLlib's and is not used.
        """
        left = self._checkpoints.read(self.ticket) if self._checkpoints is not None else None
        started = yield from super().reset_steps(seed=self.ticket.episode_seed, options={"grown": self.ticket.grown})
        self._so_far = left or EpisodeSoFar(self.ticket, started)
        self._shown = deque(left.steps if left is not None else ())
        self._saved_epoch = 0
        observation, info = self._so_far.start
        return observation, {**info, DECISION_SEED: self._decision_seed(self.run.epoch if left is None else 0)}

    def step_steps(self, action: np.int64 | int) -> Steps[StepResult]:
        """Steps, reports, and says what the next decision's seed is. What a lost actor left is shown again first.

        Raises:
            OtherDecisionError: the policy decides otherwise than it did then.
        """
        if self._shown:
            then, shown = self._shown.popleft()
            result: StepResult = shown
            if then != int(action):
                raise OtherDecisionError
            if not self._shown:
                assert self._so_far.state is not None
                self.restore(self._so_far.state)
                self._saved_epoch = self.run.epoch
            self._legal.mask = result[0]["action_mask"]
        else:
            result = yield from super().step_steps(action)
            self._write_down(int(action), result)
        info = result[4]
        name = self.action_table.names[int(action)]
        self._reporter.report(info["epoch"], self.task.max_epochs, info["stage"], info["val_accuracy"], name)
        info[DECISION_SEED] = self._decision_seed(info["epoch"])
        return result

    def _write_down(self, action: int, result: Any) -> None:
        """Adds a step to what there is of the episode, and saves it when it is time."""
        if self._checkpoints is None:
            return
        self._so_far.steps.append((action, result))
        if self.run.is_over:
            self._checkpoints.remove(self.ticket)
        elif self.run.epoch - self._saved_epoch >= self._checkpoints.every and (state := self.state()) is not None:
            self._so_far.state, self._saved_epoch = state, self.run.epoch
            self._checkpoints.write(self._so_far)

    def start_over(self) -> None:
        """Forgets what a lost actor left of the present episode."""
        assert self._checkpoints is not None
        self._checkpoints.remove(self.ticket)

    def _decision_seed(self, epoch: int) -> int:
        return derive_seed(self.ticket.decision_seed, Stream.DECISION, epoch)


class ActorEnvs(LockstepEnvs):
    """An actor's environments. They share one copy of the data.

    Args:
        context: as `ActorSettings.as_env_config` returns it, with "worker_index", and "num_envs".
    """

    env_class: ClassVar[type[ActorEnv]] = ActorEnv

    @classmethod
    def of(cls, env_class: type[ActorEnv]) -> type[Self]:
        """Returns the class of an actor's environments that are each an `env_class`."""
        return cast("type[Self]", type(f"{env_class.__name__}s", (cls,), {"env_class": env_class}))

    def __init__(self, context: dict[str, Any]) -> None:
        first = self.env_class({**context, _HOST: 0})
        others = [self.env_class({**context, _HOST: host, _DATA: first.data}) for host in range(1, context["num_envs"])]
        super().__init__([first, *others])


class SeededActions(ConnectorV2):
    """Samples the action of each environment with the seed that its last `info` holds, whatever the others do."""

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], episodes: Any, **kwargs: Any) -> Any:
        """Adds actions and the logarithm of their probability to the batch."""
        kind = rl_module.get_exploration_action_dist_cls()
        rows = batch[Columns.ACTION_DIST_INPUTS].split(1)
        actions, logarithms = [], []
        for episode, row in zip(episodes, rows, strict=True):
            distribution = kind.from_logits(row)
            with seeded(int(episode.get_infos(-1).get(DECISION_SEED, 0))):
                action = distribution.sample()
            actions.append(action)
            logarithms.append(distribution.logp(action))
        batch[Columns.ACTIONS], batch[Columns.ACTION_LOGP] = torch.cat(actions), torch.cat(logarithms)
        return batch


class EpisodeRunner(SingleAgentEnvRunner):
    """An EnvRunner that plays whole episodes, several at the same time. A failure is returned, never hidden."""

    def __init__(self, **settings: Any) -> None:
        without_deterministic_mode()
        super().__init__(**settings)
        self._module_to_env.insert_before(GetActions, SeededActions())

    def make_env(self) -> None:
        """Makes the environments. RLlib forgets the worker index where it makes several at once."""
        self.config: AlgorithmConfig = self.config.copy(copy_frozen=False)
        self.config.env_config = {**self.config.env_config, _WORKER_INDEX: self.worker_index}
        super().make_env()

    def process(self) -> str:
        """Returns what tells this process from one that takes its place."""
        return str(ray.get_runtime_context().get_worker_id())

    def action_names(self) -> tuple[str, ...]:
        """Returns the names of the actions on this actor's device."""
        return self._hosts()[0].action_table.names

    def take_seat(self) -> Seat:
        """Says where this actor sits, trains its hosts for two epochs and times the second."""
        envs = self._envs()
        seconds = envs.time_epoch()
        memory = psutil.Process().memory_full_info()
        node_id = ray.get_runtime_context().get_node_id()
        size = getattr(memory, "pss", memory.rss)
        return Seat(
            self.worker_index, socket.gethostname(), node_id, str(envs.envs[0].device), envs.num_envs, seconds, size
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
            return self._again_if_need_be(tickets, lambda chosen: self._sampled(chosen, keep_from))
        except Exception:
            return self._failed(tickets, traceback.format_exc())

    def _sampled(self, tickets: Sequence[Ticket], keep_from: float) -> list[PlayedEpisode | Exception]:
        self._deal(tickets)
        rollouts = {rollout.infos[-1]["place"]: rollout for rollout in self.sample(num_episodes=len(tickets))}
        played: list[PlayedEpisode | Exception] = []
        metrics = self.get_metrics()
        for place, ticket in enumerate(tickets):
            last = rollouts[place].infos[-1]
            if "failure" in last:
                played.append(last["failure"])
                continue
            record = last.pop("episode")
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
            self._deal(chosen)
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
            return self._again_if_need_be(tickets, play)
        except Exception:
            return self._failed(tickets, traceback.format_exc())
        finally:
            for env, skip in zip(self._hosts(), skips, strict=True):
                env.skip_forced_waits = skip

    def _deal(self, tickets: Sequence[Ticket]) -> None:
        envs = self._envs()
        envs.playing = len(tickets)
        for env, ticket in zip(self._hosts(), tickets, strict=False):
            env.ticket = ticket

    def _again_if_need_be(
        self, tickets: Sequence[Ticket], play: Callable[[Sequence[Ticket]], list[PlayedEpisode | Exception]]
    ) -> list[PlayedEpisode]:
        """Plays episodes; once more from their first epoch those that another policy than the present one had begun."""
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
