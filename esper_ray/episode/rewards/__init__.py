"""The reward: a pure function of one frozen record per step, returning named components that sum to the reward."""

from collections.abc import Callable

from esper_ray.episode.rewards.contribution import contribution
from esper_ray.episode.rewards.gain import gain
from esper_ray.episode.rewards.inputs import (
    RewardInput,
    RewardState,
    attributed_accuracy,
    followed_loss,
    growth_doublings,
    score_of_record,
    stage_potential,
)
from esper_ray.episode.rewards.loss import loss
from esper_ray.episode.rewards.paired import paired
from esper_ray.episode.rewards.sparse import sparse
from esper_ray.tasks import RewardSettings

RewardFunction = Callable[[RewardInput, RewardSettings], dict[str, float]]

REWARD_MODES: dict[str, RewardFunction] = {
    "contribution": contribution,
    "gain": gain,
    "loss": loss,
    "sparse": sparse,
    "paired": paired,
}


def reward_components(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Returns the components of a step's reward in the mode of the settings, scaled; they sum to the reward."""
    return {name: settings.factor * value for name, value in REWARD_MODES[settings.mode](step, settings).items()}


__all__ = [
    "REWARD_MODES",
    "RewardFunction",
    "RewardInput",
    "RewardState",
    "attributed_accuracy",
    "followed_loss",
    "growth_doublings",
    "reward_components",
    "score_of_record",
    "stage_potential",
]
