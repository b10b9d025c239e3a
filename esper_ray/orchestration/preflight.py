"""What a run will need before it begins: a real epoch is timed on every actor, and the rest follows."""

from dataclasses import dataclass
from math import ceil

from ray.exceptions import RayError

from esper_ray.errors import EpisodeFailedError
from esper_ray.orchestration.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.env_runner import Seat
from esper_ray.orchestration.plan import RunPlan

_TIMEOUT_MARGIN = 10.0
"""Epochs with a large seed, a twin of the reward and a loaded machine all make an episode longer than was measured."""
_SHORTEST_TIMEOUT = 60.0


@dataclass(frozen=True)
class Preflight:
    """What a run will need. Times are wall time in seconds, from epochs without a seed; those with one are slower."""

    plan: RunPlan
    seats: tuple[Seat, ...]
    episode_seconds: float
    iteration_seconds: float
    run_seconds: float
    timeout_seconds: float

    @property
    def memory(self) -> int:
        """Bytes of all actors."""
        return sum(seat.memory for seat in self.seats)


def check(algorithm: EpisodeAlgorithm, plan: RunPlan) -> Preflight:
    """Times an epoch on every actor at the same time.

    Raises:
        EpisodeFailedError: an actor cannot train an epoch.
    """
    try:
        seats = tuple(algorithm.ask_all("take_seat"))
    except RayError as error:
        raise EpisodeFailedError(f"an actor cannot train an epoch: {error}") from error
    slowest = max(seat.epoch_seconds for seat in seats)
    episode = slowest * plan.task.max_epochs
    config = plan.config
    rounds = ceil(plan.episodes / plan.placement.players)
    iteration = rounds * episode
    evaluations = 0.0
    if isinstance(config, TrainConfig) and config.evaluate_every:
        each = 2 * ceil(config.evaluation_episodes / plan.placement.players) * episode
        evaluations = plan.iterations // config.evaluate_every * each
    waiting = ceil(plan.wait_only_episodes / plan.placement.players) * episode
    asked = config.episode_timeout if isinstance(config, TrainConfig) else None
    return Preflight(
        plan=plan,
        seats=seats,
        episode_seconds=episode,
        iteration_seconds=iteration,
        run_seconds=waiting + plan.iterations * iteration + evaluations,
        timeout_seconds=asked or max(_SHORTEST_TIMEOUT, _TIMEOUT_MARGIN * episode),
    )
