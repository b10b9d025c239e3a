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
    loss,
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
            gain(RewardInput(before, decision, after, False, final, kept, 1.0, 1.0, 1.0, 2.3, added, 100), SETTINGS)
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
    step = RewardInput(KEPT[1], Decision.WAIT, KEPT[2], True, False, 0.0, 1.0, 1.0, 1.0, 2.3, 0, 100)
    full, half = gain(step, SETTINGS), gain(step, SETTINGS.model_copy(update={"scale": 0.5}))
    assert full["governor"] == -10.0
    assert {name: value / 2 for name, value in full.items()} == pytest.approx(half)
    assert gain(replace(step, rolled_back=False), SETTINGS)["governor"] == 0.0


# --- loss ---------------------------------------------------------------------------------------------------------

LOSS = RewardSettings(mode="loss", scale=1.0, typical_loss_delta=0.1, target_loss=1.0, potential_weight=0.0)
FOSSIL, LIVE = SlotMoment(S.FOSSILIZED, 3, 0.0), SlotMoment(S.PROBATIONARY, 3, 0.0)


def loss_step(before: float, after: float, decision: Decision = Decision.WAIT) -> dict[str, float]:
    return loss(RewardInput(EMPTY, decision, EMPTY, False, False, 0.0, before, after, after, 3.0, 0, 100), LOSS)


def last_step(after: float, kept: float, added: int = 0) -> dict[str, float]:
    moment = FOSSIL if added else LIVE
    return loss(RewardInput(moment, Decision.WAIT, moment, False, True, 0.0, after, after, kept, 3.0, added, 100), LOSS)


def test_an_improvement_of_the_loss_is_paid_in_typical_ones_and_a_regression_costs_half() -> None:
    assert loss_step(2.0, 1.9)["loss"] == pytest.approx(5.0)
    assert loss_step(2.0, 1.0)["loss"] == pytest.approx(25.0)
    assert loss_step(1.9, 2.0)["loss"] == pytest.approx(-2.5)
    assert loss_step(1.0, 9.0)["loss"] == pytest.approx(-12.5)


def test_the_way_to_the_target_and_the_rent_are_settled_at_the_end() -> None:
    assert last_step(2.0, 2.0)["target"] == pytest.approx(2.5)
    assert last_step(0.5, 0.5)["target"] == pytest.approx(5.0)
    assert last_step(3.5, 3.5)["target"] == 0.0
    assert last_step(2.0, 2.0, added=100)["rent"] == pytest.approx(-5.0)
    assert loss_step(2.0, 2.0)["target"] == loss_step(2.0, 2.0)["rent"] == 0.0


def test_what_goes_with_a_seed_is_taken_back_in_full() -> None:
    """Neither culling after a gain nor dropping a seed at the end leaves any of its pay."""
    grown = sum(sum(loss_step(before, before - 0.2).values()) for before in (3.0, 2.8, 2.6, 2.4, 2.2))
    assert grown == pytest.approx(50.0)
    culled = loss_step(2.0, 3.0, Decision.CULL)
    assert culled["loss"] == pytest.approx(-50.0)
    dropped = last_step(2.0, 3.0)
    assert dropped["dropped"] == pytest.approx(-50.0)
    kept, never_kept = last_step(2.0, 2.0, added=10), last_step(2.0, 3.0)
    assert sum(kept.values()) > sum(never_kept.values()) + 40
    assert last_step(2.0, 1.9)["dropped"] == 0.0


def test_every_component_of_the_loss_reward_is_scaled() -> None:
    step = RewardInput(LIVE, Decision.CULL, EMPTY, True, True, 0.0, 2.0, 2.1, 2.3, 3.0, 10, 100)
    full, half = loss(step, LOSS), loss(step, LOSS.model_copy(update={"scale": 0.5}))
    assert {name: value / 2 for name, value in full.items()} == pytest.approx(half)
    assert full["governor"] == -10.0
