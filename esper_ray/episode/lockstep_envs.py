"""Several environments of one task whose hosts are trained together."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from esper_ray.episode.actions import ActionTable
from esper_ray.episode.env import MorphogenesisEnv, Observation, StepResult
from esper_ray.training.lockstep import run_batched

Observations = dict[str, NDArray[Any]]


class LockstepEnvs(gym.vector.VectorEnv[Observations, NDArray[Any], NDArray[Any]]):
    """Environments that step at the same time; hosts of one structure are trained as one network.

    Each has an episode of its own. One whose episode is over stands still until all are reset: it answers with its last
    observation and no reward. What one raises ends its episode alone, and comes as `failure` in its last `info`.
    Observations, actions and rewards are those of the environments, a row each; each `info` says under `place` whose
    it is.

    Attributes:
        playing: how many of them, from the first, a reset begins an episode in; the others stand still.

    Args:
        envs: of the same task, device and settings.
    """

    def __init__(self, envs: Sequence[MorphogenesisEnv]) -> None:
        self.envs = tuple(envs)
        self.num_envs = self.playing = len(envs)
        assert isinstance(envs[0].observation_space, gym.spaces.Dict)
        self.single_observation_space = envs[0].observation_space
        self.single_action_space = envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        modes = gym.vector.AutoresetMode
        mode = modes.NEXT_STEP if self.num_envs == 1 else modes.DISABLED
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self._over = [True] * self.num_envs
        resting = {name: np.zeros_like(value) for name, value in envs[0].observation_space.sample().items()}
        resting["action_mask"][ActionTable.WAIT] = 1
        self._last: list[Observation] = [resting] * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begins an episode in as many as are to play.

        Raises:
            Exception: what the first of them raised.
        """
        seeds = [seed] * self.num_envs if seed is None or isinstance(seed, int) else list(seed)
        chosen = range(self.playing)
        steps = [self.envs[place].reset_steps(seed=seeds[place], options=options) for place in chosen]
        infos: dict[str, Any] = {}
        for place, started in zip(chosen, run_batched(steps), strict=True):
            if isinstance(started, Exception):
                raise started
            self._last[place], info = started
            infos = self._add_info(infos, {**info, "place": place}, place)
        self._over = [place >= self.playing for place in range(self.num_envs)]
        return self._observations(), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Steps all whose episode is not over. A single one whose episode is over begins the next.

        Raises:
            ResetNeeded: there are several, and the episodes of all of them are over.
        """
        chosen = [place for place, over in enumerate(self._over) if not over]
        rewards = np.zeros(self.num_envs)
        ended = np.zeros((2, self.num_envs), dtype=np.bool_)
        infos: dict[str, Any] = {}
        if not chosen:
            if self.num_envs > 1:
                raise gym.error.ResetNeeded("the episodes of all environments are over; reset them")
            observations, infos = self.reset()
            return observations, rewards, ended[0], ended[1], infos
        found = run_batched([self.envs[place].step_steps(actions[place]) for place in chosen])
        for place, result in zip(chosen, found, strict=True):
            if isinstance(result, Exception):
                result = self._failed(place, result)
            self._last[place], rewards[place], ended[0, place], ended[1, place], info = result
            self._over[place] = bool(ended[:, place].any())
            infos = self._add_info(infos, {**info, "place": place}, place)
        return self._observations(), rewards, ended[0], ended[1], infos

    def time_epoch(self) -> float:
        """Returns the wall time, seconds, of an epoch of all hosts, without seeds.

        Where hosts differ, of large ones, one by one: of such hosts few can be one network. Episodes in progress do not
        notice.
        """
        differ = self.envs[0].task.variety.enabled
        runs = [env.timed_run() for env in self.envs]
        for _ in range(min(2, self.envs[0].task.max_epochs)):  # the first one also warms up
            started = time.perf_counter()
            for those in [[run] for run in runs] if differ else [runs]:
                for result in run_batched([run.epoch_steps() for run in those]):
                    if isinstance(result, Exception):
                        raise result
        return time.perf_counter() - started

    def _failed(self, place: int, error: Exception) -> StepResult:
        return self._last[place], 0.0, True, False, {"failure": error}

    def _observations(self) -> Observations:
        return {name: np.stack([observation[name] for observation in self._last]) for name in self._last[0]}
