"""The gates between stages: conditions that a seed must meet to enter its next stage."""

from dataclasses import dataclass

from esper_ray.lifecycle.settings import LifecycleSettings
from esper_ray.lifecycle.stages import SeedStage
from esper_ray.lifecycle.state import SeedState

_GATE_INTO = {
    SeedStage.GERMINATED: "G0",
    SeedStage.TRAINING: "G1",
    SeedStage.BLENDING: "G2",
    SeedStage.SHADOWING: "G3",
    SeedStage.PROBATIONARY: "G4",
    SeedStage.FOSSILIZED: "G5",
}
_NO_GATE = "transition"


@dataclass(frozen=True)
class GateResult:
    """Result of a gate check.

    Attributes:
        gate: "G0" to "G5", or "transition" for a move that has no gate.
        passed: whether every check held.
        score: share of the checks that held, 0 to 1.
        checks_passed: names of the checks that held.
        checks_failed: names of the checks that did not, each with the value found.
        message: one line for a person.
    """

    gate: str
    passed: bool
    score: float
    checks_passed: tuple[str, ...]
    checks_failed: tuple[str, ...]
    message: str


def refused(target: SeedStage, reason: str) -> GateResult:
    """Returns the failed result of a move that the transition table does not know."""
    return GateResult(_GATE_INTO.get(target, _NO_GATE), False, 0.0, (), ("legal transition",), reason)


def check_gate(target: SeedStage, state: SeedState, settings: LifecycleSettings) -> GateResult:
    """Checks whether `state` may enter `target`. The legality of the transition is the caller's to check.

    Args:
        target: the stage to enter.
        state: the seed.
        settings: resolved settings (`LifecycleSettings.resolved`).
    """
    gate = _GATE_INTO.get(target, _NO_GATE)
    checks = _checks(target, state, settings)
    passed = tuple(name for name, (holds, _) in checks.items() if holds)
    failed = tuple(f"{name} ({found})" for name, (holds, found) in checks.items() if not holds)
    score = len(passed) / len(checks) if checks else 1.0
    message = f"{gate} into {target.name}: " + ("passed" if not failed else "failed: " + ", ".join(failed))
    return GateResult(gate, not failed, score, passed, failed, message)


def _checks(target: SeedStage, state: SeedState, settings: LifecycleSettings) -> dict[str, tuple[bool, str]]:
    """Returns check name → (holds, value found), in reading order."""
    match target:
        case SeedStage.GERMINATED:
            return {
                "seed id given": (bool(state.seed_id), repr(state.seed_id)),
                "blueprint id given": (bool(state.blueprint_id), repr(state.blueprint_id)),
            }
        case SeedStage.TRAINING:
            return {"seed is GERMINATED": (state.stage == SeedStage.GERMINATED, state.stage.name)}
        case SeedStage.BLENDING:
            return _training_checks(state, settings)
        case SeedStage.SHADOWING:
            return {
                f"≥ {settings.min_blending_epochs} epochs in BLENDING": (
                    state.epochs_in_stage >= settings.min_blending_epochs,
                    str(state.epochs_in_stage),
                ),
                f"alpha ≥ {settings.min_blending_alpha}": (
                    state.alpha >= settings.min_blending_alpha,
                    f"{state.alpha:.3f}",
                ),
            }
        case SeedStage.PROBATIONARY:
            return {"seed is SHADOWING": (state.stage == SeedStage.SHADOWING, state.stage.name)}
        case SeedStage.FOSSILIZED:
            contribution = state.contribution
            return {
                "contribution measured": (contribution is not None, str(contribution)),
                "contribution > 0": (contribution is not None and contribution > 0, str(contribution)),
                "seed healthy": (
                    state.gradient_health >= settings.min_healthy_gradient,
                    f"gradient health {state.gradient_health:.2f}",
                ),
            }
        case _:
            return {}


def _training_checks(state: SeedState, settings: LifecycleSettings) -> dict[str, tuple[bool, str]]:
    dwell = settings.training_dwell
    assert dwell is not None, "gates are checked against resolved settings"
    ratio = state.gradient_ratio
    checks = {
        f"≥ {dwell} epochs in TRAINING": (state.epochs_in_stage >= dwell, str(state.epochs_in_stage)),
        f"≤ {settings.max_isolation_violations} isolation violations": (
            state.isolation_violations <= settings.max_isolation_violations,
            str(state.isolation_violations),
        ),
        f"seed-gradient ratio ≥ {settings.min_gradient_ratio}": (
            ratio is not None and ratio >= settings.min_gradient_ratio,
            str(ratio),
        ),
    }
    if settings.min_training_improvement is not None:
        checks[f"accuracy gained ≥ {settings.min_training_improvement}"] = (
            state.improvement_in_stage >= settings.min_training_improvement,
            f"{state.improvement_in_stage:.2f}",
        )
    return checks
