"""Playing one whole episode with any policy, through the same loop that the actors run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from esper_ray.episode.actions import ActionTable
from esper_ray.episode.env import MorphogenesisEnv, Observation
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.record import EpisodeRecord
from esper_ray.errors import ConfigurationError, differing_names
from esper_ray.tasks import TaskSpec


class Policy(Protocol):
    """Interface of a policy. It never changes the observation.

    A policy made for certain actions, or for a certain observation, says so in `action_names` or `observation_names`.
    See `require_fitting`.
    """

    def start_episode(self, episode_seed: int) -> None:
        """Forgets the last episode; a random policy seeds itself from `episode_seed`."""

    def act(self, observation: Observation) -> int:
        """Returns a legal action for {"observations": (F,) float32, "action_mask": (A,) int8}."""
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """Result of an episode.

    Attributes:
        final_val_accuracy: of the host after the last epoch, percent.
        action_counts: how often each action was taken, by name.
        rewards: one per step.
        record: the full per-epoch record.
    """

    final_val_accuracy: float
    action_counts: dict[str, int]
    rewards: list[float]
    record: EpisodeRecord


def run_ppo_episode(
    agent: Policy,
    task: TaskSpec | str,
    episode_seed: int = 0,
    device: str | torch.device = "cpu",
    data_dir: Path | None = None,
) -> EpisodeResult:
    """Plays one episode with `agent`, any policy, and returns the result. The same arguments give the same episode.

    Raises:
        ConfigurationError: task or device is unknown, no seed could reach PROBATIONARY, or as `require_fitting`.
        DatasetError: the data set is missing.
        IllegalActionError: the agent took an action that the mask forbids.
    """
    record = play_episode(MorphogenesisEnv(task, device, data_dir), agent, episode_seed)
    return EpisodeResult(
        record.final_val_accuracy, record.action_counts, [epoch.reward for epoch in record.epochs], record
    )


def require_fitting(agent: Policy, env: MorphogenesisEnv) -> None:
    """Refuses a policy that was made for other actions or another observation than the environment's.

    Raises:
        ConfigurationError: it names the difference.
    """
    present = {"action_names": env.action_table.names, "observation_names": env.observation_table.names}
    for attribute, now in present.items():
        then = getattr(agent, attribute, now)
        if then != now:
            raise ConfigurationError(
                f"the {attribute.partition('_')[0]}s that the policy was made for are not those of task "
                f"{env.task.name}: {differing_names(then, now)}; use the task that it was made for"
            )


def play_episode(
    env: MorphogenesisEnv,
    agent: Policy,
    episode_seed: int,
    observer: Callable[[MorphogenesisEnv, int], None] | None = None,
) -> EpisodeRecord:
    """Plays one episode in `env`; `observer(env, action)` is called after every step.

    Raises:
        ConfigurationError: as `require_fitting`.
    """
    require_fitting(agent, env)
    agent.start_episode(episode_seed)
    observation, _ = env.reset(seed=episode_seed)
    while True:
        action = agent.act(observation)
        observation, _, terminated, truncated, info = env.step(action)
        if observer is not None:
            observer(env, action)
        if terminated or truncated:
            record: EpisodeRecord = info["record"]
            return record


def play_episodes(
    envs: LockstepEnvs, agents: Sequence[Policy], seeds: Sequence[int]
) -> list[EpisodeRecord | Exception]:
    """Plays an episode in each of the first environments at the same time, each with an agent of its own.

    Args:
        seeds: of the episodes, and of what the agents draw.

    Returns:
        the record of each, or what it raised.
    """
    for agent, seed in zip(agents, seeds, strict=True):
        require_fitting(agent, envs.envs[0])
        agent.start_episode(seed)
    envs.playing = len(agents)
    observations, _ = envs.reset(seed=[*seeds, *[None] * (envs.num_envs - len(seeds))])
    results: list[EpisodeRecord | Exception | None] = [None] * len(agents)
    while None in results:
        actions = np.full(envs.num_envs, ActionTable.WAIT)
        for place, agent in enumerate(agents):
            if results[place] is None:
                actions[place] = agent.act({name: rows[place] for name, rows in observations.items()})
        observations, _, _, _, infos = envs.step(actions)
        for place in range(len(agents)):
            for key in ("record", "failure"):
                if key in infos and infos[f"_{key}"][place]:
                    results[place] = infos[key][place]
    return [result for result in results if result is not None]
