"""Tickets: every episode is somebody's, no two are the same, and none is forgotten or counted twice."""

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from esper_ray.orchestration.fleet.dispatch import PendingTickets, SeriesTickets
from esper_ray.orchestration.fleet.env_runner import PlayedEpisode
from esper_ray.orchestration.fleet.tickets import Ticket, assign, assign_number, development_seeds, held_out_seeds
from esper_ray.orchestration.learner import episode_appo
from esper_ray.orchestration.learner.episode_appo import EpisodeAPPO
from esper_ray.orchestration.run.checkpoint import CheckpointManifest
from esper_ray.seeding import Stream, derive_seed


def never_started(actor: object, tickets: object) -> ray.ObjectRef:
    """Starts nothing: no actor is asked here."""
    raise AssertionError


@pytest.mark.parametrize("episodes", [4, 6, 7])
def test_no_two_rounds_share_a_ticket_or_a_seed_even_if_episodes_do_not_divide_by_runners(episodes: int) -> None:
    tickets = [ticket for number in range(5) for ticket in assign(episodes, 4, number, base_seed=0)]
    assert len({(ticket.runner, ticket.number) for ticket in tickets}) == len(tickets) == 5 * episodes
    assert len({ticket.episode_seed for ticket in tickets}) == len(tickets)


def test_a_seed_follows_from_every_one_of_its_parents_and_their_order() -> None:
    parents = itertools.product(range(3), (Stream.EPISODE, Stream.HELD_OUT), range(3), range(3))
    seeds = [derive_seed(parent, stream, first, second) for parent, stream, first, second in parents]
    assert len(set(seeds)) == len(seeds) == 54


def test_an_actor_plays_its_own_tickets_and_then_those_of_actors_that_are_away() -> None:
    tickets = assign(4, 2, 0, base_seed=0)
    own, others = ([ticket for ticket in tickets if ticket.runner == runner] for runner in (1, 2))
    queue = PendingTickets(tickets, never_started)
    assert [queue.take(1, away=[2]), queue.take(1, away=[2])] == own
    assert queue.take(1, away=[]) is None
    taken = queue.take(1, away=[2])
    assert taken == others[0]
    queue.requeue(taken)
    assert [queue.take(2, away=[]), queue.take(2, away=[]), queue.take(2, away=[])] == [*others, None]


def series() -> SeriesTickets:
    return SeriesTickets(partial(assign_number, base_seed=0), runners=2, start=never_started)


def taken(queue: SeriesTickets, runner: int) -> Ticket:
    ticket = queue.take(runner, away=[])
    assert ticket is not None and ticket.runner == runner
    return ticket


def test_a_series_goes_on_behind_what_was_learned_from() -> None:
    queue = series()
    queue.resume_from((2, 5))
    assert [taken(queue, runner).number for runner in (1, 1, 2)] == [2, 3, 5]
    queue.end(PlayedEpisode(assign_number(2, 5, 0)))
    queue.count([queue.finished.popleft()])
    assert queue.consumed == (2, 6)


def test_episodes_of_a_series_end_in_their_order_even_if_one_is_played_again() -> None:
    queue = series()
    first, second = taken(queue, 1), taken(queue, 1)
    queue.end(PlayedEpisode(second))
    assert not queue.finished
    queue.requeue(first)
    assert taken(queue, 1) == first
    queue.end(PlayedEpisode(first))
    assert [episode.ticket for episode in queue.finished] == [first, second]


def manifest(**values: object) -> CheckpointManifest:
    plain = {"versions": {}, "task": {}, "actions": (), "observation": (), "plugins": (), "host_epochs": 0}
    run = {"seed": 7, "runners": 2, "episodes_per_iteration": 5, "host_pool": None, "iteration": 3}
    return CheckpointManifest.model_validate(plain | run | values)


def test_a_checkpoint_knows_every_host_that_it_was_trained_on() -> None:
    seeds = [ticket.episode_seed for number in range(3) for ticket in assign(5, 2, number, 7)]
    assert manifest().training_seeds() == seeds
    own_series = [assign_number(*place, 7).episode_seed for place in ((1, 0), (2, 0), (2, 1), (2, 2))]
    assert manifest(consumed=(1, 3)).training_seeds() == own_series
    assert set(manifest(host_pool=4).training_seeds()) <= {
        derive_seed(7, Stream.HOST_POOL, place) for place in range(4)
    }


def test_training_evaluations_and_final_reports_have_no_host_in_common() -> None:
    trained = [ticket.episode_seed for number in range(5) for ticket in assign(20, 2, number, base_seed=0)]
    together = [*trained, *development_seeds(100), *held_out_seeds(100)]
    assert len(set(together)) == len(together) == 300


def test_an_episode_of_appo_is_played_again_with_the_weights_of_its_first_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the learner has learned meanwhile."""
    monkeypatch.setattr(episode_appo, "call", lambda actor, method, tickets, keep_from, weights: weights)
    learner: Any = SimpleNamespace(_weights_of={}, _weights="first", keep_from=0.0)
    start = partial(EpisodeAPPO._start_with_own_weights, learner, None)
    tickets = [assign_number(1, number, 3) for number in range(3)]
    assert start(tickets[:2]) == "first"
    learner._weights = "second"
    assert start(tickets[:1]) == start(tickets[1:2]) == "first"
    assert start(tickets[2:]) == "second"
