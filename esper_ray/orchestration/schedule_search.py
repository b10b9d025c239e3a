"""The best fixed schedule: blueprint × germination epoch × delay before FOSSILIZE, found on training seeds only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from esper_ray.episode import ActionTable, Policy
from esper_ray.orchestration.algorithm import EpisodePPO
from esper_ray.orchestration.episode_store import EpisodeStore, play_missing
from esper_ray.policies import SchedulePolicy, WaitPolicy
from esper_ray.tasks import TaskSpec

_GERMINATION_STEPS = 3
_DELAY_STEPS = 4
_SURVIVORS = 0.25


@dataclass(frozen=True)
class Schedule:
    """A fixed schedule; without a blueprint, waiting.

    Attributes:
        germinate_at: completed epochs before germination.
        fossilize_at: completed epochs before fossilizing, at least.
    """

    blueprint_id: str | None = None
    germinate_at: int = 0
    fossilize_at: int = 0

    def __str__(self) -> str:
        if self.blueprint_id is None:
            return "wait"
        return f"{self.blueprint_id} germinated after epoch {self.germinate_at}, fossilized from {self.fossilize_at} on"

    def policy(self, actions: ActionTable) -> Policy:
        """Returns the policy that follows it."""
        if self.blueprint_id is None:
            return WaitPolicy()
        return SchedulePolicy(actions, self.blueprint_id, self.germinate_at, self.fossilize_at)


@dataclass(frozen=True)
class FoundSchedule:
    """The best schedule and what the search cost.

    Attributes:
        score: its mean score on the seeds of the last round, with validation in the place of test accuracy.
        seeds: how many training hosts the last round used.
        candidates: how many schedules there were.
        episodes: how many were played to find it.
    """

    schedule: Schedule
    score: float
    seeds: int
    candidates: int
    episodes: int


def candidates(task: TaskSpec, actions: ActionTable) -> list[Schedule]:
    """Returns every schedule of the search, and waiting.

    Germination epochs run from the first possible one to the middle of the time that is left for it, delays from none
    to the last decision of the episode.
    """
    first, last_decision = task.earliest_germination, task.max_epochs - 1
    growth = task.earliest_probation - first
    latest = max(first, (first + last_decision - growth) // 2)
    found = [Schedule()]
    for blueprint_id in actions.blueprint_ids:
        for germinate_at in _evenly(first, latest, _GERMINATION_STEPS):
            for fossilize_at in _evenly(germinate_at + growth, last_decision, _DELAY_STEPS):
                found.append(Schedule(blueprint_id, germinate_at, fossilize_at))
    return found


def search_schedule(
    store: EpisodeStore,
    algorithm: EpisodePPO,
    task: TaskSpec,
    actions: ActionTable,
    seeds: Sequence[int],
    rounds: Sequence[int],
    on_episode: Callable[[int, int], None],
) -> FoundSchedule:
    """Plays every schedule on a few training seeds, the best quarter on more of them, and so on (successive halving).

    Ranked by the mean score with validation accuracy; the test split is not touched. Jamieson and Talwalkar,
    "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.

    Args:
        seeds: training seeds.
        rounds: how many of them each round uses, as far as there are as many; the last one decides.
    """
    rounds = list(dict.fromkeys(min(count, len(seeds)) for count in rounds))
    left = everyone = candidates(task, actions)
    counts = [max(1, round(len(everyone) * _SURVIVORS**i)) for i in range(len(rounds))]
    played_before = [0, *rounds[:-1]]
    total = sum(count * (seen - before) for count, seen, before in zip(counts, rounds, played_before, strict=True))
    done = 0
    scores: dict[Schedule, float] = {}
    for count, seen, before in zip(counts, rounds, played_before, strict=True):
        left = sorted(left, key=lambda schedule: -scores.get(schedule, 0.0))[:count]
        for schedule in left:
            outcomes = play_missing(
                store, algorithm, f"search: {schedule}", schedule.policy(actions), seeds[:seen], measure_test=False
            )
            scores[schedule] = fmean(outcome.val_score for outcome in outcomes)
            done += seen - before
            on_episode(done, total)
    best = max(left, key=lambda schedule: scores[schedule])
    return FoundSchedule(best, scores[best], rounds[-1], len(everyone), total)


def _evenly(first: int, last: int, steps: int) -> list[int]:
    """Returns up to `steps` whole numbers from `first` to `last`, evenly spread."""
    return sorted({round(first + (last - first) * i / (steps - 1)) for i in range(steps)})
