"""The statistics of a comparison: paired differences, bootstrap intervals, and what they say in a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from esper_ray.orchestration.episode_store import Outcome

_CONFIDENCE = 0.95
_RESAMPLES = 9_999


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, points, and its 95 % bootstrap confidence interval."""

    mean: float
    ci95: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        return {"mean": self.mean, "ci95": list(self.ci95)}

    def __format__(self, precision: str) -> str:
        """Returns mean [interval] with the given precision, such as ".2f"."""
        number = f"+{precision or '.1f'}"
        return f"{self.mean:{number}} [{self.ci95[0]:{number}}, {self.ci95[1]:{number}}]"

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "no difference shown"."""
        if self.ci95[0] > 0:
            return "better"
        return "worse" if self.ci95[1] < 0 else "no difference shown"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Returns the mean of ours − theirs over the host seeds, with the percentile bootstrap interval over host seeds.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. Of a single pair the interval is the difference.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean, (mean, mean))
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
    return [float(outcome.test_score) for outcome in outcomes if outcome.test_score is not None]


def test_accuracy(outcomes: Sequence[Outcome]) -> list[float]:
    """Returns the kept test accuracies, percent."""
    return [float(o.kept_test_accuracy) for o in outcomes if o.kept_test_accuracy is not None]


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


def verdict(differences: Mapping[str, Difference], episodes: int, way: str) -> str:
    """Returns in a sentence what the differences in the score of record say, control by control.

    Args:
        way: "sampled" or "greedy", how the learned policy acted.
    """
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
        return f"No difference shown between the learned policy ({way}) and {controls}, on {episodes} held-out hosts."
    return f"On {episodes} held-out hosts the learned policy ({way}) {said}."
