"""`gain`: pays each change of the accuracy that is attributed to the seed."""

from esper_ray.episode.rewards.inputs import RewardInput, intervention_cost, potential_payment, rollback_payment
from esper_ray.lifecycle import SeedStage
from esper_ray.tasks import RewardSettings


def gain(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays each *change* of the attributed accuracy; the payments of an episode add up to that of the kept seed.

    A falls to 0 with the seed, and at the end a seed that is not FOSSILIZED gives its A back. Kept accuracy and rent
    are settled at the end. Rent is weighed like attributed accuracy: a doubling costs what `rent` points of it earn, as
    in the score of record.
    """
    lost_at_end = step.is_final and step.after.stage != SeedStage.FOSSILIZED
    after_attributed = 0.0 if lost_at_end else step.after.attributed
    return {
        "attributed": settings.gain_weight * (after_attributed - step.before.attributed),
        "kept_accuracy": settings.kept_accuracy_weight * step.kept_accuracy if step.is_final else 0.0,
        "rent": -settings.gain_weight * settings.rent * step.doublings_at_end,
        "potential": potential_payment(step, settings),
        "intervention": intervention_cost(step, settings),
        "governor": rollback_payment(step, settings),
    }
