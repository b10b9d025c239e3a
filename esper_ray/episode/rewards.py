"""The reward: a pure function of one frozen record per step, returning named components that sum to the reward."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

from esper_ray.episode.actions import Decision
from esper_ray.lifecycle import SeedStage
from esper_ray.tasks import RewardSettings

_STAGE_POTENTIAL = {
    SeedStage.GERMINATED: 1.0,
    SeedStage.TRAINING: 2.0,
    SeedStage.BLENDING: 3.5,
    SeedStage.SHADOWING: 4.5,
    SeedStage.PROBATIONARY: 5.5,
    SeedStage.FOSSILIZED: 6.0,
}
_POTENTIAL_PER_EPOCH = 0.3
_POTENTIAL_EPOCH_CAP = 2.0
_LOSS_CLIP = 5.0


@dataclass(frozen=True)
class SlotMoment:
    """What the reward reads of the slot at one decision point.

    Attributes:
        attributed: A, the accuracy attributed to the seed, in percentage points.
    """

    stage: SeedStage
    epochs_in_stage: int
    attributed: float


@dataclass(frozen=True)
class RewardInput:
    """One step: the decision taken at `before`, and the epoch that ended at `after`.

    Attributes:
        rolled_back: the governor rolled this epoch back.
        is_final: the episode ends with this step.
        kept_accuracy: validation accuracy of what is kept, percent; read on the final step only.
        loss_before: validation loss before the epoch, nats; before the first one `uniform_loss`.
        loss_after: validation loss after the epoch, nats.
        kept_loss: validation loss of what is kept, nats; read on the final step only.
        uniform_loss: loss of a uniform guess, nats.
        added_parameters: parameters of the fossilized seed, else 0; read on the final step only.
        host_parameters: parameters of the host alone.
    """

    before: SlotMoment
    decision: Decision
    after: SlotMoment
    rolled_back: bool
    is_final: bool
    kept_accuracy: float
    loss_before: float
    loss_after: float
    kept_loss: float
    uniform_loss: float
    added_parameters: int
    host_parameters: int


def attributed_accuracy(progress: float, contribution: float | None) -> float:
    """Returns A = min(max(0, progress), contribution), or the contribution where it is negative; 0 if unmeasured.

    Args:
        progress: validation accuracy gained since germination, points.
        contribution: counterfactual contribution, points.
    """
    if contribution is None:
        return 0.0
    return contribution if contribution < 0 else min(max(0.0, progress), contribution)


def growth_doublings(added_parameters: int, host_parameters: int) -> float:
    """Returns log2(1 + added ÷ host): by how many doublings the host has grown."""
    return log2(1.0 + added_parameters / host_parameters)


def stage_potential(moment: SlotMoment) -> float:
    """Returns Φ of a decision point: by stage, and a little for each epoch in it; 0 without a seed."""
    if moment.stage not in _STAGE_POTENTIAL:
        return 0.0
    return _STAGE_POTENTIAL[moment.stage] + min(_POTENTIAL_PER_EPOCH * moment.epochs_in_stage, _POTENTIAL_EPOCH_CAP)


def gain(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays each *change* of the attributed accuracy, so that the payments add up to what was kept.

    A falls to 0 with the seed, and at the end a seed that is not FOSSILIZED gives its A back. The stage potential
    (Ng, Harada and Russell, "Policy Invariance Under Reward Transformations", 1999) is 0 at the end and so adds
    nothing over an undiscounted episode. Kept accuracy and rent are settled at the end. Rent is weighed like
    attributed accuracy: a doubling costs what `rent` points of it earn, as in the score of record.
    """
    lost_at_end = step.is_final and step.after.stage != SeedStage.FOSSILIZED
    after_attributed = 0.0 if lost_at_end else step.after.attributed
    return _scaled(
        {
            "attributed": settings.gain_weight * (after_attributed - step.before.attributed),
            "kept_accuracy": settings.kept_accuracy_weight * step.kept_accuracy if step.is_final else 0.0,
            "rent": -settings.gain_weight * settings.rent * _doublings_at_end(step),
            **_common(step, settings),
        },
        settings,
    )


def loss(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays each improvement of the validation loss, in units of a typical one; a regression costs half as much.

    One epoch counts as five typical ones at most. What goes with a seed is taken back in full, neither clipped nor
    halved: the rise of the loss on CULL and, at the end, what a seed that is not FOSSILIZED had brought. At the end the
    share of the way from a uniform guess to the target loss is paid, and rent is settled: a doubling costs what `rent`
    typical improvements earn. The host's own progress is paid as well.
    """
    improvement = (step.loss_before - step.loss_after) / settings.typical_loss_delta
    if improvement > 0:
        improvement = min(_LOSS_CLIP, improvement)
    elif step.decision != Decision.CULL:
        improvement = max(-_LOSS_CLIP, improvement) / 2
    dropped = max(0.0, step.kept_loss - step.loss_after) / settings.typical_loss_delta if step.is_final else 0.0
    way = (step.uniform_loss - step.kept_loss) / (step.uniform_loss - settings.target_loss)
    return _scaled(
        {
            "loss": settings.loss_weight * improvement,
            "dropped": -settings.loss_weight * dropped,
            "target": settings.loss_weight * min(1.0, max(0.0, way)) if step.is_final else 0.0,
            "rent": -settings.loss_weight * settings.rent * _doublings_at_end(step),
            **_common(step, settings),
        },
        settings,
    )


def _common(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Returns the components that every mode with a stage potential has."""
    after_potential = 0.0 if step.is_final else stage_potential(step.after)
    costs = {
        Decision.GERMINATE: settings.germinate_cost,
        Decision.FOSSILIZE: settings.fossilize_cost,
        Decision.CULL: settings.cull_cost,
    }
    return {
        "potential": settings.potential_weight * (settings.discount * after_potential - stage_potential(step.before)),
        "intervention": -costs.get(step.decision, 0.0),
        "governor": -settings.rollback_penalty if step.rolled_back else 0.0,
    }


def _doublings_at_end(step: RewardInput) -> float:
    return growth_doublings(step.added_parameters, step.host_parameters) if step.is_final else 0.0


def _scaled(components: dict[str, float], settings: RewardSettings) -> dict[str, float]:
    return {name: settings.scale * value for name, value in components.items()}


REWARD_MODES: dict[str, Callable[[RewardInput, RewardSettings], dict[str, float]]] = {"gain": gain, "loss": loss}
