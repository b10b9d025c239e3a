"""Stages, transitions, gates, alpha: no tensors."""

import itertools
import math

import pytest

from esper_ray.lifecycle import (
    LifecycleSettings,
    SeedStage,
    SeedState,
    blending_alpha,
    check_gate,
    is_legal_transition,
)

S = SeedStage
SETTINGS = LifecycleSettings().resolved(max_epochs=25)


def test_the_stages_have_the_numbers_of_the_record_format() -> None:
    names = "UNKNOWN DORMANT GERMINATED TRAINING BLENDING SHADOWING PROBATIONARY FOSSILIZED CULLED EMBARGOED RESETTING"
    assert [stage.name for stage in SeedStage] == names.split()
    assert [stage.value for stage in SeedStage] == list(range(11))


def test_exactly_the_transitions_of_the_specification_are_legal() -> None:
    chain = [S.UNKNOWN, S.DORMANT, S.GERMINATED, S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED]
    expected = set(itertools.pairwise(chain))
    expected |= {(stage, S.CULLED) for stage in chain[2:7]}
    expected |= set(itertools.pairwise([S.CULLED, S.EMBARGOED, S.RESETTING, S.DORMANT]))
    legal = {pair for pair in itertools.product(SeedStage, repeat=2) if is_legal_transition(*pair)}
    assert legal == expected


def test_g0_asks_for_both_ids() -> None:
    assert check_gate(S.GERMINATED, SeedState("s", "norm"), SETTINGS).passed
    failed = check_gate(S.GERMINATED, SeedState("", "norm"), SETTINGS)
    assert (failed.gate, failed.passed, failed.score) == ("G0", False, 0.5)
    assert failed.checks_failed == ("seed id given ('')",)


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, True),
        ({"epochs_in_stage": 1}, False),
        ({"isolation_violations": 11}, False),
        ({"isolation_violations": 10}, True),
        ({"gradient_ratio": 0.049}, False),
        ({"gradient_ratio": None}, False),
        ({"gradient_ratio": float("nan")}, False),
    ],
)
def test_g2_asks_for_dwell_isolation_and_a_live_gradient(change: dict[str, object], passes: bool) -> None:
    state = SeedState("s", "norm", stage=S.TRAINING, epochs_in_stage=2, gradient_ratio=0.05)
    for name, value in change.items():
        setattr(state, name, value)
    assert check_gate(S.BLENDING, state, SETTINGS).passed is passes


def test_g2_asks_for_accuracy_only_if_told_to() -> None:
    state = SeedState("s", "norm", stage=S.TRAINING, epochs_in_stage=2, gradient_ratio=1.0)
    state.accuracy_at_stage_start, state.last_accuracy = 50.0, 50.4
    asking = SETTINGS.model_copy(update={"min_training_improvement": 0.5})
    assert check_gate(S.BLENDING, state, SETTINGS).passed
    assert not check_gate(S.BLENDING, state, asking).passed
    state.last_accuracy = 50.5
    assert check_gate(S.BLENDING, state, asking).passed


@pytest.mark.parametrize(
    ("contribution", "health", "passes"),
    [(None, 1.0, False), (0.0, 1.0, False), (-1.0, 1.0, False), (0.1, 1.0, True), (0.1, 0.2, False)],
)
def test_g5_asks_for_a_measured_gain_of_a_healthy_seed(contribution: float | None, health: float, passes: bool) -> None:
    state = SeedState("s", "norm", stage=S.PROBATIONARY, contribution=contribution, gradient_health=health)
    assert check_gate(S.FOSSILIZED, state, SETTINGS).passed is passes


def test_alpha_is_zero_before_the_ramp_one_at_its_end_and_rises_in_between() -> None:
    ramp = [blending_alpha(step, 5) for step in range(-1, 7)]
    assert ramp[:2] == [0.0, 0.0]
    assert ramp[-2:] == [1.0, 1.0]
    assert all(before < after for before, after in itertools.pairwise(ramp[1:7]))
    assert blending_alpha(2, 4) == 0.5


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_alpha_is_the_sigmoid_of_the_steps_from_the_middle_of_the_ramp(temperature: float) -> None:
    ramp = [blending_alpha(step, 5, temperature) for step in range(1, 5)]
    assert ramp == pytest.approx([1 / (1 + math.exp((2.5 - step) / temperature)) for step in range(1, 5)])


def test_the_gradient_ratio_starts_at_its_first_value_and_remembers() -> None:
    state = SeedState("s", "norm")
    state.record_gradient_ratio(0.4)
    assert state.gradient_ratio == 0.4
    state.record_gradient_ratio(1.4)
    assert state.gradient_ratio == pytest.approx(0.9 * 0.4 + 0.1 * 1.4)


def test_dwells_follow_from_the_length_of_the_episode() -> None:
    assert LifecycleSettings().resolved(75).training_dwell == 7
    assert LifecycleSettings().resolved(5).shadowing_dwell == 1
    assert LifecycleSettings(training_dwell=2, blending_steps=3, shadowing_dwell=1).epochs_to_probation(25) == 6
