"""Tickets: every episode is somebody's, and no two are the same."""

import itertools

import pytest

from esper_ray.orchestration.fleet.tickets import assign
from esper_ray.seeding import Stream, derive_seed


@pytest.mark.parametrize("episodes", [4, 6, 7])
def test_no_two_rounds_share_a_ticket_or_a_seed_even_if_episodes_do_not_divide_by_runners(episodes: int) -> None:
    tickets = [ticket for number in range(5) for ticket in assign(episodes, 4, number, base_seed=0)]
    assert len({(ticket.runner, ticket.number) for ticket in tickets}) == len(tickets) == 5 * episodes
    assert len({ticket.episode_seed for ticket in tickets}) == len(tickets)


def test_a_seed_follows_from_every_one_of_its_parents_and_their_order() -> None:
    parents = itertools.product(range(3), (Stream.EPISODE, Stream.HELD_OUT), range(3), range(3))
    seeds = [derive_seed(parent, stream, first, second) for parent, stream, first, second in parents]
    assert len(set(seeds)) == len(seeds) == 54
