"""Computes the metrics row of an iteration from its episodes and RLlib's result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

from esper_ray.episode import EpisodeRecord
from esper_ray.episode.governor import Failure
from esper_ray.lifecycle import SeedStage

_LEARNER_KEYS = {
    "entropy": "entropy",
    "policy_loss": "policy_loss",
    "value_loss": "vf_loss_unclipped",
    "gradient_norm": "gradients_default_optimizer_global_norm",
    "learning_rate": "default_optimizer_learning_rate",
    "entropy_coefficient": "curr_entropy_coeff",
}
_GRADIENTS = ("gradient_norm", "gradient_health", "host_gradient_norm", "seed_gradient_ratio")


def episode_metrics(records: Sequence[EpisodeRecord], action_names: Sequence[str]) -> dict[str, Any]:
    """Returns the means over an iteration's episodes: outcomes, reward components, actions, gradient statistics.

    Accuracies in percent; actions, stages and rollbacks as counts over all episodes.
    """
    actions = Counter(epoch.decision for record in records for epoch in record.epochs)
    stages = Counter(stage for record in records for stage in record.stages_reached)
    failures = Counter(epoch.rolled_back for record in records for epoch in record.epochs)
    components = [record.reward_components for record in records]
    return {
        "return": fmean(record.episode_return for record in records),
        "kept_val_accuracy": fmean(record.kept_val_accuracy for record in records),
        "kept_val_loss": fmean(record.kept_val_loss for record in records),
        "kept_val_accuracy_std": standard_deviation([record.kept_val_accuracy for record in records]),
        "final_val_accuracy": fmean(record.final_val_accuracy for record in records),
        "added_parameters": fmean(record.added_parameters for record in records),
        "score": fmean(record.val_score for record in records),
        "episode_seconds": fmean(record.seconds for record in records),
        "rollbacks": sum(record.rollbacks for record in records),
        "rollbacks_by_cause": {failure.name.lower(): failures[failure.value] for failure in Failure},
        "fossilized_share": fmean(record.final_stage == SeedStage.FOSSILIZED.name for record in records),
        "actions": {name: actions[name] for name in action_names},
        "episodes_reaching": {stage.name: stages[stage.name] for stage in SeedStage},
        "reward_components": {name: fmean(c[name] for c in components) for name in components[0]},
        "gradients": {name: _mean_gradient(records, name) for name in _GRADIENTS},
    }


def learner_metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the learner's numbers out of an RLlib result; None where RLlib reported none."""
    found = result.get("learners", {}).get("default_policy", {})
    return {name: float(found[key]) if key in found else None for name, key in _LEARNER_KEYS.items()}


def lookup(row: Mapping[str, Any], key: str) -> float | None:
    """Returns a figure of a row of metrics.jsonl by its dotted name, or None if the row has no such number."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def standard_deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation; None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def mean_with_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and its standard error; the error of a single value is not known: None."""
    deviation = standard_deviation(values)
    return fmean(values), None if deviation is None else deviation / sqrt(len(values))


def difference_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95 % confidence interval of mean(ours) − mean(theirs); None if it cannot be estimated.

    That takes two values on each side, and values that are not all alike.

    Welch, "The generalization of 'Student's' problem when several different population variances are involved", 1947.
    """
    (mean, error), (other_mean, other_error) = mean_with_error(ours), mean_with_error(theirs)
    if error is None or other_error is None:
        return None
    difference, variances = mean - other_mean, (error**2, other_error**2)
    if sum(variances) == 0.0:
        return None
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (ours, theirs), strict=True))
    margin = float(student_t.ppf(0.975, freedom)) * sqrt(sum(variances))
    return difference - margin, difference + margin


def error_text(error: float | None) -> str:
    """Returns a standard error in words."""
    return "standard error not known" if error is None else f"standard error {error:.1f}"


def interval_text(interval: Sequence[float] | None) -> str:
    """Returns a 95 % interval in words."""
    return "95 % interval not known" if interval is None else f"95 % interval [{interval[0]:+.1f}, {interval[1]:+.1f}]"


def _mean_gradient(records: Sequence[EpisodeRecord], name: str) -> float | None:
    """Returns the mean over all epochs with a live seed whose gradient was finite; None if there was none."""
    values = [value for record in records for epoch in record.epochs if (value := getattr(epoch, name)) is not None]
    finite = [value for value in values if isfinite(value)]
    return fmean(finite) if finite else None
