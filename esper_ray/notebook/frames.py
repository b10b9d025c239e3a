"""Pandas frames of the results of runs, comparisons and searches."""

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from esper_ray.errors import ConfigurationError
from esper_ray.orchestration.config import WAYS
from esper_ray.orchestration.held_out.comparison import Comparison
from esper_ray.orchestration.held_out.paired import score, test_accuracy
from esper_ray.orchestration.run.run_folder import read_episodes, read_metrics
from esper_ray.orchestration.tuning.ranking import RankedSetting, TrialResult

_LISTS = ("per_epoch", "stages")


def iterations_frame(run: Path) -> pd.DataFrame:
    """Returns a row per iteration, indexed by it; nested figures as "learner.kl", "actions.WAIT"."""
    frame = pd.json_normalize(read_metrics(run))
    return frame.set_index("iteration") if len(frame) else frame


def episodes_frame(run: Path) -> pd.DataFrame:
    """Returns a row per episode, indexed by its number, without the measurements of each epoch."""
    rows = [{key: value for key, value in row.items() if key not in _LISTS} for row in read_episodes(run).values()]
    frame = pd.json_normalize(rows)
    return frame.set_index("episode").sort_index() if len(frame) else frame


def epochs_frame(run: Path, episode: int) -> pd.DataFrame:
    """Returns a row per epoch of an episode, indexed by it: decision, stage, accuracies, alpha, gradients, reward.

    Raises:
        ConfigurationError: the run has no such episode.
    """
    rows = read_episodes(run)
    if episode not in rows:
        raise ConfigurationError(f"{run} has no episode {episode}: expected 1 to {max(rows, default=0)}")
    row = rows[episode]
    columns = {name: values for name, values in row["per_epoch"].items() if name != "reward_components"}
    components = row["per_epoch"]["reward_components"]
    parts = {f"reward.{name}": values for name, values in components.items()}
    return pd.DataFrame({**columns, "stage": row["stages"], **parts}).set_index("epoch")


def policies_frame(comparison: Comparison) -> pd.DataFrame:
    """Returns a row per policy of a comparison: means over the held-out hosts."""
    return pd.DataFrame(comparison.as_dict()["policies"])


def differences_frame(comparison: Comparison) -> pd.DataFrame:
    """Returns learned − control in points, with 95 % bootstrap intervals over the held-out hosts."""
    rows: list[dict[str, Any]] = []
    checkpoints = list(comparison.manifests)
    for way in WAYS:
        for control in comparison.control_names:
            for measure, name in ((score, "score of record"), (test_accuracy, "kept test accuracy")):
                found = comparison.difference(control, way, checkpoints, measure)
                low, high = found.ci95 or (nan, nan)
                place = {"policy": way, "control": control, "measure": name}
                rows.append({**place, "difference": found.mean, "low": low, "high": high, "verdict": found.verdict})
    return pd.DataFrame(rows).set_index(["policy", "control", "measure"])


def trials_frame(trials: Sequence[TrialResult]) -> pd.DataFrame:
    """Returns a row per trial of a search, indexed by its name."""
    rows = [
        {
            "trial": trial.name,
            "status": trial.status,
            **trial.setting,
            "seed": trial.seed,
            "iterations": trial.iterations,
            "value": trial.value,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows).set_index("trial") if rows else pd.DataFrame()


def ranking_frame(ranking: Sequence[RankedSetting]) -> pd.DataFrame:
    """Returns a row per setting, best first, indexed by rank: mean and standard deviation over the training seeds."""
    rows = [
        {
            "rank": place,
            **entry.setting,
            "mean": entry.mean,
            "std": entry.std,
            "seeds": len(entry.trials),
            "complete": entry.complete,
        }
        for place, entry in enumerate(ranking, start=1)
    ]
    return pd.DataFrame(rows).set_index("rank") if rows else pd.DataFrame()
