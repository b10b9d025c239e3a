"""From an episode of a run to files that torch alone can load: kept, or grown again from its record."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esper_ray import __version__
from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import ConfigurationError, RunFolderError
from esper_ray.export import export_model
from esper_ray.models import MorphogeneticModel
from esper_ray.orchestration.config import ExportConfig
from esper_ray.orchestration.kept_hosts import kept_episodes, load_kept_host
from esper_ray.orchestration.run_folder import EXPORTS, HOSTS, read_config, read_episodes
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
        RunFolderError: there is no such run or episode, or the target exists.
        ConfigurationError: the run kept no host and no episode is named; its plugin does not import; or the episode
            comes out differently on this machine.
        DatasetError: the data set is missing.
    """
    if config.best and config.episode is not None:
        raise ConfigurationError("--episode and --best exclude each other; leave one out")
    run = read_config(config.run)
    command = run["command"]
    load_plugins([*command.get("plugin", ()), *config.plugin])
    task = TaskSpec.model_validate(run["task"])
    data_dir = config.data_dir or (Path(command["data_dir"]) if command.get("data_dir") else None)
    rows = read_episodes(config.run)
    kept = kept_episodes(config.run / HOSTS)
    number = config.episode or _best(config.run, rows, kept)
    if number not in rows:
        raise RunFolderError(f"{config.run} has no episode {number}: expected 1 to {max(rows, default=0)}")
    folder = config.out or config.run / EXPORTS / f"episode_{number:06d}"
    if folder.exists():
        raise RunFolderError(f"{folder} exists already; name another folder with --out, or remove it")
    row = rows[number]
    prepared = prepare_data(task, data_dir)
    if number in kept:
        model = create_model(task)
        model.load_kept_weights(load_kept_host(config.run / HOSTS, number), row["kept_blueprint"])
    else:
        model = _grow_again(task, row, data_dir, number)
    origin = {
        "esper_ray": __version__,
        "torch": torch.__version__,
        "episode": number,
        "episode_seed": row["episode_seed"],
        "kept_val_accuracy": row["kept_val_accuracy"],
    }
    topology = export_model(model, task, prepared, data_dir, folder, origin)
    return Export(number, folder, number not in kept, topology)


def _best(run: Path, rows: dict[int, dict[str, Any]], kept: list[int]) -> int:
    if not kept:
        raise ConfigurationError(
            f"{run} kept no host (--keep-hosts 0, or no episode was played); name one with --episode"
        )
    return max(kept, key=lambda number: (rows[number]["kept_val_accuracy"], -number))


def _grow_again(task: TaskSpec, row: dict[str, Any], data_dir: Path | None, number: int) -> MorphogeneticModel:
    """Plays a recorded episode again and checks that every epoch comes out as recorded."""
    torch.set_num_threads(1)  # as in an actor
    env = MorphogenesisEnv(task, "cpu", data_dir)
    policy = ReplayPolicy(env.action_table, row["per_epoch"]["decision"])
    again = json.loads(json.dumps(play_episode(env, policy, row["episode_seed"]).as_row()))
    for epoch, (was, now) in enumerate(
        zip(row["per_epoch"]["val_loss"], again["per_epoch"]["val_loss"], strict=True), 1
    ):
        if was != now:
            raise ConfigurationError(
                f"episode {number} comes out differently on this machine: validation loss {was} of epoch {epoch} is "
                f"now {now}; export it where it was played, or one whose host was kept"
            )
    model = create_model(task)
    model.load_kept_weights(env.run.model.kept_weights(), row["kept_blueprint"])
    return model
