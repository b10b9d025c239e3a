"""Inputs of the reward, and computations on them that several modes share."""

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
_FOLLOWED_CHANGES = 5.0


@dataclass(frozen=True)
class RewardState:
    """Inputs of the reward at one decision point. Accuracies in percent, losses in nats.

    Attributes:
        stage: the slot's stage.
        epochs_in_stage: completed epochs in it.
        attributed: A, the accuracy attributed to the seed, points; see `attributed_accuracy`.
        contribution: counterfactual contribution of the seed, points; None while it is unmeasured.
        seed_parameters: parameters of the module in the slot, live or fossilized.
        accuracy: validation accuracy; 0 before the first epoch.
        twin_accuracy: that of the WAIT-only twin of the same host seed; 0 unless the mode is `paired`.
        loss: validation loss, as far as it has been followed: see `followed_loss`; before the first epoch that of a
            uniform guess.
        best_loss: lowest such loss so far, this one included.
    """

    stage: SeedStage = SeedStage.DORMANT
    epochs_in_stage: int = 0
    attributed: float = 0.0
    contribution: float | None = None
    seed_parameters: int = 0
    accuracy: float = 0.0
    twin_accuracy: float = 0.0
    loss: float = 0.0
    best_loss: float = 0.0


@dataclass(frozen=True)
class RewardInput:
    """One step: the decision taken at `before`, and the epoch that ended at `after`.

    Attributes:
        rolled_back: the governor rolled this epoch back.
        is_final: the episode ends with this step.
        kept_accuracy: validation accuracy of what is kept, percent; read on the final step only.
        kept_loss: validation loss of what is kept, nats; read on the final step only.
        uniform_loss: loss of a uniform guess, nats.
        added_parameters: parameters of the fossilized seed, else 0; read on the final step only.
        host_parameters: parameters of the host alone.
    """

    before: RewardState
    decision: Decision
    after: RewardState
    rolled_back: bool
    is_final: bool
    kept_accuracy: float
    kept_loss: float
    uniform_loss: float
    added_parameters: int
    host_parameters: int

    @property
    def doublings_at_end(self) -> float:
        """By how many doublings the host has grown for good; 0 until the final step."""
        return growth_doublings(self.added_parameters, self.host_parameters) if self.is_final else 0.0


def attributed_accuracy(progress: float, contribution: float | None) -> float:
    """Returns A = min(max(0, progress), contribution), or the contribution where it is negative; 0 if unmeasured.

    Args:
        progress: validation accuracy gained since germination, points; counted from the highest accuracy that could
            have been kept until then, so that what a cull has cost is not paid for again.
        contribution: counterfactual contribution, points.
    """
    if contribution is None:
        return 0.0
    return contribution if contribution < 0 else min(max(0.0, progress), contribution)


def followed_loss(before: float, loss: float, settings: RewardSettings) -> float:
    """Returns the loss that a reward counts after `before`: it moves by at most five typical changes an epoch."""
    most = _FOLLOWED_CHANGES * settings.typical_loss_delta
    return before + min(most, max(-most, loss - before))


def growth_doublings(added_parameters: int, host_parameters: int) -> float:
    """Returns log2(1 + added ÷ host): by how many doublings the host has grown."""
    return log2(1.0 + added_parameters / host_parameters)


def score_of_record(kept_accuracy: float, added_parameters: int, host_parameters: int, rent: float) -> float:
    """Returns the score of record: kept accuracy (percent) − `rent` points for each doubling of the host."""
    return kept_accuracy - rent * growth_doublings(added_parameters, host_parameters)


def stage_potential(state: RewardState) -> float:
    """Returns Φ of a decision point: by stage, and a little for each epoch in it; 0 without a seed."""
    if state.stage not in _STAGE_POTENTIAL:
        return 0.0
    return _STAGE_POTENTIAL[state.stage] + min(_POTENTIAL_PER_EPOCH * state.epochs_in_stage, _POTENTIAL_EPOCH_CAP)


def potential_payment(step: RewardInput, settings: RewardSettings, end: float = 0.0) -> float:
    """Returns weight · (γΦ' − Φ), with Φ' = `end` on the final step.

    With `end` 0 it adds nothing over an undiscounted episode (Ng, Harada and Russell, "Policy Invariance Under Reward
    Transformations", 1999).
    """
    after = end if step.is_final else stage_potential(step.after)
    return settings.potential_weight * (settings.discount * after - stage_potential(step.before))


def intervention_cost(step: RewardInput, settings: RewardSettings) -> float:
    """Returns the cost of the decision itself, as a payment ≤ 0."""
    costs = {
        Decision.GERMINATE: settings.germinate_cost,
        Decision.FOSSILIZE: settings.fossilize_cost,
        Decision.CULL: settings.cull_cost,
    }
    return -costs.get(step.decision, 0.0)


def rollback_payment(step: RewardInput, settings: RewardSettings) -> float:
    """Returns the cost of a rollback, as a payment ≤ 0."""
    return -settings.rollback_penalty if step.rolled_back else 0.0
