"""One training run of one host as a decision problem: signals, actions, observation, reward, governor, environment."""

import gymnasium as gym

from esper_ray.episode.actions import ActionTable
from esper_ray.episode.env import MorphogenesisEnv
from esper_ray.episode.observation import ObservationTable
from esper_ray.episode.record import EpisodeRecord, EpochRecord
from esper_ray.episode.rollout import EpisodeResult, Policy, require_fitting, run_ppo_episode

gym.register("esper_ray/Morphogenesis-v0", "esper_ray.episode:MorphogenesisEnv", kwargs={"task": "digits"})

__all__ = [
    "ActionTable",
    "EpisodeRecord",
    "EpisodeResult",
    "EpochRecord",
    "MorphogenesisEnv",
    "ObservationTable",
    "Policy",
    "require_fitting",
    "run_ppo_episode",
]
