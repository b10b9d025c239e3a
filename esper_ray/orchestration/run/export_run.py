"""Exports an episode's host, from kept weights or by replaying its record, to files that torch alone loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper_ray import __version__
from esper_ray.errors import ConfigurationError, RunFolderError
from esper_ray.export import export_model
from esper_ray.numerics import as_actor
from esper_ray.orchestration.config import ExportConfig
from esper_ray.orchestration.run.claims import claimed
from esper_ray.orchestration.run.kept_hosts import kept_episodes, load_kept_host
from esper_ray.orchestration.run.recorded_run import Difference, RecordedRun, replay_episode
from esper_ray.orchestration.run.run_folder import EXPORTS, HOSTS, require_writable
from esper_ray.tasks import create_model, prepare_data


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        episode: number in the run.
        folder: where it lies.
        replayed: the host was grown again, because its weights had not been kept.
        topology: what topology.json holds.
    """

    episode: int
    folder: Path
    replayed: bool
    topology: dict[str, Any]


def export_run(config: ExportConfig) -> Export:
    """Exports the host of an episode. One that was not kept is grown again from its seed and decisions.

    Raises:
        RunFolderError: there is no such run or episode, or the target exists or cannot be written.
        ConfigurationError: the run kept no host and no episode is named; its plugin does not import; the episode cannot
            be played again here, or comes out differently; or the host cannot be traced.
        DatasetError: the data set is missing.
    """
    if config.best and config.episode is not None:
        raise ConfigurationError("--episode and --best exclude each other; leave one out")
    run = RecordedRun.open(config.run, config.plugin, config.data_dir)
    kept = _kept(run)
    number = config.episode or _best(run, kept)
    run.row(number)
    folder = config.out or config.run / EXPORTS / f"episode_{number:06d}"
    _require_free(folder)
    require_writable(folder)
    with claimed(folder):
        _require_free(folder)
        topology = _export(run, number, number in kept, folder)
    return Export(number, folder, number not in kept, topology)


def _require_free(folder: Path) -> None:
    """Refuses a target that is there and holds something; an empty folder may be left of an export that was killed."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists already; name another folder with --out, or remove it")


def _export(run: RecordedRun, number: int, is_kept: bool, folder: Path) -> dict[str, Any]:
    """Exports an episode's host into an empty folder, and returns the content of topology.json."""
    row = run.row(number)
    prepared = prepare_data(run.task, run.data_dir)
    model = create_model(run.task)
    if is_kept:
        weights = load_kept_host(run.path / HOSTS, number)
    elif run.device != "cpu":
        raise ConfigurationError(
            f"episode {number} was played on {run.device} and its host was not kept, so it cannot be had again to "
            f"the last bit; kept were: {', '.join(map(str, _kept(run))) or 'none'}"
        )
    else:
        weights = _regrow(run, number)
    model.load_kept_weights(weights, row["kept_blueprint"])
    origin = {
        "esper_ray": __version__,
        "torch": torch.__version__,
        "episode": number,
        "episode_seed": row["episode_seed"],
        "kept_val_accuracy": row["kept_val_accuracy"],
    }
    try:
        with as_actor(run.threads):
            return export_model(model, run.task, prepared, run.data_dir, folder, origin)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written: {error}; name another folder with --out") from error


def _kept(run: RecordedRun) -> list[int]:
    return [number for number in kept_episodes(run.path / HOSTS) if number in run.episodes]


def _best(run: RecordedRun, kept: list[int]) -> int:
    if not kept:
        raise ConfigurationError(
            f"{run.path} kept no host (--keep-hosts 0, or no episode was played); name one with --episode"
        )
    return max(kept, key=lambda number: (run.episodes[number]["kept_val_accuracy"], -number))


def _regrow(run: RecordedRun, number: int) -> dict[str, Tensor]:
    """Replays a recorded episode, requires every epoch to be as recorded, and returns the kept weights."""

    def refuse(difference: Difference) -> None:
        where = f" of epoch {difference.epoch}" if difference.epoch is not None else ""
        raise ConfigurationError(
            f"episode {number} comes out differently on this machine: {difference.field}{where} was "
            f"{difference.recorded}, is now {difference.found}; export it where it was played, or one whose host was "
            "kept"
        )

    env, _record = replay_episode(run, number, "cpu", refuse)
    return env.run.model.kept_weights()
