"""The ledger's units: which actor owes which episode, and what came of it."""

from dataclasses import dataclass

from torch import Tensor

from esper_ray.episode import EpisodeRecord
from esper_ray.seeding import Stream, derive_seed


@dataclass(frozen=True, order=True)
class Ticket:
    """An episode that is to be played.

    Attributes:
        runner: index of the actor that owes it, from 1.
        number: number of the episode among all that this actor ever owes, from 0.
        base_seed: seed of the run (or of a held-out stream).
    """

    runner: int
    number: int
    base_seed: int

    @property
    def episode_seed(self) -> int:
        """The episode seed: it follows from base seed, runner index and episode number alone."""
        return derive_seed(self.base_seed, Stream.EPISODE, self.runner, self.number)


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that was played to its end; with the weights of what it kept, if they were wanted."""

    ticket: Ticket
    record: EpisodeRecord
    weights: dict[str, Tensor] | None


def assign(episodes: int, runners: int, round_number: int, base_seed: int) -> list[Ticket]:
    """Shares out `episodes` episodes over the runners, as evenly as can be, in round `round_number` (from 0).

    The same arguments always give the same tickets, and no two rounds share one.
    """
    rows = -(-episodes // runners)
    tickets = [Ticket(1 + i % runners, round_number * rows + i // runners, base_seed) for i in range(episodes)]
    return sorted(tickets)
