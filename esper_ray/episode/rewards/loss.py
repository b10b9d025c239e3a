"""`loss`: pays each improvement of the validation loss."""

from esper_ray.episode.actions import Decision
from esper_ray.episode.rewards.inputs import RewardInput, intervention_cost, potential_payment, rollback_payment
from esper_ray.tasks import RewardSettings

_CLIP = 5.0


def loss(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays each improvement of the validation loss, in units of a typical one; a regression costs half as much.

    An improvement is what falls below the lowest loss so far, five typical ones an epoch at most. Above that, rises
    cost half and the way back pays half, up to a height of five: a loss that only jitters earns nothing. What goes with
    a seed is taken back in full: the rise of the loss on CULL and, at the end, what a seed that is not FOSSILIZED had
    brought. At the end the share of the way from a uniform guess to the target loss is paid, and rent is settled: a
    doubling costs what `rent` typical improvements earn. The host's own progress is paid as well.
    """
    typical, before, after = settings.typical_loss_delta, step.before, step.after
    improvement = min(_CLIP, max(0.0, before.best_loss - after.loss) / typical)
    climb = _height(after.loss, before.best_loss, typical) - _height(before.loss, before.best_loss, typical)
    if step.decision == Decision.CULL and after.loss > before.loss:
        climb = 2 * (after.loss - before.loss) / typical
    dropped = max(0.0, step.kept_loss - after.loss) / typical if step.is_final else 0.0
    way = (step.uniform_loss - step.kept_loss) / (step.uniform_loss - settings.target_loss)
    return {
        "loss": settings.loss_weight * (improvement - climb / 2),
        "dropped": -settings.loss_weight * dropped,
        "target": settings.loss_weight * min(1.0, max(0.0, way)) if step.is_final else 0.0,
        "rent": -settings.loss_weight * settings.rent * step.doublings_at_end,
        "potential": potential_payment(step, settings),
        "intervention": intervention_cost(step, settings),
        "governor": rollback_payment(step, settings),
    }


def _height(loss: float, best: float, typical: float) -> float:
    """Returns how far a loss lies above the lowest one, in typical changes, at most five."""
    return min(_CLIP, max(0.0, loss - best) / typical)
