"""`contribution`: the ancestor's reward, for comparison only. It has every pitfall that the other modes avoid."""

from math import log

from esper_ray.episode.actions import Decision
from esper_ray.episode.rewards.inputs import (
    RewardInput,
    intervention_cost,
    potential_payment,
    rollback_payment,
    stage_potential,
)
from esper_ray.lifecycle import SeedStage
from esper_ray.tasks import RewardSettings

_RENT_WEIGHT = 0.5
_RENT_CAP = 8.0
_PATIENCE = 5
"""Epochs in PROBATIONARY after which fossilizing is paid in full."""


def contribution(step: RewardInput, settings: RewardSettings) -> dict[str, float]:
    """Pays the attributed accuracy anew in every epoch, takes rent in every epoch, and judges each decision."""
    after = step.after
    rent = min(_RENT_WEIGHT * log(1 + after.seed_parameters / step.host_parameters), _RENT_CAP)
    return {
        "attributed": settings.gain_weight * after.attributed,
        "rent": -rent,
        "fossilize": _fossilize_payment(step) if step.decision == Decision.FOSSILIZE else 0.0,
        "cull": _cull_payment(step) if step.decision == Decision.CULL else 0.0,
        "final_accuracy": settings.kept_accuracy_weight * after.accuracy if step.is_final else 0.0,
        "potential": potential_payment(step, settings, end=stage_potential(after)),
        "intervention": intervention_cost(step, settings),
        "governor": rollback_payment(step, settings),
    }


def _fossilize_payment(step: RewardInput) -> float:
    contributed = step.before.contribution or 0.0
    if step.before.stage != SeedStage.PROBATIONARY or contributed <= 0:
        return -0.2
    return (0.5 + 0.1 * contributed) * min(1.0, step.before.epochs_in_stage / _PATIENCE)


def _cull_payment(step: RewardInput) -> float:
    contributed = step.before.contribution or 0.0
    if contributed < -0.5:
        return 0.3
    return 0.1 if contributed < 0 else -0.3 - 0.05 * contributed
