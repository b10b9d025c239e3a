"""What a run will need before it begins: a real epoch is timed on every actor, and the rest follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

import ray
from ray.exceptions import GetTimeoutError, RayError

from esper_ray.errors import EpisodeFailedError, PlacementError
from esper_ray.orchestration.fleet.env_runner import Seat
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm

_TIMEOUT_MARGIN = 10.0
"""Epochs with a large seed, a twin of the reward and a loaded machine all make an episode longer than was measured."""
_SHORTEST_TIMEOUT = 60.0


@dataclass(frozen=True)
class Preflight:
    """Where the actors sit, and what an epoch takes there.

    Attributes:
        seats: of the actors, or of this process without any.
        epochs: of an episode.
        timeout_seconds: after which an actor that has not finished its episode is replaced.
    """

    seats: tuple[Seat, ...]
    epochs: int
    timeout_seconds: float

    @property
    def episode_seconds(self) -> float:
        """Wall time of the episodes that the slowest actor plays at the same time, by epochs without a seed; those with
        one take longer."""
        return self.epochs * max(seat.epoch_seconds for seat in self.seats)

    @property
    def memory(self) -> int:
        """Bytes of all actors."""
        return sum(seat.memory for seat in self.seats)

    def seconds_for(self, episodes: int) -> float:
        """Returns the wall time of so many episodes, shared out over the actors."""
        at_a_time = sum(seat.hosts for seat in self.seats)
        return ceil(episodes / at_a_time) * self.episode_seconds


def _require_memory(seats: Sequence[Seat]) -> None:
    """Refuses actors that need more memory than Ray has for workers on their machine."""
    offered = {node["NodeID"]: int(node["Resources"].get("memory", 0)) for node in ray.nodes()}
    fit = len(seats)
    crowded = None
    for node_id, on_node in groupby(sorted(seats, key=lambda seat: seat.node_id), key=lambda seat: seat.node_id):
        sizes = [seat.memory for seat in on_node]
        if sum(sizes) > offered[node_id]:
            fit -= len(sizes) - offered[node_id] // max(sizes)
            crowded = crowded or (node_id, len(sizes), max(sizes))
    if crowded is None:
        return
    node_id, count, size = crowded
    name = next(seat.node for seat in seats if seat.node_id == node_id)
    remedy = f"use --runners {fit} at most" if fit > 0 else "use a machine with more"
    raise PlacementError(
        f"{count} runners of {size / 1e6:,.0f} MB do not fit on {name}, which has {offered[node_id] / 1e6:,.0f} MB for "
        f"them; {remedy}"
    )


def check(algorithm: EpisodeAlgorithm, epochs: int, timeout_seconds: float | None) -> Preflight:
    """Times a real epoch on every actor at the same time, and holds the actors to the timeout that follows.

    Args:
        algorithm: the actors.
        epochs: of an episode.
        timeout_seconds: asked for; None: it follows from the epoch.

    Raises:
        EpisodeFailedError: an actor cannot train an epoch, or takes longer over it than an episode was granted.
        PlacementError: a machine has too little memory for its actors.
    """
    try:
        seats = tuple(algorithm.ask_all("take_seat", timeout_seconds))
    except GetTimeoutError:
        raise EpisodeFailedError(f"a host epoch takes longer than --episode-timeout {timeout_seconds:g}") from None
    except RayError as error:
        raise EpisodeFailedError(f"an actor cannot train an epoch: {error}") from error
    _require_memory(seats)
    measured = max(_SHORTEST_TIMEOUT, _TIMEOUT_MARGIN * epochs * max(seat.epoch_seconds for seat in seats))
    found = Preflight(seats, epochs, timeout_seconds or measured)
    if algorithm.dispatcher is not None:
        algorithm.dispatcher.timeout_s = found.timeout_seconds
    return found
