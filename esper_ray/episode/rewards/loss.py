"""`loss`: pays each improvement of the validation loss."""

from esper_ray.episode.rewards.inputs import RewardInput, intervention_cost, potential_payment, rollback_payment
from esper_ray.tasks import RewardSettings


def loss(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays each fall of the validation loss below its lowest so far, in units of a typical one.

    A rise costs half as much and the way back pays half, so a loss that only jitters earns nothing; the other half is
    charged at the end for what has not come back. The loss moves by at most five typical changes an epoch, and on the
    final step to that of what is kept. So all payments add up to (uniform guess − kept loss), however an episode went.
    At the end the share of the way from a uniform guess to the target loss is paid, and rent is settled: a doubling
    costs what `rent` typical improvements earn. The host's own progress is paid as well.
    """
    before, after = step.before, step.after
    level = step.kept_loss if step.is_final else after.loss
    lowest = min(before.best_loss, level)
    improvement = before.best_loss - lowest
    climb = (level - lowest) - (before.loss - before.best_loss)
    left = (level - lowest) / 2 if step.is_final else 0.0
    weight = settings.loss_weight / settings.typical_loss_delta
    way = (step.uniform_loss - step.kept_loss) / (step.uniform_loss - settings.target_loss)
    return {
        "loss": weight * (improvement - climb / 2),
        "settled": -weight * left,
        "target": settings.loss_weight * min(1.0, max(0.0, way)) if step.is_final else 0.0,
        "rent": -settings.loss_weight * settings.rent * step.doublings_at_end,
        "potential": potential_payment(step, settings),
        "intervention": intervention_cost(step, settings),
        "governor": rollback_payment(step, settings),
    }
