"""Paired differences, their intervals, what they say in a sentence; the schedules that are searched."""

import numpy as np
import pytest

from esper_ray.episode import ActionTable
from esper_ray.orchestration.held_out.episode_store import Outcome
from esper_ray.orchestration.held_out.paired import (
    Difference,
    means,
    over_training_seeds,
    paired_difference,
    verdict,
)
from esper_ray.orchestration.held_out.schedule_search import Schedule, candidates, survivors
from esper_ray.tasks import get_task_spec

ACTIONS = ActionTable(["norm", "conv_heavy"])


def test_a_difference_is_the_mean_of_pairs_and_its_interval_that_of_resampled_hosts() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(60, 10, size=120)
    ours = theirs + rng.normal(2, 3, size=120)
    found = paired_difference(ours, theirs)
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    resampled = rng.choice(ours - theirs, size=(20_000, 120)).mean(axis=1)
    assert found.ci95 == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=0.05)
    assert paired_difference(theirs, ours).mean == pytest.approx(-found.mean)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = paired_difference(rng.normal(1, 4, size=100), np.zeros(100)).ci95
        covered += low <= 1 <= high
    assert 85 <= covered <= 100


def test_pairs_that_do_not_vary_have_an_interval_of_no_width() -> None:
    assert paired_difference([3.0] * 10, [2.0] * 10) == Difference(1.0, (1.0, 1.0))
    assert paired_difference([3.0] * 9, [2.5] * 9) == Difference(0.5, None)


def test_a_policy_is_better_only_if_the_whole_interval_says_so() -> None:
    assert Difference(1.0, (0.1, 1.9)).verdict == "better"
    assert Difference(-1.0, (-1.9, -0.1)).verdict == "worse"
    assert Difference(1.0, (-0.1, 2.1)).verdict == "no difference shown"
    assert Difference(1.0, (0.0, 2.0)).verdict == "no difference shown"
    assert Difference(9.0, None).verdict == "too few hosts"


def test_the_verdict_is_a_sentence_that_can_say_no_difference_shown() -> None:
    better, worse, nothing = Difference(9, (8, 10)), Difference(-2, (-3, -1)), Difference(0.2, (-0.5, 0.9))
    who = "the learned policy (sampled)"
    assert verdict({"wait": better, "schedule": worse, "random": nothing}, 50, who) == (
        "On 50 held-out hosts the learned policy (sampled) is better than wait (+9.0 [+8.0, +10.0]); is worse than "
        "schedule (-2.0 [-3.0, -1.0]); shows no difference from random (+0.2 [-0.5, +0.9])."
    )
    assert verdict({"schedule": nothing}, 50, "it") == (
        "No difference shown between it and schedule (+0.2 [-0.5, +0.9]), on 50 held-out hosts."
    )


def test_several_training_seeds_count_with_their_mean_on_each_host() -> None:
    assert over_training_seeds([[1.0, 10.0], [3.0, 20.0]]) == [2.0, 15.0]


def test_means_are_over_hosts() -> None:
    outcomes = [
        Outcome(60.0, 60.0, 62.0, 61.0, 100, "norm", 100, {}, [], []),
        Outcome(50.0, 50.0, 52.0, 52.0, 0, None, 100, {}, [], []),
    ]
    found = means(outcomes)
    assert (found["score"], found["kept_test_accuracy"], found["fossilized_share"]) == (56.5, 57.0, 0.5)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10", "pydoc"])
def test_schedules_run_over_blueprint_germination_and_delay_and_waiting_is_one(name: str) -> None:
    task = get_task_spec(name)
    found = candidates(task, ACTIONS)
    assert found[0] == Schedule()
    grown = found[1:]
    assert {schedule.blueprint_id for schedule in grown} == set(ACTIONS.blueprint_ids)
    assert min(schedule.germinate_at for schedule in grown) == task.earliest_germination
    assert len({schedule.germinate_at for schedule in grown}) == 3
    growth = task.earliest_probation - task.earliest_germination
    for schedule in grown:
        assert schedule.germinate_at + growth <= schedule.fossilize_at <= task.max_epochs - 1
    for germinate_at in {schedule.germinate_at for schedule in grown}:
        delays = {s.fossilize_at for s in grown if s.germinate_at == germinate_at}
        assert {germinate_at + growth, task.max_epochs - 1} <= delays
        assert len(delays) == 4
    assert len(found) == len(set(found)) == 1 + 2 * 3 * 4


def test_variants_of_one_blueprint_do_not_crowd_the_others_out_of_the_search() -> None:
    wait, norm, late_norm = Schedule(), Schedule("norm", 3, 9), Schedule("norm", 6, 12)
    heavy = [Schedule("conv_heavy", 3, epoch) for epoch in (9, 14, 19, 24)]
    scores = {wait: 60.0, norm: 70.0, late_norm: 69.0} | {schedule: 71.0 + i for i, schedule in enumerate(heavy)}
    assert survivors(list(scores), scores, 2) == [heavy[3], heavy[2], norm, wait]
    assert survivors(list(scores), scores, 6) == [*reversed(heavy), norm, late_norm, wait]
    assert set(survivors(list(scores), {}, len(scores))) == set(scores)
