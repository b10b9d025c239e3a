"""Environments that misbehave inside their actors."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray
import torch
from ray.rllib.env import single_agent_env_runner

from esper_ray.episode.host_run import Beginning, HostRun
from esper_ray.episode.signals import EpochOutcome
from esper_ray.orchestration.fleet import actor_envs
from esper_ray.orchestration.fleet.actor_envs import ActorEnv
from esper_ray.orchestration.fleet.env_runner import EpisodeRunner
from esper_ray.orchestration.fleet.tickets import Ticket, held_out_seeds
from esper_ray.training import Steps


class SlowEnv(ActorEnv):
    """An environment whose first actor is far slower than the others."""

    def reset_steps(self, **kwargs: Any) -> Any:
        if self._reporter.runner == 1:
            time.sleep(1.5)
        return (yield from super().reset_steps(**kwargs))


class FailingEnv(ActorEnv):
    """An environment that raises in the middle of an episode."""

    def step_steps(self, action: Any) -> Any:
        if self.run.epoch == 5:
            raise ValueError("the disk is on fire")
        return (yield from super().step_steps(action))


class DyingEnv(ActorEnv):
    """An environment whose second actor dies once in the middle of an episode, as by kill -9."""

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__(context)
        self._marker = Path(context["marker"])

    def step_steps(self, action: Any) -> Any:
        if self._reporter.runner == 2 and self.run.epoch == 5 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return (yield from super().step_steps(action))


class TracedEnv(ActorEnv):
    """An environment that writes down every host epoch that is trained, and that can be lost once in an episode.

    In front of the epoch `lost_at` of the first actor's first episode it "dies", as by kill -9, or "waits" for its
    machine to die, or "raises"; `how` says which.
    """

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__(context)
        self._trace = Path(context["trace"])
        self._marker = Path(context["marker"])
        self._lost_at, self._how = context.get("lost_at"), context.get("how", "dies")

    def _advance(self, action: int) -> Any:
        ticket, epoch = self.ticket, self.run.epoch + 1
        if (ticket.runner, ticket.number, epoch) == (1, 0, self._lost_at) and not self._marker.exists():
            self._marker.write_text(ray.get_runtime_context().get_node_id())
            if self._how == "raises":
                raise ValueError("the disk is on fire")
            if self._how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        place = ray.get_runtime_context().get_node_id(), *ray.get_gpu_ids()
        with self._trace.open("a") as file:
            file.write(
                json.dumps([self._reporter.runner, ticket.runner, ticket.number, epoch, *map(str, place)]) + "\n"
            )
        return (yield from super()._advance(action))


class CPURunner(EpisodeRunner):
    """An actor that works on the CPU, whatever GPU Ray has assigned."""

    def __init__(self, **kwargs: Any) -> None:
        with on_the_cpu():
            super().__init__(**kwargs)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Hosts and policy live on the CPU, whatever GPU Ray has assigned: it may be one in name only."""
    cpu = torch.device("cpu")
    with (
        mock.patch.object(actor_envs, "assigned_device", return_value=cpu),
        mock.patch.object(single_agent_env_runner, "get_device", return_value=cpu),
    ):
        yield


class HeldOutEnv(ActorEnv):
    """An environment that plays the held-out hosts one after the other, whoever runs it."""

    def reset_steps(self, **kwargs: Any) -> Any:
        self._played = getattr(self, "_played", -1) + 1
        seed = held_out_seeds(self._played + 1)[-1]
        self.ticket = Ticket(1, self._played, seed, seed)
        return (yield from super().reset_steps(**kwargs))


class FakeHostRun(HostRun):
    """A host whose epoch is a pause of ten milliseconds; slot, stages and mask are real."""

    def _train(self) -> Steps[tuple[float, float, None]]:
        time.sleep(0.01)
        yield from ()
        return 1.0, 50.0, None

    def _validate(self, train_loss: float, train_accuracy: float) -> Steps[EpochOutcome]:
        yield from ()
        accuracy = 50.0 + self.episode_seed % 7 + self.epoch
        contribution = 1.0 if self.model.seed_slot.alpha > 0 else None
        return EpochOutcome(train_loss, train_accuracy, 1.0, accuracy, 1.0, accuracy, contribution)


class FakeHostEnv(ActorEnv):
    """An environment of fake hosts."""

    def _new_run(self, episode_seed: int, beginning: Beginning | None = None) -> HostRun:
        data = self._data.of_host(self.task, episode_seed)
        return FakeHostRun(self.task, data, self._device, episode_seed, self.action_table, beginning)


class MisbehavingEnv(FakeHostEnv):
    """An environment of fake hosts whose second actor, once, in the middle of an episode, does what it is told to.

    Args:
        context: "misdeed", one of "raise", "hang" (for five minutes), "allocate" (512 MB at a time, until it is
            stopped); "marker", a file that is made first, with the process id in it.
    """

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__(context)
        self._misdeed, self._marker = context["misdeed"], Path(context["marker"])

    def step_steps(self, action: Any) -> Any:
        if self._reporter.runner == 2 and self.run.epoch == 5 and not self._marker.exists():
            self._marker.write_text(str(os.getpid()))
            if self._misdeed == "raise":
                raise ValueError("the disk is on fire")
            if self._misdeed == "hang":
                time.sleep(300)
            held = []
            while self._misdeed == "allocate":
                held.append(np.ones(2**26))
        return (yield from super().step_steps(action))
