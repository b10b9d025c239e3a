"""`paired`: pays the accuracy of the host in excess of a twin that only waited."""

from esper_ray.episode.rewards.inputs import RewardInput, rollback_payment
from esper_ray.tasks import RewardSettings


def paired(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays each change of (accuracy − that of a WAIT-only twin with the same host seed).

    The last payment counts kept accuracy, so the payments add up to what was kept over the twin; rent is taken once.
    What the host would have learned anyway cancels out.
    """
    reached = step.kept_accuracy if step.is_final else step.after.accuracy
    lead_before = step.before.accuracy - step.before.twin_accuracy
    return {
        "lead": reached - step.after.twin_accuracy - lead_before,
        "rent": -settings.rent * step.doublings_at_end,
        "governor": rollback_payment(step, settings),
    }
