"""One training run of one host as a decision problem: signals, actions, observation, reward, governor, environment."""

from esper_ray.episode.actions import ActionTable
from esper_ray.episode.env import MorphogenesisEnv
from esper_ray.episode.observation import ObservationTable
from esper_ray.episode.record import EpisodeRecord, EpochRecord
from esper_ray.episode.rollout import EpisodeResult, Policy, run_ppo_episode

__all__ = [
    "ActionTable",
    "EpisodeRecord",
    "EpisodeResult",
    "EpochRecord",
    "MorphogenesisEnv",
    "ObservationTable",
    "Policy",
    "run_ppo_episode",
]
