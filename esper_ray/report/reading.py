"""Reads a run folder or a search folder for a report, also while it is being written."""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from esper_ray.errors import RunFolderError, no_permission
from esper_ray.orchestration.run.run_folder import HELD_OUT, is_run, read_config, read_episodes, read_metrics
from esper_ray.orchestration.tuning.search_folder import BEST, RANKING, is_search, read_experiment, trial_folders

_COMPARISON = re.compile(r"comparison(?:-of-\d+)?\.json")
_WATCHED = ("config.json", "metrics.jsonl", "episodes.jsonl", "summary.json")
_FEWEST_SECONDS_OF_STANDSTILL = 60.0
_ITERATIONS_OF_STANDSTILL = 5.0

Row = dict[str, Any]


@dataclass
class RunData:
    """The content of a run folder.

    Attributes:
        iterations: rows of metrics.jsonl, in order.
        episodes: rows of episodes.jsonl, in the order of their numbers.
        summary: None while the run goes on, or if it was killed.
        comparisons: file name → comparison with the controls.
        idle_seconds: since a row was last written.
    """

    folder: Path
    config: Row
    iterations: list[Row]
    episodes: list[Row]
    summary: Row | None
    comparisons: dict[str, Row] = field(default_factory=dict)
    idle_seconds: float = 0.0

    @property
    def command(self) -> Row:
        """The command's name and flags."""
        return dict(self.config["command"])

    @property
    def task(self) -> Row:
        """The task's settings."""
        return dict(self.config.get("task") or {})

    @property
    def actions(self) -> list[str]:
        """Names of the actions, WAIT first."""
        return [str(name) for name in self.config.get("actions", ())]

    @property
    def max_epochs(self) -> int:
        """Host epochs of an episode."""
        longest = max((len(row["stages"]) for row in self.episodes), default=1)
        return max(int(self.task.get("max_epochs") or 1), longest)

    @property
    def learns(self) -> bool:
        """True if the run updates a policy, so that its iterations are a training."""
        return bool(self.config.get("iterations"))

    @property
    def idle_gap_seconds(self) -> float:
        """Seconds without a write after which the run is shown as standing still."""
        ends = [row["seconds"] for row in self.iterations if isinstance(row.get("seconds"), float | int)]
        steps = [after - before for before, after in zip([0.0, *ends], ends, strict=False)]
        return max(_FEWEST_SECONDS_OF_STANDSTILL, _ITERATIONS_OF_STANDSTILL * (median(steps) if steps else 60.0))

    @property
    def status(self) -> str:
        """ "complete", "interrupted", "running" or "standing still"."""
        if self.summary is not None:
            ended = self.summary.get("complete", not self.summary.get("interrupted"))
            return "complete" if ended else "interrupted"
        return "standing still" if self.idle_seconds > self.idle_gap_seconds else "running"


@dataclass
class SearchData:
    """The content of a search folder.

    Attributes:
        experiment: what was searched.
        ranking: None until the search has ended.
        trials: trial's name → its run.
        damaged: trial's name → why it could not be read.
        best: text of the best configuration, or None.
    """

    folder: Path
    experiment: Row
    ranking: Row | None
    trials: dict[str, RunData]
    damaged: dict[str, str]
    best: str | None

    @property
    def search(self) -> Row:
        """The resolved search file."""
        return dict(self.experiment.get("search") or {})

    @property
    def metric(self) -> str:
        """The metric that settings are ranked by."""
        return str((self.ranking or self.search).get("metric", "score"))

    @property
    def mode(self) -> str:
        """Direction of the metric: "max" if larger is better, "min" if smaller is."""
        return str((self.ranking or self.search).get("mode", "max"))

    @property
    def idle_gap_seconds(self) -> float:
        """Seconds without a write after which the search is shown as standing still."""
        return max((run.idle_gap_seconds for run in self.trials.values()), default=_FEWEST_SECONDS_OF_STANDSTILL)

    @property
    def status(self) -> str:
        """ "complete", "interrupted", "running" or "standing still"."""
        if self.ranking is not None:
            return "interrupted" if self.ranking.get("interrupted") else "complete"
        going = [run for run in self.trials.values() if run.summary is None]
        return "standing still" if going and all(run.status == "standing still" for run in going) else "running"


