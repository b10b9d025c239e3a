"""The best fixed schedule: blueprint × germination epoch × delay before FOSSILIZE, found on training seeds only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from esper_ray.episode import ActionTable, Policy
from esper_ray.orchestration.held_out.episode_store import EpisodeStore, play_missing
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.policies import SchedulePolicy, WaitPolicy
from esper_ray.tasks import TaskSpec

_GERMINATION_STEPS = 3
_DELAY_STEPS = 4
_SURVIVORS = 0.25
_RANKED = 5


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
    """The best schedule and the cost of the search.

    Attributes:
        ranking: the best schedules with their mean scores on the hosts of the last round, best first, with validation
            in the place of test accuracy.
        hosts: how many the last round used.
        candidates: how many schedules were tried.
        episodes: how many were played to find it.
    """

    ranking: list[tuple[Schedule, float]]
    hosts: int
    candidates: int
    episodes: int

    @property
    def schedule(self) -> Schedule:
        """The best one."""
        return self.ranking[0][0]


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
    algorithm: EpisodeAlgorithm,
    task: TaskSpec,
    actions: ActionTable,
    seeds: Sequence[int],
    rounds: Sequence[int],
    on_episode: Callable[[int, int], None],
) -> FoundSchedule:
    """Plays every schedule on a few training hosts, the best quarter on more of them, and so on (successive halving).

    The best of each blueprint stays in to the last round: one blueprint's variants in time score nearly alike, and
    would crowd out another that a few hosts more would have put first. Then the winner's neighbours in time are tried
    on all hosts, until none of them is better. Ranked by the mean score with validation accuracy; the test split is
    not touched. Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.

    Args:
        seeds: host seeds that the final report does not use, as many as the last round needs.
        rounds: how many of them each round uses; the last one decides.
    """
    everyone = candidates(task, actions)
    counts = [max(1, round(len(everyone) * _SURVIVORS**i)) for i in range(len(rounds))]
    planned = sum(
        count * (hosts - before) for count, hosts, before in zip(counts, rounds, [0, *rounds[:-1]], strict=True)
    )
    played: dict[Schedule, int] = {}
    scores: dict[Schedule, float] = {}

    def play(schedule: Schedule, hosts: int) -> None:
        outcomes = play_missing(
            store, algorithm, f"search: {schedule}", schedule.policy(actions), seeds[:hosts], measure_test=False
        )
        scores[schedule], played[schedule] = fmean(outcome.val_score for outcome in outcomes), hosts
        done = sum(played.values())
        on_episode(done, max(done + 1, planned))

    left = everyone
    for count, hosts in zip(counts, rounds, strict=True):
        left = survivors(left, scores, count)
        for schedule in left:
            play(schedule, hosts)
    best = max(left, key=lambda schedule: scores[schedule])
    while untried := [s for s in neighbours(best, task) if played.get(s, 0) < rounds[-1]]:
        for schedule in untried:
            play(schedule, rounds[-1])
        left = [*left, *untried]
        best = max(left, key=lambda schedule: scores[schedule])
    episodes = sum(played.values())
    on_episode(episodes, episodes)
    ranking = sorted(((s, scores[s]) for s in left), key=lambda pair: -pair[1])[:_RANKED]
    return FoundSchedule(ranking, rounds[-1], len(played), episodes)


def survivors(schedules: Sequence[Schedule], scores: Mapping[Schedule, float], count: int) -> list[Schedule]:
    """Returns the best `count` schedules and the best of each blueprint, best first."""
    ranked = sorted(schedules, key=lambda schedule: -scores.get(schedule, 0.0))
    best = {schedule.blueprint_id: schedule for schedule in reversed(ranked)}
    return [s for place, s in enumerate(ranked) if place < count or best[s.blueprint_id] is s]


def neighbours(schedule: Schedule, task: TaskSpec) -> list[Schedule]:
    """Returns the schedules that germinate an epoch, or fossilize two epochs, earlier or later; none of waiting."""
    if schedule.blueprint_id is None:
        return []
    growth, last_decision = task.earliest_probation - task.earliest_germination, task.max_epochs - 1
    times = [
        (schedule.germinate_at - 1, schedule.fossilize_at),
        (schedule.germinate_at + 1, schedule.fossilize_at),
        (schedule.germinate_at, schedule.fossilize_at - 2),
        (schedule.germinate_at, schedule.fossilize_at + 2),
    ]
    found = []
    for germinate_at, fossilize_at in times:
        fossilize_at = min(max(fossilize_at, germinate_at + growth), last_decision)
        if task.earliest_germination <= germinate_at <= last_decision - growth:
            found.append(Schedule(schedule.blueprint_id, germinate_at, fossilize_at))
    return [near for near in dict.fromkeys(found) if near != schedule]


def _evenly(first: int, last: int, steps: int) -> list[int]:
    """Returns up to `steps` whole numbers from `first` to `last`, evenly spread."""
    return sorted({round(first + (last - first) * i / (steps - 1)) for i in range(steps)})
