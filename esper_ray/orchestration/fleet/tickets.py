"""Tickets: the assignment of episodes, with their random seeds, to actors."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from esper_ray.episode import EpisodeRecord
from esper_ray.seeding import Stream, derive_seed


@dataclass(frozen=True, order=True)
class Ticket:
    """An episode that is to be played.

    Attributes:
        runner: index of the actor that owes it, from 1.
        number: number of the episode among those that this actor owes in the same series, from 0.
        episode_seed: the host seed: host, data order and seeds follow from it.
        decision_seed: what a policy draws follows from it.
        grown: blueprint that is a part of the host from the first epoch on, or None.
    """

    runner: int
    number: int
    episode_seed: int
    decision_seed: int
    grown: str | None = None


@dataclass(frozen=True)
class FinishedEpisode:
    """A finished episode, with the weights of the kept network if they were requested."""

    ticket: Ticket
    record: EpisodeRecord
    weights: dict[str, Tensor] | None


def assign(
    episodes: int, runners: int, round_number: int, base_seed: int, host_pool: int | None = None
) -> list[Ticket]:
    """Shares out `episodes` episodes over the runners, as evenly as can be, in round `round_number` (from 0).

    Seeds follow from base seed, runner index and episode number alone. The same arguments always give the same tickets,
    and no two rounds share one.

    Args:
        host_pool: draw the host seeds from this many; None: each episode has a host seed of its own.
    """
    rows = -(-episodes // runners)
    places = ((1 + i % runners, round_number * rows + i // runners) for i in range(episodes))
    return sorted(assign_number(runner, number, base_seed, host_pool) for runner, number in places)


def assign_number(runner: int, number: int, base_seed: int, host_pool: int | None = None) -> Ticket:
    """Returns the ticket of an actor's episode `number`; arguments as of `assign`."""
    seed = derive_seed(base_seed, Stream.EPISODE, runner, number)
    host_seed = seed if host_pool is None else derive_seed(base_seed, Stream.HOST_POOL, seed % host_pool)
    return Ticket(runner, number, host_seed, seed)


def spread(seeds: Sequence[int], runners: int, grown: Sequence[str | None] | None = None) -> list[Ticket]:
    """Distributes episodes with the given host seeds over the runners; the runner does not affect the result.

    Args:
        grown: for each seed the blueprint that its host has from the start, or None.
    """
    starts = grown or [None] * len(seeds)
    pairs = enumerate(zip(seeds, starts, strict=True))
    return sorted(Ticket(1 + i % runners, i // runners, seed, seed, start) for i, (seed, start) in pairs)


def held_out_seeds(count: int) -> list[int]:
    """Returns the first `count` host seeds of final reports: the same for every run, and none that training uses."""
    return [derive_seed(0, Stream.HELD_OUT, i) for i in range(count)]


def development_seeds(count: int) -> list[int]:
    """Returns the first `count` host seeds of evaluations during training: neither training's nor a final report's."""
    return [derive_seed(1, Stream.HELD_OUT, i) for i in range(count)]
