"""Real Ray, real actors: exact episodes, nothing dropped, lost actors replaced, devices as assigned."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from fakes import DyingEnv, FailingEnv, SlowEnv
from learners import TASK, build, differ, rows, weights, weights_of_the_actors
from ray.actor import ActorHandle
from ray.exceptions import RayError

from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import EpisodeFailedError, PlacementError
from esper_ray.orchestration.fleet.actor_envs import ActorEnv
from esper_ray.orchestration.fleet.placement import Placement, place
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, Ticket, assign
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.policies import WaitPolicy

pytestmark = pytest.mark.usefixtures("session_ray")


class Holder:
    """Somebody else's actor."""

    def ready(self) -> None:
        """Answers once it is placed."""


def assert_all_actors_played_with(expected: dict[str, np.ndarray], algorithm: EpisodeAlgorithm) -> None:
    found = weights_of_the_actors(algorithm)
    assert len(found) == algorithm.config.num_env_runners
    assert not any(differ(expected, of_actor) for of_actor in found)


def wait_until_it_is_there(actor: ActorHandle) -> None:
    """Ray restarts a lost actor by itself."""
    give_up = time.monotonic() + 60
    while True:
        try:
            ray.get(actor.ping.remote())
        except RayError:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        else:
            return


def test_tickets_are_shared_evenly_and_never_given_twice() -> None:
    rounds = [assign(7, 3, number, base_seed=1) for number in range(4)]
    together = [ticket for tickets in rounds for ticket in tickets]
    assert len(set(together)) == len(together) == 28
    assert len({ticket.episode_seed for ticket in together}) == 28
    assert [sum(ticket.runner == runner for ticket in rounds[0]) for runner in (1, 2, 3)] == [3, 2, 2]
    assert assign(7, 3, 2, base_seed=1) == rounds[2]
    others = {ticket.episode_seed for number in range(4) for ticket in assign(7, 3, number, base_seed=2)}
    assert not others & {ticket.episode_seed for ticket in together}
    assert all(
        ticket == Ticket(ticket.runner, ticket.number, ticket.episode_seed, ticket.episode_seed) for ticket in together
    )


def test_exactly_the_episodes_asked_for_are_played_even_if_they_do_not_divide() -> None:
    algorithm = build(runners=3, episodes=7)
    try:
        for iteration in range(2):
            before = weights(algorithm)
            result = algorithm.train()
            assert [e.ticket for e in algorithm.episodes] == assign(7, 3, iteration, base_seed=3)
            assert_all_actors_played_with(before, algorithm)
            assert differ(before, weights(algorithm))
            assert result["env_runners"]["num_env_steps_sampled"] == 7 * TASK.max_epochs
        assert all(len(e.record.epochs) == TASK.max_epochs for e in algorithm.episodes)
        assert {e.ticket.episode_seed for e in algorithm.episodes} == {
            e.record.episode_seed for e in algorithm.episodes
        }
    finally:
        algorithm.stop()


def test_no_episode_is_dropped_for_being_slow() -> None:
    """Not even with RLlib's own sampling timeout far below the length of an episode."""
    algorithm = build(2, 4, env=SlowEnv, sample_timeout_s=0.01)
    try:
        algorithm.train()
        assert [e.ticket for e in algorithm.episodes] == assign(4, 2, 0, base_seed=3)
        assert algorithm.env_runner_group.num_env_runners_dropped_lifetime() == 0
        assert algorithm.losses == {"died": 0, "raised": 0, "hung": 0}
    finally:
        algorithm.stop()


def test_a_killed_actor_is_replaced_and_the_run_is_the_one_that_nobody_disturbed(tmp_path: Path) -> None:
    """The lost episode is played again with the present weights: same episodes, same learner, to the last bit."""
    found = []
    for env, lost in ((ActorEnv, 0), (DyingEnv, 1)):
        algorithm = build(2, 4, env=env, marker=str(tmp_path / "died"))
        try:
            algorithm.train()
            first = rows(algorithm)
            algorithm.train()
            assert algorithm.losses == {"died": lost, "raised": 0, "hung": 0}
            assert [e.ticket for e in algorithm.episodes] == assign(4, 2, 1, base_seed=3)
            found.append((first + rows(algorithm), weights(algorithm)))
        finally:
            algorithm.stop()
    assert (tmp_path / "died").exists()
    (expected, expected_weights), (disturbed, disturbed_weights) = found
    assert disturbed == expected
    assert not differ(expected_weights, disturbed_weights)


def test_an_actor_killed_between_iterations_comes_back_and_plays_with_the_learner_s_weights() -> None:
    algorithm = build(2, 4)
    try:
        algorithm.train()
        victim = algorithm.env_runner_group._worker_manager.actors()[2]
        os.kill(ray.get(victim.apply.remote(lambda _: os.getpid())), signal.SIGKILL)
        algorithm.train()
        assert [e.ticket for e in algorithm.episodes] == assign(4, 2, 1, base_seed=3)
        assert algorithm.losses == {"died": 1, "raised": 0, "hung": 0}
        wait_until_it_is_there(victim)
        has_played = False
        while not has_played:  # the other one may have played everything before this one has been called again
            time.sleep(0.6)
            before, iteration = weights(algorithm), algorithm.iteration
            assert iteration < 20
            algorithm.train()
            assert [e.ticket for e in algorithm.episodes] == assign(4, 2, iteration, base_seed=3)
            has_played = not differ(before, weights_of_the_actors(algorithm)[1])
        assert_all_actors_played_with(before, algorithm)
        assert algorithm.losses["died"] == 1
    finally:
        algorithm.stop()


def test_an_episode_that_raises_in_this_process_ends_the_run_at_once() -> None:
    algorithm = build(0, 1, env=FailingEnv)
    try:
        with pytest.raises(EpisodeFailedError, match="the disk is on fire"):
            algorithm.train()
    finally:
        algorithm.stop()


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        algorithm = build(0, 4)
        try:
            algorithm.train()
            algorithm.train()
            runs.append((rows(algorithm), weights(algorithm)))
        finally:
            algorithm.stop()
    assert runs[0][0] == runs[1][0]
    assert not differ(runs[0][1], runs[1][1])


def test_scripted_policies_play_on_the_same_actors() -> None:
    algorithm = build(2, 4)
    seen: list[FinishedEpisode] = []
    try:
        played = algorithm.play_scripted(assign(5, 2, 0, base_seed=9), WaitPolicy(), seen.append)
    finally:
        algorithm.stop()
    assert [episode.ticket for episode in played] == assign(5, 2, 0, base_seed=9)
    assert len(seen) == 5
    alone = play_episode(MorphogenesisEnv(TASK), WaitPolicy(), played[0].record.episode_seed)
    assert alone.epochs == played[0].record.epochs


def test_more_runners_than_cpus_are_refused_with_the_largest_number_that_fits() -> None:
    with pytest.raises(PlacementError, match="use --runners 4 at most"):
        place(5, 32, "auto")
    with pytest.raises(PlacementError, match="use --runners 3 at most"):
        place(4, 3, "auto")
    assert place(None, 32, "auto") == Placement(4, 1, 0.0)
    assert place(None, 3, "auto").runners == 3


def test_runners_that_others_leave_no_room_for_are_refused_instead_of_waited_for() -> None:
    holder = ray.remote(num_cpus=3)(Holder).remote()
    ray.get(holder.ready.remote())
    with pytest.raises(PlacementError, match="others leave room for 1; use --runners 1 at most"):
        place(2, 32, "cpu")
    ray.kill(holder)


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(PlacementError, match="has no GPU"):
        place(1, 32, "cuda")
