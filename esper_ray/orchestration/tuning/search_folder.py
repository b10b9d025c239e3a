"""The files of a search beside its trials: the search file, the ranking, the best configuration."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from esper_ray.errors import ConfigurationError, RunFolderError, no_permission
from esper_ray.orchestration.config import TuneConfig
from esper_ray.orchestration.run.plan import with_absolute_paths
from esper_ray.orchestration.run.run_folder import replace_file, require_writable, write_json
from esper_ray.orchestration.tuning.ranking import RankedSetting, describe
from esper_ray.orchestration.tuning.search_file import SearchFile

EXPERIMENT = "experiment.json"
RANKING = "ranking.json"
BEST = "best.yaml"
TRIALS = "trials"
"""Folder of the trials' run folders."""
_TRIAL_NAME = re.compile(r"\w+_seed\d+")
_PICTURES = ("report.html", "ranking.png", "learning_curves.png")
STATE = "tune"
"""Folder of Ray Tune's own state: pickles, so a search is resumed only from a folder that one trusts."""


def is_search(folder: Path) -> bool:
    """Returns whether a folder holds a search."""
    return (folder / EXPERIMENT).is_file()


def trial_folders(folder: Path) -> list[Path]:
    """Returns the folders of a search's trials, in the order of their names; other names are ignored."""
    return sorted(path for path in (folder / TRIALS).glob("*") if _TRIAL_NAME.fullmatch(path.name))


def read_experiment(folder: Path) -> dict[str, Any]:
    """Returns the content of a search's experiment.json.

    Raises:
        RunFolderError: there is no search in the folder, or the file is damaged.
    """
    if (refusal := no_permission(folder / EXPERIMENT)) is not None:
        raise RunFolderError(refusal)
    try:
        return dict(json.loads((folder / EXPERIMENT).read_text()))
    except OSError as error:
        raise RunFolderError(
            f"{folder} holds no search: {EXPERIMENT} cannot be read ({error.strerror}); leave out --resume"
        ) from None
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{folder / EXPERIMENT} is damaged: {error}; start the search anew") from None


def require_usable_folder(config: TuneConfig, folder: Path) -> None:
    """Checks, without writing anything, that a new search can be put into the folder.

    Raises:
        RunFolderError: it holds a search or other things, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--out {folder} is not a folder; name another one")
    if is_search(folder) and not config.overwrite:
        raise RunFolderError(
            f"{folder} already holds a search; go on with it with --resume, replace it with --overwrite, or name "
            "another folder with --out"
        )
    if folder.is_dir() and any(folder.iterdir()) and not is_search(folder):
        raise RunFolderError(f"--out {folder} holds other files; name a new or empty folder")
    require_writable(folder)


def remove_search(folder: Path) -> None:
    """Removes an old search, and nothing else that may lie in its folder."""
    remove_results(folder)
    (folder / EXPERIMENT).unlink(missing_ok=True)
    for inner in (STATE, TRIALS):
        shutil.rmtree(folder / inner, ignore_errors=True)


def remove_results(folder: Path) -> None:
    """Deletes the result files of a search that is resumed or started anew."""
    for name in (RANKING, BEST, *_PICTURES):
        (folder / name).unlink(missing_ok=True)


def require_same_search(config: TuneConfig, search: SearchFile, folder: Path) -> dict[str, Any]:
    """Returns experiment.json of the search to resume, after checking that the search file is unchanged.

    Raises:
        RunFolderError: there is no search in the folder.
        ConfigurationError: the file says something else now, or a flag contradicts what the search began with.
    """
    experiment = read_experiment(folder)
    then, now = experiment.get("search", {}), search.model_dump(mode="json")
    changed = [key for key in now if then.get(key) != now[key]]
    if changed:
        raise ConfigurationError(
            f"{config.file} has other values of {', '.join(changed)} than the search in {folder} began with; undo the "
            "change, or start another search with --out"
        )
    if config.overwrite:
        raise ConfigurationError("--resume and --overwrite exclude each other; leave one out")
    if config.logger and list(config.logger) != experiment["command"]["logger"]:
        raise ConfigurationError("the loggers of a search stay what they were at its start; leave out --logger")
    if config.max_concurrent not in (None, experiment["concurrent"]):
        raise ConfigurationError(
            f"the search began with {experiment['concurrent']} trials at a time, and that stays; leave out "
            "--max-concurrent with --resume"
        )
    return experiment


def write_ranking(folder: Path, search: SearchFile, ranking: Sequence[RankedSetting], facts: dict[str, Any]) -> None:
    """Writes ranking.json; `facts` about the search come with it."""
    settings = [entry.as_dict(place) for place, entry in enumerate(ranking, start=1)]
    content = {"metric": search.metric, "mode": search.mode, "settings": settings, "best_file": BEST, **facts}
    write_json(folder / RANKING, content)


def write_best(folder: Path, search: SearchFile, best: RankedSetting, runners: int) -> Path:
    """Writes the best setting as a file for `train --config`, and returns it."""
    trial = max(best.trials, key=lambda trial: trial.iterations)
    config = with_absolute_paths(search.trial_config(best.setting, trial.seed))
    values = {
        **config.model_dump(mode="json", exclude_defaults=True),
        "task": config.task,
        "seed": config.seed,
        "iterations": config.iterations,
        "runners": runners,
    }
    deviation = "not known" if best.std is None else f"{best.std:.4g}"
    lines = [
        f"# The best setting of a search by {search.metric}: {describe(best.setting)}",
        f"# {search.metric} {best.mean:.4g} over {len(best.trials)} training seed{'s' * (len(best.trials) != 1)}, "
        f"standard deviation {deviation}",
    ]
    if search.scheduler.kind == "pbt":
        lines.append("# Population-based training changed it on the way; these are the values at the end.")
    path = folder / BEST
    replace_file(path, "\n".join([*lines, "", yaml.safe_dump(values, sort_keys=True, allow_unicode=True)]))
    return path
