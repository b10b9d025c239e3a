"""From an episode of a run to files that torch alone can load: kept, or grown again from its record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from esper_ray import __version__
from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.record import json_safe
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import ConfigurationError, RunFolderError
from esper_ray.export import export_model
from esper_ray.orchestration.config import ExportConfig
from esper_ray.orchestration.kept_hosts import kept_episodes, load_kept_host
from esper_ray.orchestration.run_folder import EXPORTS, HOSTS, read_config, read_episodes, require_writable
from esper_ray.plugins import load_plugins
from esper_ray.policies import ReplayPolicy
from esper_ray.tasks import TaskSpec, create_model, prepare_data


@dataclass(frozen=True)
class Export:
    """What was exported.

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
    run = read_config(config.run)
    load_plugins([*run["command"].get("plugin", ()), *config.plugin])
    task = _task_of(config.run, run)
    rows = read_episodes(config.run)
    kept = [number for number in kept_episodes(config.run / HOSTS) if number in rows]
    number = config.episode or _best(config.run, rows, kept)
    if number not in rows:
        raise RunFolderError(f"{config.run} has no episode {number}: expected 1 to {max(rows, default=0)}")
    folder = config.out or config.run / EXPORTS / f"episode_{number:06d}"
    if folder.exists():
        raise RunFolderError(f"{folder} exists already; name another folder with --out, or remove it")
    require_writable(folder)
    given = run["command"].get("data_dir")
    data_dir = config.data_dir or (Path(given) if given else None)
    row, prepared = rows[number], prepare_data(task, data_dir)
    model = create_model(task)
    if number in kept:
        weights = load_kept_host(config.run / HOSTS, number)
    elif run["device"] != "cpu":
        raise ConfigurationError(
            f"episode {number} was played on {run['device']} and its host was not kept, so it cannot be had again to "
            f"the last bit; kept were: {', '.join(map(str, kept)) or 'none'}"
        )
    else:
        weights = _grow_again(task, row, data_dir, number)
    model.load_kept_weights(weights, row["kept_blueprint"])
    origin = {
        "esper_ray": __version__,
        "torch": torch.__version__,
        "episode": number,
        "episode_seed": row["episode_seed"],
        "kept_val_accuracy": row["kept_val_accuracy"],
    }
    try:
        topology = export_model(model, task, prepared, data_dir, folder, origin)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written: {error.strerror}; name another folder with --out") from error
    return Export(number, folder, number not in kept, topology)


def _task_of(path: Path, run: dict[str, Any]) -> TaskSpec:
    try:
        return TaskSpec.model_validate(run["task"])
    except (KeyError, ValidationError) as error:
        reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else f"no {error}"
        raise RunFolderError(
            f"{path} was written by esper_ray {run.get('esper_ray')} and cannot be read by {__version__}: {reason}"
        ) from error


def _best(run: Path, rows: dict[int, dict[str, Any]], kept: list[int]) -> int:
    if not kept:
        raise ConfigurationError(
            f"{run} kept no host (--keep-hosts 0, or no episode was played); name one with --episode"
        )
    return max(kept, key=lambda number: (rows[number]["kept_val_accuracy"], -number))


def _grow_again(task: TaskSpec, row: dict[str, Any], data_dir: Path | None, number: int) -> dict[str, Tensor]:
    """Plays a recorded episode again, checking that every epoch comes out as recorded; returns what it keeps."""

    def compare(env: MorphogenesisEnv, _action: int) -> None:
        epoch, outcome = env.run.epoch, env.run.outcome
        assert outcome is not None
        was, now = row["per_epoch"]["val_loss"][epoch - 1], json_safe(outcome.val_loss)
        if was != now:
            raise ConfigurationError(
                f"episode {number} comes out differently on this machine: validation loss {was} of epoch {epoch} is "
                f"now {now}; export it where it was played, or one whose host was kept"
            )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in an actor
    try:
        env = MorphogenesisEnv(task, "cpu", data_dir)
        policy = ReplayPolicy(env.action_table, row["per_epoch"]["decision"])
        play_episode(env, policy, row["episode_seed"], compare)
    finally:
        torch.set_num_threads(threads)
    return env.run.model.kept_weights()
