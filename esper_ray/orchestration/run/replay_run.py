"""Replays a recorded episode from its decisions and reports differences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esper_ray.errors import ConfigurationError
from esper_ray.numerics import UNSET, as_actor, numeric_settings
from esper_ray.orchestration.config import ReplayConfig
from esper_ray.orchestration.run.metrics import lookup
from esper_ray.orchestration.run.recorded_run import Difference, RecordedRun, replay_episode

_COMMIT_DIGITS = 12


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        episode: number in the run.
        epochs: of the episode.
        played: epochs that were played; fewer if a recorded decision was not legal any more.
        differences: every value that differs, in order; none if the episode came out as recorded.
        recorded_accuracy: kept validation accuracy, percent; None if the row has no such number.
        kept_val_accuracy: what the replay kept, percent; None if it was not played to its end.
        changes: what is no longer as it was when the run was played: device, hosts trained together, versions, CPU,
            settings that decide numbers. The last three are looked for only if there are differences.
    """

    run: Path
    episode: int
    epochs: int
    played: int
    differences: tuple[Difference, ...]
    recorded_accuracy: float | None
    kept_val_accuracy: float | None
    changes: tuple[str, ...]

    @property
    def differing_epochs(self) -> int:
        """In how many epochs something differs."""
        return len({difference.epoch for difference in self.differences if difference.epoch is not None})


def replay_run(config: ReplayConfig) -> Replay:
    """Plays a recorded episode again, with its host seed and its decisions, and compares it with its row.

    Raises:
        RunFolderError: there is no such run or episode, or it is damaged.
        ConfigurationError: it was played on a GPU, and there is none that torch can use; a plugin does not import; or
            an action is none of the task's on this device.
        DatasetError: the data set is missing.
    """
    run = RecordedRun.open(config.run, config.plugin, config.data_dir)
    row = run.row(config.episode)
    device = run.device if config.device == "auto" else config.device
    _require_device(device, run)
    differences: list[Difference] = []
    env, record = replay_episode(run, config.episode, device, differences.append)
    changes = [f"it was played on {run.device}, and replayed on {device}"] if device != run.device else []
    if run.config.get("hosts_per_runner", 1) != 1:
        changes.append("its host was trained together with others, and replayed by itself: float rounding differs")
    if differences:
        changes += _changes_since(run)
    return Replay(
        run=config.run,
        episode=config.episode,
        epochs=run.task.max_epochs,
        played=len(env.epochs),
        differences=tuple(differences),
        recorded_accuracy=lookup(row, "kept_val_accuracy"),
        kept_val_accuracy=record.kept_val_accuracy if record else None,
        changes=tuple(changes),
    )


def _require_device(device: str, run: RecordedRun) -> None:
    if device != "cuda" or torch.cuda.is_available():
        return
    if run.device == "cuda":
        raise ConfigurationError(
            f"{run.path} was played on cuda, and torch finds no GPU here: replay it where there is one, or with "
            "--device cpu, where the last digits may differ"
        )
    raise ConfigurationError("--device cuda: torch finds no GPU here; leave --device out")


def _changes_since(run: RecordedRun) -> list[str]:
    """Returns which versions, which CPU and which settings config.json names otherwise than they are here."""
    from esper_ray.orchestration.run.plan import origin  # brings RLlib along, which only a difference is worth

    was, now = _named_origin(run.config), _named_origin(origin())
    found = [
        f"{name} {was.get(name) or 'not recorded'}, now {now.get(name) or 'unknown'}"
        for name in dict.fromkeys([*now, *was])
        if was.get(name) != now.get(name)
    ]
    if (set_then := run.config.get("numerics")) is None:  # an older version wrote it
        return found
    with as_actor(run.threads):
        set_now = numeric_settings()
    return found + [
        f"{name} {set_then.get(name, UNSET)}, now {set_now.get(name, UNSET)}"
        for name in dict.fromkeys([*set_now, *set_then])
        if set_then.get(name) != set_now.get(name)
    ]


def _named_origin(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **(config.get("versions") or {}),
        "esper_ray": config.get("esper_ray"),
        "Python": config.get("python"),
        "CPU capability": config.get("cpu_capability"),
        "git commit": (config.get("git_commit") or "")[:_COMMIT_DIGITS] or None,
    }
