"""Computes the metrics row of an iteration from its episodes and RLlib's result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any

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
        "kept_val_accuracy_std": stdev(r.kept_val_accuracy for r in records) if len(records) > 1 else 0.0,
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


def mean_with_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error; the error of a single value is 0."""
    return fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def _mean_gradient(records: Sequence[EpisodeRecord], name: str) -> float | None:
    """Returns the mean over all epochs with a live seed whose gradient was finite; None if there was none."""
    values = [value for record in records for epoch in record.epochs if (value := getattr(epoch, name)) is not None]
    finite = [value for value in values if isfinite(value)]
    return fmean(finite) if finite else None
