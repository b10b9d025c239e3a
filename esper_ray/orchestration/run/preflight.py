"""Estimates of time and memory before a run, from one real epoch timed on every actor."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

import ray
from ray.exceptions import GetTimeoutError, RayError

from esper_ray.errors import EpisodeFailedError, PlacementError
from esper_ray.numerics import UNSET
from esper_ray.orchestration.fleet.env_runner import WorkerInfo
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm

_TIMEOUT_MARGIN = 10.0
"""Epochs with a large seed, a twin of the reward and a loaded machine all make an episode longer than was measured."""
_SHORTEST_TIMEOUT = 60.0


@dataclass(frozen=True)
class Preflight:
    """Placement of the actors and the measured time of an epoch.

    Attributes:
        workers: of the actors, or of this process without any.
        epochs: of an episode.
        timeout_seconds: after which an actor that has finished no epoch is replaced.
    """

    workers: tuple[WorkerInfo, ...]
    epochs: int
    timeout_seconds: float

    @property
    def episode_seconds(self) -> float:
        """Wall time of the episodes that the slowest actor plays at the same time, by epochs without a seed; those with
        one take longer."""
        return self.epochs * max(worker.epoch_seconds for worker in self.workers)

    @property
    def memory(self) -> int:
        """Bytes of all actors."""
        return sum(worker.memory for worker in self.workers)

    @property
    def numerics(self) -> dict[str, str]:
        """Numeric settings of the actors, see `numeric_settings`; of unequal actors all values."""
        names = sorted({name for worker in self.workers for name in worker.numerics})
        return {
            name: " or ".join(sorted({worker.numerics.get(name, UNSET) for worker in self.workers})) for name in names
        }

    def seconds_for(self, episodes: int) -> float:
        """Returns the wall time of so many episodes, shared out over the actors."""
        at_a_time = sum(worker.hosts for worker in self.workers)
        return ceil(episodes / at_a_time) * self.episode_seconds


def _require_memory(workers: Sequence[WorkerInfo]) -> None:
    """Refuses actors that need more memory than Ray has for workers on their machine."""
    offered = {node["NodeID"]: int(node["Resources"].get("memory", 0)) for node in ray.nodes()}
    fit = len(workers)
    crowded = None
    for node_id, on_node in groupby(
        sorted(workers, key=lambda worker: worker.node_id), key=lambda worker: worker.node_id
    ):
        sizes = [worker.memory for worker in on_node]
        if sum(sizes) > offered[node_id]:
            fit -= len(sizes) - offered[node_id] // max(sizes)
            crowded = crowded or (node_id, len(sizes), max(sizes))
    if crowded is None:
        return
    node_id, count, size = crowded
    name = next(worker.node for worker in workers if worker.node_id == node_id)
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
        EpisodeFailedError: an actor cannot train an epoch, or finishes none within its timeout.
        PlacementError: a machine has too little memory for its actors.
    """
    try:
        workers = tuple(algorithm.ask_all("worker_info", timeout_seconds))
    except GetTimeoutError:
        raise EpisodeFailedError(f"a host epoch takes longer than --episode-timeout {timeout_seconds:g}") from None
    except RayError as error:
        raise EpisodeFailedError(f"an actor cannot train an epoch: {error}") from error
    _require_memory(workers)
    measured = max(_SHORTEST_TIMEOUT, _TIMEOUT_MARGIN * epochs * max(worker.epoch_seconds for worker in workers))
    found = Preflight(workers, epochs, timeout_seconds or measured)
    if algorithm.dispatcher is not None:
        algorithm.dispatcher.timeout_s = found.timeout_seconds
    return found
