"""Ranks the settings of a search by its trials, with the spread over the training seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean
from typing import Any

from esper_ray.orchestration.run.metrics import standard_deviation
from esper_ray.orchestration.run.run_result import LAST_SHARE


@dataclass
class TrialResult:
    """The result of a trial.

    Attributes:
        name: of its run folder.
        setting: dotted key → value.
        status: "pending", "running", "paused", "finished", "stopped" (early, by the scheduler or a stop rule) or
            "failed".
        iterations: that are over; of `of`.
        history: the metric after each iteration that measured it.
        failure: the last line of the error.
    """

    name: str
    setting: dict[str, Any]
    seed: int
    of: int
    status: str = "pending"
    iterations: int = 0
    history: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def value(self) -> float | None:
        """Mean of the metric over the last fifth of the iterations; None before the first."""
        if not self.history:
            return None
        return fmean(self.history[-max(1, ceil(LAST_SHARE * len(self.history))) :])

    @property
    def is_whole(self) -> bool:
        """True if the trial reached its last iteration or a stop rule."""
        return self.status == "finished"


@dataclass(frozen=True)
class RankedSetting:
    """A setting and how it did.

    Attributes:
        trials: its trials that measured the metric, by training seed.
        complete: there is one of every seed, and all came to their end.
    """

    setting: dict[str, Any]
    trials: Sequence[TrialResult]
    complete: bool

    @property
    def mean(self) -> float:
        """Mean of the metric over the training seeds."""
        return fmean(value for trial in self.trials if (value := trial.value) is not None)

    @property
    def std(self) -> float | None:
        """Standard deviation over the training seeds; None for a single one."""
        return standard_deviation([value for trial in self.trials if (value := trial.value) is not None])

    def as_dict(self, rank: int) -> dict[str, Any]:
        """Returns its entry of ranking.json."""
        return {
            "rank": rank,
            "setting": self.setting,
            "mean": self.mean,
            "std": self.std,
            "values": [trial.value for trial in self.trials],
            "seeds": [trial.seed for trial in self.trials],
            "iterations": [trial.iterations for trial in self.trials],
            "complete": self.complete,
            "trials": [trial.name for trial in self.trials],
        }


def rank(
    trials: Sequence[TrialResult], mode: str, seeds: Sequence[int], each_by_itself: bool = False
) -> list[RankedSetting]:
    """Returns the settings, best first: those whose trials all came to their end before those that were ended early.

    Among the latter one that got further counts for more: what a metric would have become is not known.

    Args:
        mode: "max" or "min".
        seeds: the training seeds that a whole setting was tried with.
        each_by_itself: every trial has a setting of its own, because population-based training changed it.
    """
    groups: dict[str, list[TrialResult]] = {}
    for trial in trials:
        groups.setdefault(trial.name if each_by_itself else repr(sorted(trial.setting.items())), []).append(trial)
    ranked = []
    for group in groups.values():
        measured = sorted((trial for trial in group if trial.history), key=lambda trial: (trial.seed, trial.name))
        if measured:
            everyone = each_by_itself or {trial.seed for trial in measured} == set(seeds)
            whole = everyone and all(trial.is_whole for trial in group)
            ranked.append(RankedSetting(group[0].setting, measured, whole))
    sign = -1 if mode == "max" else 1

    def order(entry: RankedSetting) -> tuple[bool, float, float]:
        reached = 0.0 if entry.complete else fmean(trial.iterations for trial in entry.trials)
        return not entry.complete, -reached, sign * entry.mean

    return sorted(ranked, key=order)


def describe(setting: Mapping[str, Any]) -> str:
    """Returns a setting in a line, such as "ppo.lr_start 0.001, reward gain"."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in setting.items()
    )
