"""`sparse`: pays at the end only."""

from esper_ray.episode.rewards.inputs import RewardInput, rollback_payment
from esper_ray.tasks import RewardSettings


def sparse(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays kept accuracy and takes rent at the end: the score of record, on the validation split."""
    return {
        "kept_accuracy": step.kept_accuracy if step.is_final else 0.0,
        "rent": -settings.rent * step.doublings_at_end,
        "governor": rollback_payment(step, settings),
    }
