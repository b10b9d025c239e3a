"""The five reward modes: what each pays, and the known ways to earn for nothing, which only `contribution` leaves open.

Episodes are written as a string of stages, one letter for each decision point (the first is before any epoch), and the
curves of accuracy (percent) and loss (nats) over the same points. Without a seed, the host comes to 60 % and 2 nats.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args

import pytest
from fast_tasks import make_fast_task
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esper_ray.episode import EpisodeRecord, MorphogenesisEnv, run_ppo_episode
from esper_ray.episode.actions import Decision
from esper_ray.episode.rewards import (
    REWARD_MODES,
    RewardInput,
    RewardState,
    attributed_accuracy,
    followed_loss,
    growth_doublings,
    reward_components,
    score_of_record,
    stage_potential,
)
from esper_ray.lifecycle import ACTIVE_STAGES, SeedStage
from esper_ray.policies import RandomPolicy
from esper_ray.tasks import RewardSettings
from esper_ray.tasks.settings import RewardMode

S = SeedStage
STAGES = {".": S.DORMANT, "T": S.TRAINING, "B": S.BLENDING, "S": S.SHADOWING, "P": S.PROBATIONARY}
STAGES |= {"F": S.FOSSILIZED, "E": S.EMBARGOED}
UNIFORM_LOSS = 3.0
PARAMETERS = 100
"""Of the host, and of the seed: to keep it is one doubling."""

WAITING = "................."
HOST = [min(60.0, 12.0 * i) for i in range(17)]
HOST_LOSS = [max(2.0, UNIFORM_LOSS - 0.2 * i) for i in range(17)]
EARLY, LATE, NEVER = "......TTBBSPFFFFF", "......TTBBSPPPPPF", "......TTBBSPPPPPP"
HELPED = [*HOST[:8], 65.0, 70.0, 75.0, *[80.0] * 6]
HELPED_LOSS = [*HOST_LOSS[:8], 1.8, 1.6, 1.4, *[1.2] * 6]
CHURN, DRIFT = "......TTBBE.TTBBE", "..TTBBSPFFFFFFFFF"

HONEST = ("gain", "loss", "sparse", "paired")
every_honest_mode = pytest.mark.parametrize("mode", HONEST)
every_mode = pytest.mark.parametrize("mode", REWARD_MODES)


def settings(mode: str, **given: Any) -> RewardSettings:
    unscaled: dict[str, Any] = {"scale": 1.0, "typical_loss_delta": 0.1, "target_loss": 1.0}
    return RewardSettings(mode=mode, **(unscaled | given))  # type: ignore[arg-type]


def episode(
    stages: str,
    accuracy: Sequence[float] = HOST,
    loss: Sequence[float] = HOST_LOSS,
    contribution: float = 30.0,
    without_seed: tuple[float, float] = (60.0, 2.0),
    twin: Sequence[float] = HOST,
    rolled_back: int | None = None,
    typical_loss_delta: float = 0.1,
) -> list[RewardInput]:
    """The steps of an episode. A decision is what its change of stage asks for, unless that epoch was rolled back."""
    moments: list[RewardState] = []
    base = best_kept = 0.0
    followed = best_loss = UNIFORM_LOSS
    counts = settings("loss", typical_loss_delta=typical_loss_delta)
    for i, stage in enumerate(STAGES[letter] for letter in stages):
        last = moments[-1] if moments else RewardState()
        seed = stage == S.FOSSILIZED or stage in ACTIVE_STAGES
        base = best_kept if seed and not last.seed_parameters else base
        measured = contribution if seed and stage != S.TRAINING else None
        best_kept = max(best_kept, accuracy[i] - (0.0 if stage == S.FOSSILIZED else measured or 0.0))
        followed = followed_loss(followed, loss[i], counts) if i else followed
        best_loss = min(best_loss, followed)
        moment = RewardState(
            stage=stage,
            epochs_in_stage=last.epochs_in_stage + 1 if stage == last.stage else 0,
            attributed=attributed_accuracy(accuracy[i] - base, measured),
            contribution=measured,
            seed_parameters=PARAMETERS if seed else 0,
            accuracy=accuracy[i],
            twin_accuracy=twin[i],
            loss=followed,
            best_loss=best_loss,
        )
        moments.append(moment)
    dropped = moments[-1].stage in ACTIVE_STAGES
    kept_accuracy, kept_loss = without_seed if dropped else (accuracy[len(stages) - 1], loss[len(stages) - 1])
    return [
        RewardInput(
            before=before,
            decision=Decision.WAIT if i == rolled_back else decision_between(before, after),
            after=after,
            rolled_back=i == rolled_back,
            is_final=i == len(stages) - 1,
            kept_accuracy=kept_accuracy,
            kept_loss=kept_loss,
            uniform_loss=UNIFORM_LOSS,
            added_parameters=PARAMETERS if moments[-1].stage == S.FOSSILIZED else 0,
            host_parameters=PARAMETERS,
        )
        for i, (before, after) in enumerate(itertools.pairwise(moments), start=1)
    ]


def decision_between(before: RewardState, after: RewardState) -> Decision:
    if after.seed_parameters and not before.seed_parameters:
        return Decision.GERMINATE
    if before.seed_parameters and not after.seed_parameters:
        return Decision.CULL
    return Decision.FOSSILIZE if before.stage != after.stage == S.FOSSILIZED else Decision.WAIT


def component(steps: list[RewardInput], mode: str, name: str, **given: Any) -> float:
    return sum(reward_components(step, settings(mode, **given))[name] for step in steps)


def earned(steps: list[RewardInput], mode: str, **given: Any) -> float:
    return sum(sum(reward_components(step, settings(mode, **given)).values()) for step in steps)


# --- what the modes have in common --------------------------------------------------------------------------------


def test_attributed_accuracy_is_the_lesser_of_progress_and_contribution() -> None:
    assert attributed_accuracy(5.0, 30.0) == 5.0
    assert attributed_accuracy(30.0, 5.0) == 5.0
    assert attributed_accuracy(-4.0, 5.0) == 0.0
    assert attributed_accuracy(5.0, -2.0) == -2.0
    assert attributed_accuracy(5.0, None) == 0.0


def test_the_score_of_record_takes_its_rent_for_each_doubling() -> None:
    assert [growth_doublings(added, 100) for added in (0, 100, 300)] == [0.0, 1.0, 2.0]
    assert score_of_record(80.0, 0, 100, rent=1.0) == 80.0
    assert score_of_record(80.0, 300, 100, rent=1.0) == 78.0
    assert score_of_record(80.0, 300, 100, rent=2.5) == 75.0


def test_every_mode_that_can_be_configured_exists_and_no_other() -> None:
    assert set(REWARD_MODES) == set(get_args(RewardMode))


@every_mode
def test_one_scale_applies_to_every_component(mode: str) -> None:
    for steps in (episode(EARLY, HELPED, HELPED_LOSS), episode(CHURN), episode(NEVER, rolled_back=16)):
        for step in steps:
            full, half = (reward_components(step, settings(mode, scale=scale)) for scale in (1.0, 0.5))
            assert {name: value / 2 for name, value in full.items()} == pytest.approx(half)


@every_mode
def test_unless_given_the_scale_is_the_mode_s_own_and_brings_returns_to_order_1_to_10(mode: str) -> None:
    steps = episode(EARLY, HELPED, HELPED_LOSS)
    own = settings(mode, scale=None)
    assert 1.0 <= earned(steps, mode, scale=None) <= 10.0
    assert earned(steps, mode, scale=None) == pytest.approx(own.factor * earned(steps, mode))


@every_mode
def test_a_reward_follows_from_its_frozen_input_alone(mode: str) -> None:
    steps = episode(EARLY, HELPED, HELPED_LOSS)
    once = [reward_components(step, settings(mode)) for step in steps]
    again = [reward_components(step, settings(mode)) for step in reversed(episode(EARLY, HELPED, HELPED_LOSS))]
    assert once == again[::-1]
    assert len({tuple(components) for components in once}) == 1, "every step has the same components"
    for record, field in ((steps[0], "is_final"), (steps[0].before, "loss"), (settings(mode), "rent")):
        with pytest.raises((FrozenInstanceError, ValueError), match=r"frozen|cannot assign"):
            setattr(record, field, 1.0)


@every_mode
def test_a_rollback_costs_its_penalty_and_nothing_else(mode: str) -> None:
    step = episode(NEVER, HELPED, HELPED_LOSS)[9]
    smooth, rolled_back = (reward_components(replace(step, rolled_back=was), settings(mode)) for was in (False, True))
    assert smooth | {"governor": -10.0} == rolled_back
    assert smooth["governor"] == 0.0
    assert reward_components(replace(step, rolled_back=True), settings(mode, rollback_penalty=4.0))["governor"] == -4.0


# --- what each mode pays ------------------------------------------------------------------------------------------


def test_contribution_pays_attributed_accuracy_and_takes_rent_in_every_epoch() -> None:
    """Blended from point 8 on, 5 to 20 points above the accuracy at germination; a seed in the slot from point 6 on."""
    steps = episode(NEVER, HELPED, HELPED_LOSS)
    assert component(steps, "contribution", "attributed") == pytest.approx(3.0 * (5 + 10 + 15 + 6 * 20))
    assert component(episode(NEVER, contribution=-2.0), "contribution", "attributed") == pytest.approx(3.0 * 9 * -2)
    assert component(steps, "contribution", "final_accuracy") == pytest.approx(0.05 * 80.0), "whether kept or not"
    assert component(steps, "contribution", "rent") == pytest.approx(-11 * 0.5 * math.log(2.0))
    giant = replace(steps[-1], after=replace(steps[-1].after, seed_parameters=PARAMETERS * 10**9))
    assert reward_components(giant, settings("contribution"))["rent"] == -8.0


def test_contribution_pays_for_fossilizing_what_contributes_and_for_culling_what_harms() -> None:
    fossilize, cull = episode(EARLY)[11], episode(CHURN)[9]
    assert (fossilize.decision, cull.decision) == (Decision.FOSSILIZE, Decision.CULL)

    def paid(step: RewardInput, name: str, **before: Any) -> float:
        return reward_components(replace(step, before=RewardState(**before)), settings("contribution"))[name]

    for epochs, contributed, due in (
        (1, 10.0, 1.5 / 5),
        (5, 10.0, 1.5),
        (9, 10.0, 1.5),
        (5, 0.0, -0.2),
        (5, None, -0.2),
    ):
        before = {"stage": S.PROBATIONARY, "epochs_in_stage": epochs, "contribution": contributed}
        assert paid(fossilize, "fossilize", **before) == pytest.approx(due)
        assert paid(cull, "fossilize", **before) == 0.0
    assert paid(fossilize, "fossilize", stage=S.SHADOWING, epochs_in_stage=5, contribution=10.0) == -0.2
    for contributed, due in ((-0.6, 0.3), (-0.5, 0.1), (-0.1, 0.1), (0.0, -0.3), (None, -0.3), (10.0, -0.8)):
        before = {"stage": S.BLENDING, "contribution": contributed}
        assert paid(cull, "cull", **before) == pytest.approx(due)
        assert paid(fossilize, "cull", **before) == 0.0


def test_the_stage_potential_rises_with_stage_and_stay() -> None:
    by_stage = {S.GERMINATED: 1, S.TRAINING: 2, S.BLENDING: 3.5, S.SHADOWING: 4.5, S.PROBATIONARY: 5.5, S.FOSSILIZED: 6}
    for stage in SeedStage:
        assert stage_potential(RewardState(stage=stage)) == by_stage.get(stage, 0.0)
    assert stage_potential(RewardState(stage=S.TRAINING, epochs_in_stage=3)) == pytest.approx(2.9)
    assert stage_potential(RewardState(stage=S.TRAINING, epochs_in_stage=30)) == 4.0
    assert stage_potential(RewardState(stage=S.DORMANT, epochs_in_stage=30)) == 0.0


def test_the_payments_of_gain_add_up_to_what_was_kept() -> None:
    steps = episode(EARLY, HELPED)
    assert component(steps, "gain", "attributed") == pytest.approx(3.0 * 20.0)
    assert component(steps, "gain", "kept_accuracy") == pytest.approx(0.05 * 80.0)
    assert component(steps, "gain", "rent", rent=2.0) == pytest.approx(-3.0 * 2.0)
    assert component(steps, "gain", "intervention") == pytest.approx(-0.02 - 0.01)
    assert component(episode(CHURN), "gain", "intervention") == pytest.approx(2 * (-0.02 - 0.005))
    assert component(episode(NEVER, HELPED), "gain", "attributed") == pytest.approx(0.0)
    assert component(episode(NEVER, HELPED), "gain", "kept_accuracy") == pytest.approx(0.05 * 60.0)


def loss_step(
    best: float, before: float, after: float, decision: Decision = Decision.WAIT, kept: float | None = None
) -> dict[str, float]:
    """What a step pays whose loss is measured as `after`; with `kept`, on the final step, as what is kept."""
    followed = followed_loss(before, after, settings("loss"))
    moments = (RewardState(loss=before, best_loss=best), RewardState(loss=followed, best_loss=min(best, followed)))
    is_final, kept_loss = kept is not None, after if kept is None else kept
    step = RewardInput(moments[0], decision, moments[1], False, is_final, 0.0, kept_loss, UNIFORM_LOSS, 0, PARAMETERS)
    return reward_components(step, settings("loss"))


def test_a_loss_is_followed_by_five_typical_changes_an_epoch_at_most() -> None:
    for before, loss, followed in (
        (2.0, 1.9, 1.9),
        (2.0, 2.3, 2.3),
        (2.0, 1.0, 1.5),
        (2.0, 9.0, 2.5),
        (2.0, math.inf, 2.5),
    ):
        assert followed_loss(before, loss, settings("loss")) == pytest.approx(followed)
    assert followed_loss(2.0, 1.0, settings("loss", typical_loss_delta=0.01)) == pytest.approx(1.95)


def test_loss_pays_improvements_in_typical_ones_and_regressions_cost_half() -> None:
    for best, before, after, paid in (
        (2.0, 2.0, 1.9, 5.0),
        (2.0, 2.0, 1.0, 25.0),
        (1.9, 1.9, 2.0, -2.5),
        (1.0, 1.0, 9.0, -12.5),
        (1.9, 2.0, 1.9, 2.5),
        (1.9, 2.0, 1.8, 2.5 + 5.0),
    ):
        for decision in Decision:
            components = loss_step(best, before, after, decision)
            assert components["loss"] == pytest.approx(paid), (best, before, after)
            assert components["settled"] == 0.0


def test_on_the_final_step_loss_counts_what_is_kept_in_full_and_charges_the_other_half_of_what_is_left() -> None:
    for best, before, kept, paid, settled in (
        (2.0, 2.0, 1.0, 50.0, 0.0),
        (1.0, 1.0, 3.0, -50.0, -50.0),
        (1.0, 1.2, 1.2, 0.0, -5.0),
        (1.0, 1.2, 1.1, 2.5, -2.5),
        (1.0, 1.2, 0.9, 5.0 + 5.0, 0.0),
    ):
        components = loss_step(best, before, after=0.3, kept=kept)
        assert components["loss"] == pytest.approx(paid), (best, before, kept)
        assert components["settled"] == pytest.approx(settled), (best, before, kept)


LOSSES = st.one_of(st.floats(0.0, 6.0), st.floats(0.0, 1e4))


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    course=st.lists(st.tuples(st.sampled_from(sorted(STAGES)), LOSSES), min_size=2, max_size=30),
    without_seed=LOSSES,
    typical=st.floats(1e-3, 10.0),
    weight=st.floats(0.1, 10.0),
)
def test_loss_adds_up_to_the_way_from_a_uniform_guess_to_what_is_kept_whatever_happened_in_between(
    course: list[tuple[str, float]], without_seed: float, typical: float, weight: float
) -> None:
    stages, losses = "".join(stage for stage, _ in course), [loss for _, loss in course]
    steps = episode(
        stages,
        [0.0] * len(losses),
        losses,
        without_seed=(0.0, without_seed),
        twin=[0.0] * len(losses),
        typical_loss_delta=typical,
    )
    kept = without_seed if STAGES[stages[-1]] in ACTIVE_STAGES else losses[-1]
    paid = sum(
        component(steps, "loss", name, typical_loss_delta=typical, loss_weight=weight) for name in ("loss", "settled")
    )
    assert paid == pytest.approx(weight * (UNIFORM_LOSS - kept) / typical, rel=1e-6, abs=1e-6 * weight / typical)


def test_loss_settles_the_way_to_the_target_the_rent_and_what_is_dropped_at_the_end() -> None:
    for end, paid in ((2.0, 2.5), (0.5, 5.0), (3.5, 0.0)):
        assert component(episode(WAITING, loss=[*HOST_LOSS[:-1], end]), "loss", "target") == pytest.approx(paid)
    kept, dropped = episode(EARLY, HELPED, HELPED_LOSS), episode(NEVER, HELPED, HELPED_LOSS)
    assert component(kept, "loss", "target") == pytest.approx(5.0 * 0.9)
    assert component(dropped, "loss", "target") == pytest.approx(5.0 * 0.5)
    assert component(kept, "loss", "settled") == 0.0
    assert component(kept, "loss", "loss") == pytest.approx(5.0 * 18)
    assert component(dropped, "loss", "settled") == pytest.approx(-5.0 * 8 / 2)
    assert component(dropped[-1:], "loss", "loss") == pytest.approx(-5.0 * 8 / 2)
    assert component(dropped[:-1], "loss", "loss") == pytest.approx(5.0 * 18)
    assert component(kept, "loss", "rent", rent=2.0) == pytest.approx(-5.0 * 2.0)
    assert component(dropped, "loss", "rent") == 0.0


def test_sparse_pays_the_score_of_record_on_the_last_step_and_nothing_before() -> None:
    for stages, kept, added in ((EARLY, 80.0, PARAMETERS), (NEVER, 60.0, 0), (CHURN, 80.0, 0)):
        steps = episode(stages, HELPED)
        assert earned(steps[:-1], "sparse") == 0.0
        assert earned(steps, "sparse", rent=2.0) == pytest.approx(score_of_record(kept, added, PARAMETERS, 2.0))


@pytest.mark.parametrize("middle", [HOST[1:16], HELPED[1:16], [7.0, 91.0, 3.0, 60.0, 0.0] * 3])
def test_paired_adds_up_to_what_was_kept_over_the_twin_whatever_happened_in_between(middle: list[float]) -> None:
    twin = [0.0, *[50.0, 20.0, 80.0] * 5, 55.0]
    accuracy = [0.0, *middle, 70.0]
    for stages, kept, doublings in ((WAITING, 70.0, 0), (EARLY, 70.0, 1), (NEVER, 60.0, 0), (CHURN, 70.0, 0)):
        steps = episode(stages, accuracy, twin=twin)
        assert earned(steps, "paired", rent=2.0) == pytest.approx(kept - 55.0 - 2.0 * doublings)


# --- the pitfalls: what must not pay ------------------------------------------------------------------------------


@every_honest_mode
def test_a_seed_that_helps_is_paid(mode: str) -> None:
    assert earned(episode(EARLY, HELPED, HELPED_LOSS), mode) > earned(episode(WAITING), mode) + 10


@every_honest_mode
def test_a_seed_that_adds_nothing_is_not_paid_for_the_host_s_own_progress(mode: str) -> None:
    assert earned(episode(DRIFT, contribution=0.0), mode, rent=0.0) <= earned(episode(WAITING), mode)


@pytest.mark.parametrize("mode", [mode for mode in HONEST if mode != "gain"])
def test_a_seed_that_the_host_only_comes_to_depend_on_is_not_paid_for_the_host_s_own_progress(mode: str) -> None:
    assert earned(episode(DRIFT, contribution=30.0), mode, rent=0.0) <= earned(episode(WAITING), mode)


def test_gain_still_pays_for_the_host_s_own_progress_up_to_what_the_host_comes_to_depend_on_the_seed_for() -> None:
    """Its known weakness: the lesser of contribution and progress since germination, at the weight of a true gain."""
    waiting = earned(episode(WAITING), "gain")
    for depends, paid in ((30.0, 30.0), (48.0, 48.0), (90.0, 60.0 - 12.0)):
        drift = episode(DRIFT, contribution=depends)
        assert component(drift, "gain", "attributed") == pytest.approx(3.0 * paid)
        assert earned(drift, "gain", rent=0.0) - waiting == pytest.approx(3.0 * paid - 0.02 - 0.01)
    dropped = episode(DRIFT.replace("F", "P"), contribution=30.0)
    assert earned(dropped, "gain") <= waiting, "unless the seed is kept, it is all given back"


@every_honest_mode
def test_holding_a_gain_is_not_paid_again(mode: str) -> None:
    early, late, never = (earned(episode(stages, HELPED, HELPED_LOSS), mode) for stages in (EARLY, LATE, NEVER))
    assert late <= early + 1e-9
    assert never < early - 10
    assert never <= earned(episode(WAITING), mode)


def churning(accuracy: list[float], loss: list[float]) -> list[RewardInput]:
    """Two seeds, each culled after two epochs of blending with these curves; the host is then what it was."""
    curves = (
        [*host[:8], *blended, *host[10:14], *blended, host[16]]
        for host, blended in ((HOST, accuracy), (HOST_LOSS, loss))
    )
    return episode(CHURN, *curves, contribution=accuracy[-1] - 60.0)


@every_honest_mode
def test_germinating_and_culling_over_and_over_earns_no_more_than_waiting(mode: str) -> None:
    for helpful_or_harmful in (churning([65.0, 70.0], [1.8, 1.6]), churning([55.0, 50.0], [2.2, 2.4])):
        assert earned(helpful_or_harmful, mode) <= earned(episode(WAITING), mode)


@every_honest_mode
def test_a_seed_that_is_culled_once_its_gain_has_faded_earns_no_more_than_waiting(mode: str) -> None:
    assert earned(churning([70.0, 60.0], [1.6, 2.0]), mode) <= earned(episode(WAITING), mode)


@every_honest_mode
def test_a_seed_that_is_dropped_after_a_worse_last_epoch_earns_no_more_than_waiting(mode: str) -> None:
    steps = episode(NEVER, [*HELPED[:16], 75.0], [*HELPED_LOSS[:16], 1.6])
    assert earned(steps, mode) <= earned(episode(WAITING), mode)


@every_honest_mode
def test_a_crash_after_a_cull_is_not_paid_for_when_the_host_recovers_around_the_next_seed(mode: str) -> None:
    accuracy = [*HOST[:10], 30.0, 30.0, 40.0, 50.0, 60.0, 60.0, 60.0]
    loss = [*HOST_LOSS[:10], 2.6, 2.6, 2.4, 2.2, 2.0, 2.0, 2.0]
    assert earned(episode("......TTBBE.TBSPF", accuracy, loss), mode) <= earned(episode(WAITING), mode)


@every_honest_mode
def test_a_seed_that_only_slows_the_host_down_earns_no_more_than_waiting(mode: str) -> None:
    host, host_loss = [*[0.0] * 5, *[60.0] * 12], [*[3.0] * 5, *[2.0] * 12]
    slowed, slowed_loss = [*host[:5], 30.0, *host[6:]], [*host_loss[:5], 2.5, *host_loss[6:]]
    steps = episode("..TTBBE..........", slowed, slowed_loss, contribution=-5.0, twin=host)
    assert earned(steps, mode) <= earned(episode(WAITING, host, host_loss, twin=host), mode)


def jittering(*swings: float) -> list[RewardInput]:
    """A helpful seed is kept; accuracy and loss then swing upward (better) or downward, and end at their level."""
    accuracy = [*HELPED[:12], *(80.0 + 5 * swing for swing in swings), 80.0]
    loss = [*HELPED_LOSS[:12], *(1.2 - 0.2 * swing for swing in swings), 1.2]
    return episode(EARLY, accuracy, loss)


@every_honest_mode
def test_jitter_does_not_add_up(mode: str) -> None:
    for size in (-4, -1, 1, 4):
        assert earned(jittering(size, 0, size, 0), mode) <= earned(jittering(size, 0, 0, 0), mode) + 1e-9


@every_honest_mode
def test_getting_worse_and_recovering_earns_nothing(mode: str) -> None:
    assert earned(jittering(-1, 0, -4, 0), mode) <= earned(jittering(0, 0, 0, 0), mode) + 1e-9


@every_honest_mode
def test_getting_better_for_an_epoch_earns_nothing(mode: str) -> None:
    assert earned(jittering(1, 0, 0, 0), mode) <= earned(jittering(0, 0, 0, 0), mode) + 1e-9


@every_honest_mode
def test_a_seed_that_a_rollback_discards_leaves_nothing_but_the_penalty(mode: str) -> None:
    accuracy, loss = [*HELPED[:12], *HOST[12:]], [*HELPED_LOSS[:12], *HOST_LOSS[12:]]
    steps = episode("......TTBBSPE....", accuracy, loss, rolled_back=12)
    assert earned(steps, mode) <= earned(episode(WAITING), mode) - 10.0


# --- what a real host run hands over ------------------------------------------------------------------------------


def played(mode: str, seed: int, **overrides: Any) -> tuple[EpisodeRecord, RewardSettings, float]:
    """A random episode, the settings of its reward, and the loss of a uniform guess."""
    task = make_fast_task(reward__mode=mode, max_epochs=30, decisions__min_cull_age=1, **overrides)
    return run_ppo_episode(RandomPolicy(), task, seed).record, task.reward, task.uniform_loss


def test_gain_counts_the_progress_of_a_seed_from_the_most_that_could_have_been_kept_before_it() -> None:
    """The first seed is culled once the host has learned around it, so the second one starts from below."""
    lasting = {"max_epochs": 40, "data__train_samples": 400, "data__batch_size": 16, "host__base_channels": 4}
    env = MorphogenesisEnv(make_fast_task(reward__mode="gain", **lasting))
    actions, counts, germinations = env.action_table, env.task.reward, 0
    observation, _ = env.reset(seed=2)
    info: dict[str, Any] = {"stage": "DORMANT"}
    while "record" not in info:
        legal, action = observation["action_mask"], 0
        if legal[actions.germinate("conv_heavy")]:
            action, germinations = actions.germinate("conv_heavy"), germinations + 1
        elif info["stage"] == "PROBATIONARY":
            wanted = actions.cull if germinations == 1 else actions.fossilize
            action = wanted if legal[wanted] else 0
        observation, _, _, _, info = env.step(action)
    record: EpisodeRecord = info["record"]
    crash = from_accuracy = best_kept = attributed = 0.0
    for number, epoch in enumerate(record.epochs, start=1):
        if epoch.decision.startswith("GERMINATE"):
            from_accuracy = best_kept
            crash = max(crash, best_kept - record.epochs[number - 2].val_accuracy)
        fossilized = epoch.stage_at_end == "FOSSILIZED"
        before, attributed = attributed, attributed_accuracy(epoch.val_accuracy - from_accuracy, epoch.contribution)
        best_kept = max(best_kept, epoch.val_accuracy - (0.0 if fossilized else epoch.contribution or 0.0))
        after = attributed if fossilized or number < len(record.epochs) else 0.0
        paid = counts.factor * counts.gain_weight * (after - before)
        assert epoch.reward_components["attributed"] == pytest.approx(paid, abs=1e-9), number
    assert germinations == 2
    assert crash > 0
    assert max(epoch.reward_components["attributed"] for epoch in record.epochs) > 0


@pytest.mark.parametrize("overrides", [{}, {"governor__learned_share": 10.0, "governor__guessing_margin": 10.0}])
@pytest.mark.parametrize("typical", [0.5, 0.002])
def test_the_payments_of_loss_follow_the_measured_losses_and_add_up_to_what_was_kept(
    typical: float, overrides: dict[str, Any]
) -> None:
    """A loss and its lowest so far pay half each: payments are the falls of their mean."""
    for seed in range(3):
        record, counts, uniform = played("loss", seed, reward__typical_loss_delta=typical, **overrides)
        weight = counts.factor * counts.loss_weight / typical
        loss = lowest = uniform
        for number, epoch in enumerate(record.epochs, start=1):
            mean = (loss + lowest) / 2
            loss = followed_loss(loss, epoch.val_loss, counts)
            loss = loss if number < len(record.epochs) else record.kept_val_loss
            lowest = min(lowest, loss)
            paid = weight * (mean - (loss + lowest) / 2)
            assert epoch.reward_components["loss"] == pytest.approx(paid, rel=1e-6, abs=1e-9 * weight), number
        total = record.reward_components["loss"] + record.reward_components["settled"]
        assert total == pytest.approx(weight * (uniform - record.kept_val_loss), rel=1e-6, abs=1e-9 * weight)
        assert bool(record.rollbacks) is bool(overrides)


@pytest.mark.parametrize("mode", ["gain", "loss"])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_stage_potential_adds_nothing_over_an_episode_whatever_its_stages(mode: str, discount: float) -> None:
    for stages in (WAITING, EARLY, LATE, NEVER, CHURN, "..TTTTTTTTTTTTTTT", ".TE.TBE.TBSPE.TTT", ".TF.BP.S.ETTFFFFF"):
        paid = [component([step], mode, "potential", discount=discount) for step in episode(stages)]
        assert sum(discount**i * payment for i, payment in enumerate(paid)) == pytest.approx(0.0, abs=1e-9)
        assert stages == WAITING or any(paid)


# --- `contribution` has them all, which is why it is for comparison only ------------------------------------------


def test_contribution_pays_for_the_host_s_own_progress() -> None:
    assert earned(episode(DRIFT), "contribution") > earned(episode(WAITING), "contribution") + 10


def test_contribution_pays_a_gain_in_every_epoch_fossilized_or_not() -> None:
    early, late, never = (
        earned(episode(stages, HELPED, HELPED_LOSS), "contribution") for stages in (EARLY, LATE, NEVER)
    )
    assert late > early
    assert never > 0.98 * early
    assert never > 10 * earned(episode(WAITING), "contribution")


def test_contribution_pays_for_germinating_and_culling() -> None:
    churn = churning([65.0, 70.0], [1.8, 1.6])
    assert earned(churn, "contribution") > earned(episode(WAITING), "contribution") + 10


def test_contribution_leaves_the_stage_potential_of_the_last_stage_as_pay() -> None:
    for stages, end in ((WAITING, 0.0), (CHURN, 0.0), (EARLY, 6.0 + 4 * 0.3), (NEVER, 5.5 + 5 * 0.3)):
        assert component(episode(stages), "contribution", "potential") == pytest.approx(0.3 * end)
