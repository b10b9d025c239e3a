"""The statistics of a comparison: paired differences, bootstrap intervals, and a verdict in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from esper_ray.orchestration.held_out.episode_store import Outcome

_CONFIDENCE = 0.95
_RESAMPLES = 9_999
FEWEST_HOSTS = 10
"""Hosts below which a difference has no interval and is not called one."""
TOO_FEW = "too few hosts"


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, points, and its 95 % bootstrap confidence interval; None for too few hosts."""

    mean: float
    ci95: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        return {"mean": self.mean, "ci95": None if self.ci95 is None else list(self.ci95)}

    def __format__(self, precision: str) -> str:
        """Returns mean [interval] with the given precision, such as ".2f"; for too few hosts the mean alone."""
        number = f"+{precision or '.1f'}"
        if self.ci95 is None:
            return f"{self.mean:{number}} ({TOO_FEW})"
        return f"{self.mean:{number}} [{self.ci95[0]:{number}}, {self.ci95[1]:{number}}]"

    @property
    def verdict(self) -> str:
        """ "better", "worse", "no difference shown" or "too few hosts"."""
        if self.ci95 is None:
            return TOO_FEW
        if self.ci95[0] <= 0 <= self.ci95[1]:
            return "no difference shown"
        return "better" if self.ci95[0] > 0 else "worse"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Returns the mean of ours − theirs over the host seeds, with the percentile bootstrap interval over host seeds.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    assert len(ours) == len(theirs), "a difference is paired by host"
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    mean = float(differences.mean())
    if len(differences) < FEWEST_HOSTS:
        return Difference(mean, None)
    interval = bootstrap(
        (differences,),
        np.mean,
        confidence_level=_CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Difference(mean, (float(interval.low), float(interval.high)))


def score(outcomes: Sequence[Outcome]) -> list[float]:
    """Returns the scores of record."""
    return [_measured(outcome.test_score) for outcome in outcomes]


def test_accuracy(outcomes: Sequence[Outcome]) -> list[float]:
    """Returns the kept test accuracies, percent."""
    return [_measured(outcome.kept_test_accuracy) for outcome in outcomes]


def _measured(value: float | None) -> float:
    assert value is not None, "the test split is measured in every episode of a report"
    return value


def means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Returns the mean score of record, kept accuracies, added parameters, and the share of hosts that kept a seed."""
    return {
        "score": float(np.mean(score(outcomes))),
        "kept_test_accuracy": float(np.mean(test_accuracy(outcomes))),
        "kept_val_accuracy": float(np.mean([o.kept_val_accuracy for o in outcomes])),
        "added_parameters": float(np.mean([o.added_parameters for o in outcomes])),
        "fossilized_share": float(np.mean([o.kept_blueprint is not None for o in outcomes])),
    }


def over_training_seeds(per_checkpoint: Sequence[Sequence[float]]) -> list[float]:
    """Returns, for each held-out host, the mean over the checkpoints."""
    return [float(value) for value in np.mean(np.asarray(per_checkpoint, dtype=float), axis=0)]


def verdict(differences: Mapping[str, Difference], episodes: int, who: str) -> str:
    """Returns the verdict on the differences in the score of record, control by control, as a sentence.

    Args:
        who: what the differences are of, such as "the learned policy (sampled)".
    """
    if episodes < FEWEST_HOSTS:
        means = ", ".join(f"{control} {difference.mean:+.1f}" for control, difference in differences.items())
        return (
            f"{episodes} held-out host{'s are' if episodes != 1 else ' is'} too few to compare {who} with the controls "
            f"(mean differences: {means}); it takes {FEWEST_HOSTS} at least (--episodes)."
        )
    groups: dict[str, list[str]] = {}
    for control, difference in differences.items():
        groups.setdefault(difference.verdict, []).append(f"{control} ({difference})")
    phrases = {
        "better": "is better than {}",
        "worse": "is worse than {}",
        "no difference shown": "shows no difference from {}",
    }
    said = "; ".join(phrase.format(", ".join(groups[group])) for group, phrase in phrases.items() if group in groups)
    if set(groups) == {"no difference shown"}:
        controls = ", ".join(groups["no difference shown"])
        return f"No difference shown between {who} and {controls}, on {episodes} held-out hosts."
    return f"On {episodes} held-out hosts {who} {said}."
