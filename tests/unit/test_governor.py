"""The governor: what it calls a failure. What a rollback does to a real host stands in `test_rollback.py`."""

from math import inf, log, nan

import pytest

from esper_ray.episode.governor import Failure, Governor
from esper_ray.tasks import GovernorSettings

UNIFORM = log(10)


def judged(losses: list[float]) -> list[Failure | None]:
    governor = Governor(GovernorSettings(), UNIFORM)
    return [governor.judge(loss, loss) for loss in losses]


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_non_finite_loss_fails_at_once(bad: float) -> None:
    assert judged([2.0, bad]) == [None, Failure.NON_FINITE]
    governor = Governor(GovernorSettings(), UNIFORM)
    assert governor.judge(bad, 1.0) == Failure.NON_FINITE


def test_an_explosion_must_last_three_epochs() -> None:
    calm = [2.0] * 10
    assert judged([*calm, 50.0, 50.0, 50.0])[-3:] == [None, None, Failure.EXPLOSION]
    assert judged([*calm, 50.0, 50.0, 2.0, 50.0])[-4:] == [None] * 4


def test_an_explosion_needs_ten_known_losses_and_all_three_marks() -> None:
    assert judged([2.0] * 9 + [50.0] * 3)[-3:] == [None] * 3
    assert judged([2.0] * 10 + [11.9] * 3)[-3:] == [None] * 3
    assert judged([6.0] * 10 + [17.0] * 3)[-3:] == [None] * 3
    assert judged([1.0, 9.0] * 5 + [14.0] * 3)[-3:] == [None] * 3


def test_falling_back_to_guessing_fails_only_a_host_that_had_learned() -> None:
    assert judged([UNIFORM, UNIFORM]) == [None, None]
    assert judged([2.0, 1.5, UNIFORM]) == [None, None, None]
    assert judged([2.0, 1.3, 1.05 * UNIFORM]) == [None, None, Failure.COLLAPSE]
    assert judged([2.0, 1.3, 0.9 * UNIFORM]) == [None, None, None]


def test_whether_a_host_had_learned_is_judged_anew_once_it_is_put_back() -> None:
    governor = Governor(GovernorSettings(), UNIFORM)
    assert [governor.judge(loss, loss) for loss in (1.3, UNIFORM)] == [None, Failure.COLLAPSE]
    governor.resume_after_rollback(UNIFORM)
    assert governor.judge(UNIFORM, UNIFORM) is None
    governor.resume_after_rollback(1.3)
    assert governor.judge(UNIFORM, UNIFORM) == Failure.COLLAPSE
