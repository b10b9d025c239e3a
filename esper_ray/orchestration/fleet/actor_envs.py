"""The environments inside an actor: each owns one host and its slot."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from typing_extensions import Self

from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.env import Observation, StepResult
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.orchestration.fleet.host_checkpoint import EpisodeSoFar, HostCheckpoints
from esper_ray.orchestration.fleet.placement import assigned_device
from esper_ray.orchestration.fleet.progress import ProgressReporter
from esper_ray.orchestration.fleet.tickets import Ticket
from esper_ray.plugins import load_plugins
from esper_ray.process import retain_freed_memory, without_compiler
from esper_ray.seeding import Stream, derive_seed
from esper_ray.tasks import TaskSpec
from esper_ray.training import Steps

DECISION_SEED = "decision_seed"
WORKER_INDEX = "worker_index"
_HOST, _DATA = "host", "data"


@dataclass(frozen=True)
class ActorSettings:
    """Settings of an actor's environments.

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


class OtherDecisionError(Exception):
    """A replaced actor's policy decides otherwise than the lost one's did: the episode has to begin again."""


class ActorEnv(MorphogenesisEnv):
    """The environment inside an actor.

    The device is the one that Ray assigned. The seeds are those of the environment's present ticket: the seed that
    RLlib would pass depends on how often the actor was restarted. Each `info` holds the seed that the next action is
    sampled with, see `ChosenActions`.

    Args:
        context: as `ActorSettings.as_env_config` returns it.
    """

    def __init__(self, context: dict[str, Any]) -> None:
        without_compiler()
        retain_freed_memory()
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
        self.ticket = Ticket(context[WORKER_INDEX], 0, 0, 0)
        self._reporter = ProgressReporter(context["board"], context[WORKER_INDEX], context[_HOST])
        kept = context["host_checkpoints"]
        self._checkpoints = (
            HostCheckpoints(Path(kept["folder"]), bytes.fromhex(kept["key"]), kept["every"]) if kept else None
        )

    def reset_steps(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> Steps[tuple[Observation, dict[str, Any]]]:
        """Coroutine version of `reset`: starts the host of the present ticket, or resumes one that a lost actor saved.

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
        """Coroutine version of `step`: also reports progress and the next decision's seed; replays saved steps first.

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
            self._legal.mask = result[0]["action_mask"].copy()
        else:
            result = yield from super().step_steps(action)
            self._write_down(int(action), result)
        info = result[4]
        name = self.action_table.names[int(action)]
        self._reporter.report(info["epoch"], self.task.max_epochs, info["stage"], info["val_accuracy"], name)
        info[DECISION_SEED] = self._decision_seed(info["epoch"])
        return result

    def _on_epoch(self) -> None:
        self._reporter.heartbeat()

    def _write_down(self, action: int, result: Any) -> None:
        """Records a step, and saves the episode in progress when a save is due."""
        if self._checkpoints is None:
            return
        self._so_far.steps.append((action, result))
        if self.run.is_over:
            self._checkpoints.remove(self.ticket)
        elif self.run.epoch - self._saved_epoch >= self._checkpoints.every and (state := self.state()) is not None:
            self._so_far.state, self._saved_epoch = state, self.run.epoch
            self._checkpoints.write(self._so_far)

    def start_over(self) -> None:
        """Deletes the saved progress of the present episode."""
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
