"""APPO on real actors: what is rare, and takes long because actors start anew."""

import time
from pathlib import Path

import pytest
from fakes import FakeHostEnv
from learners import assert_a_new_run_begins_with_its_policy_alone, assert_same_weights, build, rows, weights

pytestmark = pytest.mark.usefixtures("session_ray")


def test_appo_goes_on_behind_the_episodes_that_it_has_learned_from(tmp_path: Path) -> None:
    """What an actor was playing when the run ended is played again, with the weights of the checkpoint."""
    algorithm = build(1, 2, policy="lstm", learner="appo")
    try:
        algorithm.train()
        algorithm.write_checkpoint(tmp_path)
        saved, consumed = weights(algorithm), algorithm.consumed
    finally:
        algorithm.stop()
    found = []
    for _ in range(2):
        resumed = build(1, 2, policy="lstm", learner="appo")
        try:
            resumed.load(tmp_path)
            assert (resumed.iteration, resumed.consumed) == (1, consumed)
            assert_same_weights(weights(resumed), saved)
            resumed.train()
            found.append((rows(resumed), weights(resumed)))
        finally:
            resumed.stop()
    assert [row["number"] for row in found[0][0]] == [2, 3]
    assert found[0][0] == found[1][0]
    assert_same_weights(found[1][1], found[0][1])


def test_a_new_run_begins_with_another_s_policy_and_nothing_else(tmp_path: Path) -> None:
    assert_a_new_run_begins_with_its_policy_alone(tmp_path, runners=1, learner="appo")


def test_an_actor_that_was_done_in_time_is_not_lost_because_nobody_looked() -> None:
    """A driver that is stopped for a while, as by Ctrl-Z or between two cells of a notebook."""
    algorithm = build(2, 4, env=FakeHostEnv, learner="appo")
    assert algorithm.dispatcher is not None
    algorithm.dispatcher.timeout_s = 3
    try:
        algorithm.train()
        time.sleep(4)
        algorithm.train()
        assert algorithm.losses == {"died": 0, "raised": 0, "hung": 0}
    finally:
        algorithm.stop()


def test_appo_s_actors_train_several_hosts_and_no_episode_counts_twice() -> None:
    algorithm = build(2, 6, hosts=2, learner="appo")
    try:
        played = []
        for _ in range(3):
            algorithm.train()
            played += [episode.ticket for episode in algorithm.episodes]
        assert len(set(played)) == len(played) == 3 * 6
    finally:
        algorithm.stop()
