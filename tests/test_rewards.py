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

from esper_ray.episode.actions import Decision
from esper_ray.episode.rewards import (
    REWARD_MODES,
    Moment,
    RewardInput,
    attributed_accuracy,
    growth_doublings,
    reward_components,
    score_of_record,
    stage_potential,
)
from esper_ray.lifecycle import ACTIVE_STAGES, SeedStage
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
) -> list[RewardInput]:
    """The steps of an episode. A decision is what its change of stage asks for, unless that epoch was rolled back."""
    moments: list[Moment] = []
    base = 0.0
    for i, stage in enumerate(STAGES[letter] for letter in stages):
        last = moments[-1] if moments else Moment()
        seed = stage == S.FOSSILIZED or stage in ACTIVE_STAGES
        base = accuracy[i - 1] if seed and not last.seed_parameters else base
        measured = contribution if seed and stage != S.TRAINING else None
        moment = Moment(
            stage=stage,
            epochs_in_stage=last.epochs_in_stage + 1 if stage == last.stage else 0,
            attributed=attributed_accuracy(accuracy[i] - base, measured),
            contribution=measured,
            seed_parameters=PARAMETERS if seed else 0,
            accuracy=accuracy[i],
            twin_accuracy=twin[i],
            loss=loss[i],
            best_loss=min(loss[: i + 1]),
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


def decision_between(before: Moment, after: Moment) -> Decision:
    if after.seed_parameters and not before.seed_parameters:
        return Decision.GERMINATE
    if before.seed_parameters and not after.seed_parameters:
        return Decision.CULL
    return Decision.FOSSILIZE if before.stage != after.stage == S.FOSSILIZED else Decision.WAIT


def component(steps: list[RewardInput], mode: str, name: str, **given: Any) -> float:
    return sum(reward_components(step, settings(mode, **given))[name] for step in steps)


def earned(steps: list[RewardInput], mode: str, **given: Any) -> float:
    return sum(sum(reward_components(step, settings(mode, **given)).values()) for step in steps)


def honest_modes_but(**exploitable: str) -> Any:
    """Every mode but `contribution`; one that is known to pay for nothing here says why, and the mark is strict."""
    marks = {mode: pytest.mark.xfail(strict=True, reason=why) for mode, why in exploitable.items()}
    return pytest.mark.parametrize("mode", [pytest.param(m, marks=marks[m]) if m in marks else m for m in HONEST])


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
        return reward_components(replace(step, before=Moment(**before)), settings("contribution"))[name]

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
        assert stage_potential(Moment(stage=stage)) == by_stage.get(stage, 0.0)
    assert stage_potential(Moment(stage=S.TRAINING, epochs_in_stage=3)) == pytest.approx(2.9)
    assert stage_potential(Moment(stage=S.TRAINING, epochs_in_stage=30)) == 4.0
    assert stage_potential(Moment(stage=S.DORMANT, epochs_in_stage=30)) == 0.0


def test_the_payments_of_gain_add_up_to_what_was_kept() -> None:
    steps = episode(EARLY, HELPED)
    assert component(steps, "gain", "attributed") == pytest.approx(3.0 * 20.0)
    assert component(steps, "gain", "kept_accuracy") == pytest.approx(0.05 * 80.0)
    assert component(steps, "gain", "rent", rent=2.0) == pytest.approx(-3.0 * 2.0)
    assert component(steps, "gain", "intervention") == pytest.approx(-0.02 - 0.01)
    assert component(episode(CHURN), "gain", "intervention") == pytest.approx(2 * (-0.02 - 0.005))
    assert component(episode(NEVER, HELPED), "gain", "attributed") == pytest.approx(0.0)
    assert component(episode(NEVER, HELPED), "gain", "kept_accuracy") == pytest.approx(0.05 * 60.0)


def loss_step(best: float, before: float, after: float, decision: Decision = Decision.WAIT) -> float:
    moments = (Moment(loss=before, best_loss=best), Moment(loss=after, best_loss=min(best, after)))
    step = RewardInput(moments[0], decision, moments[1], False, False, 0.0, after, UNIFORM_LOSS, 0, PARAMETERS)
    return reward_components(step, settings("loss"))["loss"]


def test_loss_pays_improvements_in_typical_ones_and_regressions_cost_half() -> None:
    assert loss_step(2.0, 2.0, 1.9) == pytest.approx(5.0)
    assert loss_step(2.0, 2.0, 1.0) == pytest.approx(25.0), "five typical ones an epoch at most"
    assert loss_step(1.9, 1.9, 2.0) == pytest.approx(-2.5)
    assert loss_step(1.0, 1.0, 9.0) == pytest.approx(-12.5)
    assert loss_step(1.9, 2.0, 1.9) == pytest.approx(2.5), "the way back pays what the rise had cost"
    assert loss_step(1.9, 2.0, 1.8) == pytest.approx(2.5 + 5.0)


def test_loss_takes_the_rise_after_a_cull_in_full() -> None:
    assert loss_step(2.0, 2.0, 3.0, Decision.CULL) == pytest.approx(-50.0)
    assert loss_step(1.0, 1.5, 1.4, Decision.CULL) == loss_step(1.0, 1.5, 1.4)


def test_loss_settles_the_way_to_the_target_the_rent_and_what_is_dropped_at_the_end() -> None:
    for end, paid in ((2.0, 2.5), (0.5, 5.0), (3.5, 0.0)):
        assert component(episode(WAITING, loss=[*HOST_LOSS[:-1], end]), "loss", "target") == pytest.approx(paid)
    kept, dropped = episode(EARLY, HELPED, HELPED_LOSS), episode(NEVER, HELPED, HELPED_LOSS)
    assert component(kept, "loss", "target") == pytest.approx(5.0 * 0.9)
    assert component(dropped, "loss", "target") == pytest.approx(5.0 * 0.5)
    assert component(kept, "loss", "dropped") == 0.0
    assert component(dropped, "loss", "dropped") == pytest.approx(-5.0 * 8)
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


@honest_modes_but(gain="host drift is paid where the host comes to depend on the seed")
def test_a_seed_that_the_host_only_comes_to_depend_on_is_not_paid_for_the_host_s_own_progress(mode: str) -> None:
    assert earned(episode(DRIFT, contribution=30.0), mode, rent=0.0) <= earned(episode(WAITING), mode)


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


@honest_modes_but(loss="a new lowest loss is paid in full; to lose it again under a live seed costs half")
def test_a_seed_that_is_culled_once_its_gain_has_faded_earns_no_more_than_waiting(mode: str) -> None:
    assert earned(churning([70.0, 60.0], [1.6, 2.0]), mode) <= earned(episode(WAITING), mode)


@honest_modes_but(loss="at the end a seed gives back what it holds then, not what it was paid before")
def test_a_seed_that_is_dropped_after_a_worse_last_epoch_earns_no_more_than_waiting(mode: str) -> None:
    steps = episode(NEVER, [*HELPED[:16], 75.0], [*HELPED_LOSS[:16], 1.6])
    assert earned(steps, mode) <= earned(episode(WAITING), mode)


@honest_modes_but(gain="progress counts from germination on, here from the bottom of the crash")
def test_a_crash_after_a_cull_is_not_paid_for_when_the_host_recovers_around_the_next_seed(mode: str) -> None:
    accuracy = [*HOST[:10], 30.0, 30.0, 40.0, 50.0, 60.0, 60.0, 60.0]
    loss = [*HOST_LOSS[:10], 2.6, 2.6, 2.4, 2.2, 2.0, 2.0, 2.0]
    assert earned(episode("......TTBBE.TBSPF", accuracy, loss), mode) <= earned(episode(WAITING), mode)


@honest_modes_but(loss="at most five typical improvements an epoch are paid, so that a slower descent earns more")
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


@honest_modes_but(loss="a dip of the loss that is gone again leaves half of its pay, once")
def test_getting_better_for_an_epoch_earns_nothing(mode: str) -> None:
    assert earned(jittering(1, 0, 0, 0), mode) <= earned(jittering(0, 0, 0, 0), mode) + 1e-9


@honest_modes_but(loss="only CULL and the end take back in full what goes with a seed")
def test_a_seed_that_a_rollback_discards_leaves_nothing_but_the_penalty(mode: str) -> None:
    accuracy, loss = [*HELPED[:12], *HOST[12:]], [*HELPED_LOSS[:12], *HOST_LOSS[12:]]
    steps = episode("......TTBBSPE....", accuracy, loss, rolled_back=12)
    assert earned(steps, mode) <= earned(episode(WAITING), mode) - 10.0


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
