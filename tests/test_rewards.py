"""The gain reward: components that sum, payments that telescope, pitfalls that stay closed."""

import itertools
from dataclasses import replace

import pytest

from esper_ray.episode.actions import Decision
from esper_ray.episode.rewards import (
    RewardInput,
    SlotMoment,
    attributed_accuracy,
    gain,
    growth_doublings,
    stage_potential,
)
from esper_ray.lifecycle import SeedStage
from esper_ray.tasks import RewardSettings

S = SeedStage
SETTINGS = RewardSettings(scale=1.0)
EMPTY = SlotMoment(S.DORMANT, 0, 0.0)


def episode(
    moments: list[SlotMoment], decisions: dict[int, Decision], kept: float = 60.0, added: int = 0
) -> list[dict[str, float]]:
    """The reward components of an episode that goes through the given decision points."""
    steps = []
    for i, (before, after) in enumerate(itertools.pairwise(moments)):
        final = i == len(moments) - 2
        decision = decisions.get(i, Decision.WAIT)
        steps.append(
            gain(RewardInput(before, decision, after, False, final, kept, 1.0, 1.0, 2.3, added, 100), SETTINGS)
        )
    return steps


def total(steps: list[dict[str, float]], name: str) -> float:
    return sum(step[name] for step in steps)


def test_attributed_accuracy_is_the_lesser_of_progress_and_contribution() -> None:
    assert attributed_accuracy(5.0, 30.0) == 5.0
    assert attributed_accuracy(30.0, 5.0) == 5.0
    assert attributed_accuracy(-4.0, 5.0) == 0.0
    assert attributed_accuracy(5.0, -2.0) == -2.0
    assert attributed_accuracy(5.0, None) == 0.0


def test_growth_is_counted_in_doublings() -> None:
    assert growth_doublings(0, 100) == 0.0
    assert growth_doublings(100, 100) == 1.0
    assert growth_doublings(300, 100) == 2.0


KEPT = [
    EMPTY,
    SlotMoment(S.TRAINING, 1, 0.0),
    SlotMoment(S.BLENDING, 1, 4.0),
    SlotMoment(S.SHADOWING, 0, 7.0),
    SlotMoment(S.PROBATIONARY, 0, 9.0),
    SlotMoment(S.FOSSILIZED, 1, 8.0),
    SlotMoment(S.FOSSILIZED, 2, 10.0),
]
GERMINATE_AND_FOSSILIZE = {0: Decision.GERMINATE, 4: Decision.FOSSILIZE}


def test_payments_add_up_to_what_was_kept() -> None:
    steps = episode(KEPT, GERMINATE_AND_FOSSILIZE, kept=70.0, added=100)
    assert total(steps, "attributed") == pytest.approx(3.0 * 10.0)
    assert total(steps, "kept_accuracy") == pytest.approx(0.05 * 70.0)
    assert total(steps, "rent") == pytest.approx(-3.0 * 1.0)
    assert total(steps, "intervention") == pytest.approx(-0.03)


def test_the_stage_potential_adds_nothing_over_an_episode_whatever_its_stages() -> None:
    culled = [*KEPT[:4], SlotMoment(S.EMBARGOED, 0, 0.0), EMPTY, SlotMoment(S.TRAINING, 3, 0.0)]
    for moments in (KEPT, culled, [EMPTY] * 5):
        assert total(episode(moments, {}), "potential") == pytest.approx(0.0)
    assert stage_potential(KEPT[4]) > stage_potential(KEPT[1]) > stage_potential(EMPTY) == 0.0


def test_a_seed_that_is_not_fossilized_gives_everything_back() -> None:
    live = [*KEPT[:5], SlotMoment(S.PROBATIONARY, 1, 20.0)]
    assert total(episode(live, {0: Decision.GERMINATE}), "attributed") == pytest.approx(0.0)


def test_germinating_and_culling_over_and_over_only_costs() -> None:
    churn = [EMPTY, SlotMoment(S.BLENDING, 1, 6.0), SlotMoment(S.EMBARGOED, 0, 0.0)] * 3 + [EMPTY]
    decisions = {i: Decision.GERMINATE if i % 3 == 0 else Decision.CULL for i in range(9) if i % 3 != 2}
    steps = episode(churn, decisions)
    waiting = episode([EMPTY] * 10, {})
    assert sum(sum(s.values()) for s in steps) < sum(sum(s.values()) for s in waiting)


def test_holding_a_gain_is_not_paid_again() -> None:
    held = KEPT[:5] + [KEPT[4]] * 10 + [SlotMoment(S.FOSSILIZED, 0, 9.0)]
    at_once = [*KEPT[:5], SlotMoment(S.FOSSILIZED, 0, 9.0)]
    assert total(episode(held, {}), "attributed") == pytest.approx(total(episode(at_once, {}), "attributed"))


def test_a_seed_without_effect_is_not_paid_for_the_host_s_own_progress() -> None:
    assert attributed_accuracy(progress=25.0, contribution=0.0) == 0.0


def test_a_rollback_costs_its_penalty_and_the_scale_applies_to_every_component() -> None:
    step = RewardInput(KEPT[1], Decision.WAIT, KEPT[2], True, False, 0.0, 1.0, 1.0, 2.3, 0, 100)
    full, half = gain(step, SETTINGS), gain(step, SETTINGS.model_copy(update={"scale": 0.5}))
    assert full["governor"] == -10.0
    assert {name: value / 2 for name, value in full.items()} == pytest.approx(half)
    assert gain(replace(step, rolled_back=False), SETTINGS)["governor"] == 0.0
