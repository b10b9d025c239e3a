"""Environments that misbehave inside their actors."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from ray.rllib.env.env_context import EnvContext

from esper_ray.orchestration.env_runner import ActorEnv
from esper_ray.orchestration.tickets import Ticket, held_out_seeds


class SlowEnv(ActorEnv):
    """An environment whose first actor is far slower than the others."""

    def reset(self, **kwargs: Any) -> Any:
        if self._reporter.runner == 1:
            time.sleep(1.5)
        return super().reset(**kwargs)


class FailingEnv(ActorEnv):
    """An environment that raises in the middle of an episode."""

    def step(self, action: Any) -> Any:
        if self.run.epoch == 5:
            raise ValueError("the disk is on fire")
        return super().step(action)


class DyingEnv(ActorEnv):
    """An environment whose second actor dies once in the middle of an episode, as by kill -9."""

    def __init__(self, context: EnvContext) -> None:
        super().__init__(context)
        self._marker = Path(context["marker"])

    def step(self, action: Any) -> Any:
        if self._reporter.runner == 2 and self.run.epoch == 5 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class RaisingEnv(ActorEnv):
    """An environment whose second actor raises once in the middle of an episode."""

    def __init__(self, context: EnvContext) -> None:
        super().__init__(context)
        self._marker = Path(context["marker"])

    def step(self, action: Any) -> Any:
        if self._reporter.runner == 2 and self.run.epoch == 5 and not self._marker.exists():
            self._marker.touch()
            raise ValueError("the disk is on fire")
        return super().step(action)


class HeldOutEnv(ActorEnv):
    """An environment that plays the held-out hosts one after the other, whoever runs it."""

    def reset(self, **kwargs: Any) -> Any:
        self._played = getattr(self, "_played", -1) + 1
        seed = held_out_seeds(self._played + 1)[-1]
        self.ticket = Ticket(1, self._played, seed, seed)
        return super().reset(**kwargs)
