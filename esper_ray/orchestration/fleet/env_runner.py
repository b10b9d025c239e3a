"""The actor: owns one host and its slot, and plays the episodes it is told to."""

import socket
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import psutil
import ray
import torch
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from esper_ray.episode import EpisodeRecord, MorphogenesisEnv, Policy
from esper_ray.episode.env import Observation
from esper_ray.episode.rollout import play_episode
from esper_ray.orchestration.fleet.host_checkpoint import EpisodeSoFar, HostCheckpoints
from esper_ray.orchestration.fleet.placement import assigned_device
from esper_ray.orchestration.fleet.progress import ProgressReporter
from esper_ray.orchestration.fleet.tickets import Ticket
from esper_ray.plugins import load_plugins
from esper_ray.seeding import Stream, derive_seed
from esper_ray.tasks import TaskSpec

_Played = TypeVar("_Played")


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
        epoch_seconds: wall time of a host epoch while the others work as well; of a large host where hosts differ.
        memory: bytes; of what it has in common with other processes a share, where the system says so.
    """

    runner: int
    node: str
    node_id: str
    device: str
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

    The device is the one that Ray assigned. The seeds are those of the actor's present ticket: the seed that RLlib
    would pass depends on how often the actor was restarted. Before each decision torch's generator is seeded from the
    decision seed, so that the action which RLlib samples next follows from it as well.

    Args:
        context: as `ActorSettings.as_env_config` returns it.
    """

    def __init__(self, context: EnvContext) -> None:
        load_plugins(context["plugins"])
        task = TaskSpec.model_validate(context["task"])
        data_dir = Path(context["data_dir"]) if context["data_dir"] else None
        # RLlib switches this on when it seeds an actor; torch then fills every new tensor, a third of a small epoch.
        torch.use_deterministic_algorithms(False)
        super().__init__(
            task,
            assigned_device(),
            data_dir,
            skip_forced_waits=context["skip_forced_waits"],
            share_beginnings=context["host_pool"] is not None,
        )
        self.ticket = Ticket(context.worker_index, 0, 0, 0)
        self._reporter = ProgressReporter(context["board"], context.worker_index)
        kept = context["host_checkpoints"]
        self._checkpoints = (
            HostCheckpoints(Path(kept["folder"]), bytes.fromhex(kept["key"]), kept["every"]) if kept else None
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a fresh host as the present ticket says, or goes on with one that a lost actor left.

        `seed` is RLlib's and is not used.
        """
        left = self._checkpoints.read(self.ticket) if self._checkpoints is not None else None
        started = super().reset(seed=self.ticket.episode_seed, options={"grown": self.ticket.grown})
        self._so_far = left or EpisodeSoFar(self.ticket, started)
        self._shown = deque(left.steps if left is not None else ())
        self._saved_epoch = 0
        self._seed_decision()
        start: tuple[Observation, dict[str, Any]] = self._so_far.start
        return start

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Steps, reports, and seeds the next decision. What a lost actor left is shown again first.

        Raises:
            OtherDecisionError: the policy decides otherwise than it did then.
        """
        if self._shown:
            then, shown = self._shown.popleft()
            result: tuple[Observation, float, bool, bool, dict[str, Any]] = shown
            if then != int(action):
                raise OtherDecisionError
            if not self._shown:
                assert self._so_far.state is not None
                self.restore(self._so_far.state)
                self._saved_epoch = self.run.epoch
            self._legal.mask = result[0]["action_mask"]
        else:
            result = super().step(action)
            self._write_down(int(action), result)
        info = result[4]
        name = self.action_table.names[int(action)]
        self._reporter.report(info["epoch"], self.task.max_epochs, info["stage"], info["val_accuracy"], name)
        self._seed_decision(info["epoch"])
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

    def _seed_decision(self, epoch: int | None = None) -> None:
        epoch = self.run.epoch if epoch is None else epoch
        torch.manual_seed(derive_seed(self.ticket.decision_seed, Stream.DECISION, epoch))


class EpisodeRunner(SingleAgentEnvRunner):
    """An EnvRunner that plays whole episodes, one ticket at a time. A failure is returned, never hidden."""

    def process(self) -> str:
        """Returns what tells this process from one that takes its place."""
        return str(ray.get_runtime_context().get_worker_id())

    def action_names(self) -> tuple[str, ...]:
        """Returns the names of the actions on this actor's device."""
        return self._host_env().action_table.names

    def take_seat(self) -> Seat:
        """Says where this actor sits, trains a host for two epochs and times the second."""
        env = self._host_env()
        seconds = env.time_epoch()
        memory = psutil.Process().memory_full_info()
        node_id = ray.get_runtime_context().get_node_id()
        size = getattr(memory, "pss", memory.rss)
        return Seat(self.worker_index, socket.gethostname(), node_id, str(env.device), seconds, size)

    def play(self, ticket: Ticket, keep_from: float, weights: Weights) -> PlayedEpisode:
        """Plays one episode, sampling the actions.

        Args:
            ticket: which episode.
            keep_from: return what was grown if its kept validation accuracy is at least this, percent.
            weights: of the policy, for the whole episode. Whatever a restarted actor has, it plays with these.
        """
        try:
            if getattr(self, "_weights_version", None) != weights.version:
                self.set_state(weights.state)
                self._weights_version = weights.version
            self._host_env().ticket = ticket
            (rollout,) = self._from_the_start_if_need_be(lambda: self.sample(num_episodes=1))
            record = rollout.infos[-1].pop("episode")
            return PlayedEpisode(ticket, rollout, record, self._weights(record, keep_from), self.get_metrics())
        except Exception:
            return PlayedEpisode(ticket, failure=traceback.format_exc(), process=self.process())

    def play_scripted(self, ticket: Ticket, policy: Policy, keep_from: float, measure_test: bool) -> PlayedEpisode:
        """Plays one episode with a policy that does not learn, epoch by epoch.

        Args:
            ticket: which episode.
            policy: decides.
            keep_from: as in `play`.
            measure_test: measure the test accuracy of what is kept, for a final report.
        """
        env = self._host_env()
        skips = env.skip_forced_waits
        try:
            env.ticket, env.skip_forced_waits = ticket, False
            record = self._from_the_start_if_need_be(lambda: play_episode(env, policy, ticket.decision_seed))
            if measure_test:
                record.kept_test_accuracy = env.measure_test()
            return PlayedEpisode(ticket, record=record, weights=self._weights(record, keep_from))
        except Exception:
            return PlayedEpisode(ticket, failure=traceback.format_exc(), process=self.process())
        finally:
            env.skip_forced_waits = skips

    def _from_the_start_if_need_be(self, play: Callable[[], _Played]) -> _Played:
        """Plays an episode; again from its first epoch if another policy than the present one had begun it."""
        try:
            return play()
        except (OtherDecisionError, RuntimeError) as error:  # RLlib wraps what an environment raises
            if not isinstance(error, OtherDecisionError) and not isinstance(error.__cause__, OtherDecisionError):
                raise
        self._host_env().start_over()
        return play()

    def _weights(self, record: EpisodeRecord, keep_from: float) -> dict[str, torch.Tensor] | None:
        return self._host_env().run.model.kept_weights() if record.kept_val_accuracy >= keep_from else None

    def _host_env(self) -> ActorEnv:
        return cast(ActorEnv, self.env.unwrapped.envs[0].unwrapped)