def require_readable(folder: Path) -> None:
    """Checks that a folder holds a run or a search.

    Raises:
        RunFolderError: it does not, or there is no such folder.
    """
    if (refusal := no_permission(folder)) is not None:
        raise RunFolderError(refusal)
    if not folder.exists():
        raise RunFolderError(f"there is no folder {folder}; name the folder of a run or of a search")
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is no folder; name the folder of a run or of a search")
    if not is_search(folder) and not is_run(folder):
        raise RunFolderError(
            f"{folder} holds no run and no search (no config.json, no experiment.json); name a folder that does"
        )


def load_run(folder: Path, with_episodes: bool = True) -> RunData:
    """Reads a run.

    Raises:
        RunFolderError: it is damaged, or there is none.
    """
    config = read_config(folder)
    iterations = _rows(folder, "metrics.jsonl", ("iteration", "kept_val_accuracy"))
    episodes: list[Row] = []
    if with_episodes and (folder / "episodes.jsonl").exists():
        found = read_episodes(folder)
        episodes = [found[number] for number in sorted(found)]
        if any("per_epoch" not in row or "stages" not in row for row in episodes):
            raise RunFolderError(f"{folder / 'episodes.jsonl'} was written by an earlier version; play the run again")
    comparisons = {
        str(path.relative_to(folder / HELD_OUT)): content
        for path in _comparison_files(folder)
        if (content := _json(path)) is not None and isinstance(content.get("controls"), dict)
    }
    return RunData(folder, config, iterations, episodes, _json(folder / "summary.json"), comparisons, _idle(folder))


def load_search(folder: Path) -> SearchData:
    """Reads a search and the iterations of its trials; a trial that cannot be read is named, not fatal.

    Raises:
        RunFolderError: the search itself is damaged.
    """
    experiment = read_experiment(folder)
    trials, damaged = {}, {}
    for path in trial_folders(folder):
        if not is_run(path):
            continue  # its actors are still starting
        try:
            trials[path.name] = load_run(path, with_episodes=False)
        except RunFolderError as error:
            damaged[path.name] = str(error)
    best = folder / BEST
    text = best.read_text(errors="replace") if best.is_file() else None
    return SearchData(folder, experiment, _json(folder / RANKING), trials, damaged, text)


def version_of(folder: Path) -> tuple[str, float]:
    """Returns a text that changes with the report's files, and the seconds since the last change."""
    folders = [folder, *trial_folders(folder)] if is_search(folder) else [folder]
    names = [path / name for path in folders for name in _WATCHED]
    names += [folder / name for name in ("experiment.json", RANKING, BEST)]
    names += _comparison_files(folder)
    stamps, newest = [], 0.0
    for path in names:
        try:
            stat = path.stat()
        except OSError:
            continue
        stamps.append(f"{stat.st_size}:{stat.st_mtime_ns}")
        newest = max(newest, stat.st_mtime)
    text = hashlib.sha256("|".join(stamps).encode()).hexdigest()[:16]
    return text, max(0.0, time.time() - newest) if newest else 0.0


def _comparison_files(folder: Path) -> list[Path]:
    """Returns the files that `esper-ray compare` wrote into a run folder; copies under other names are ignored."""
    found = (folder / HELD_OUT).rglob("comparison*.json")
    return sorted(path for path in found if _COMPARISON.fullmatch(path.name))


def _rows(folder: Path, name: str, needed: tuple[str, ...]) -> list[Row]:
    if not (folder / name).exists():
        return []
    rows = read_metrics(folder)
    if any(not isinstance(row, dict) or any(key not in row for key in needed) for row in rows):
        raise RunFolderError(f"{folder / name} is damaged, or was written by an earlier version; play the run again")
    return rows


def _json(path: Path) -> Row | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}; remove it, or play the run again") from None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: expected an object; remove it, or play the run again")
    return content


def _idle(folder: Path) -> float:
    times = [path.stat().st_mtime for name in _WATCHED if (path := folder / name).exists()]
    return max(0.0, time.time() - max(times)) if times else 0.0
