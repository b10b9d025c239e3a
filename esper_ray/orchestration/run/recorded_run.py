"""A run as its folder tells it: its task, its episodes, and any of them played again, without Ray."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esper_ray import __version__
from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.record import json_safe
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import IllegalActionError, RunFolderError
from esper_ray.numerics import as_actor
from esper_ray.orchestration.run.run_folder import read_config, read_episodes
from esper_ray.plugins import load_plugins, require_outside_folder
from esper_ray.policies import ReplayPolicy
from esper_ray.tasks import TaskSpec

Row = dict[str, Any]

_LARGEST_SEED = 2**63 - 1
_PER_EPOCH = ("per_epoch", "stages")
_PLACE = ("episode", "iteration", "runner", "number")
_COST = ("seconds", "taken_over", "twin_epochs")
"""The cost of an episode, which follows from the machine and from what other episodes had trained before it."""


@dataclass(frozen=True)
class RecordedRun:
    """A run that was written down. Its plugins are imported.

    Attributes:
        path: the run folder.
        config: what config.json holds.
        episodes: rows of episodes.jsonl, by the number of the episode.
        data_dir: folder of the data set, or None.
    """

    path: Path
    config: Row
    task: TaskSpec
    episodes: dict[int, Row]
    data_dir: Path | None

    @classmethod
    def open(cls, path: Path, plugins: tuple[str, ...] = (), data_dir: Path | None = None) -> "RecordedRun":
        """Reads a run folder.

        Args:
            plugins: modules to import besides the run's own plugins.
            data_dir: folder of the data set; None: the run's.

        Raises:
            RunFolderError: there is no run, it is damaged, or another version wrote it.
            ConfigurationError: a plugin does not import.
        """
        config = read_config(path)
        command = config["command"]
        own = _names(path, command.get("plugin", []))
        require_outside_folder(own, path)
        load_plugins([*own, *plugins])
        task, episodes = _task_of(path, config), read_episodes(path)
        given = command.get("data_dir")
        return cls(path, config, task, episodes, data_dir or (Path(given) if given else None))

    @property
    def device(self) -> str:
        """Kind of device on which its hosts were trained, "cpu" or "cuda"."""
        return str(self.config["device"])

    @property
    def threads(self) -> int:
        """Threads of torch that its hosts were trained with; one where an older version did not say."""
        return int(self.config.get("threads_per_runner", 1))

    def row(self, number: int) -> Row:
        """Returns the row of an episode.

        Raises:
            RunFolderError: there is no such episode.
        """
        if number not in self.episodes:
            raise RunFolderError(f"{self.path} has no episode {number}: expected 1 to {max(self.episodes, default=0)}")
        return self.episodes[number]


@dataclass(frozen=True)
class Difference:
    """A value that came out otherwise than it was recorded.

    Attributes:
        epoch: number of the epoch, from 1; None for a value of the episode as a whole.
        field: its name in episodes.jsonl, such as "val_loss" or "reward_components.governor".
        recorded, found: the two values; None where there is none.
    """

    epoch: int | None
    field: str
    recorded: Any
    found: Any

    def __str__(self) -> str:
        """Returns both values in words."""
        recorded, found = ("nothing" if value is None else value for value in (self.recorded, self.found))
        return f"{self.field}: {recorded} as recorded, {found} now"


def replay_episode(
    run: RecordedRun, number: int, device: str, on_difference: Callable[[Difference], None]
) -> tuple[MorphogenesisEnv, EpisodeRecord | None]:
    """Takes the recorded decisions of an episode again, in this process, and compares everything with its row.

    What the episode cost is not compared: wall time, and the epochs that another episode of its host seed had trained.

    Args:
        device: where the host is trained.
        on_difference: is told of every difference, epoch by epoch as they come, then of the episode as a whole. What
            it raises ends the episode.

    Returns:
        the environment after the last epoch, and the episode's record; None instead of the record if a recorded
        decision was not legal any more, which is a difference as well.

    Raises:
        RunFolderError: there is no such episode, or its row is damaged.
        ConfigurationError: a recorded action is none of the task's on this device.
        DatasetError: the data set is missing.
    """
    row = run.row(number)
    _require_whole(run, row)
    decisions = row["per_epoch"]["decision"]
    recorded = {**row["per_epoch"], "stage": row["stages"]}

    def compare(env: MorphogenesisEnv, _action: int) -> None:
        epoch = env.epochs[-1]
        _compare(epoch.epoch, _at(recorded, epoch.epoch - 1), json_safe(asdict(epoch)), on_difference)

    with as_actor(run.threads):
        env = MorphogenesisEnv(run.task, device, run.data_dir)
        policy = ReplayPolicy(env.action_table, decisions)
        try:
            record = play_episode(env, policy, row["episode_seed"], compare)
        except IllegalActionError:
            epoch = len(env.epochs)
            on_difference(Difference(epoch + 1, "decision", decisions[epoch], "not legal"))
            return env, None
    _compare(None, _of_the_whole(row), _of_the_whole(record.as_row()), on_difference)
    return env, record


def _names(path: Path, plugins: Any) -> list[str]:
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise RunFolderError(f"{path} is damaged: expected names of plugins, got {plugins!r}; play the run again")
    return plugins


def _task_of(path: Path, config: Row) -> TaskSpec:
    try:
        return TaskSpec.model_validate(config["task"])
    except (KeyError, ValidationError) as error:
        reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else f"no {error}"
        raise RunFolderError(
            f"{path} was written by esper_ray {config.get('esper_ray')} and cannot be read by {__version__}: {reason}"
        ) from error


def _require_whole(run: RecordedRun, row: Row) -> None:
    """Checks that a row has everything needed to replay its episode, and a value per epoch in each column.

    Raises:
        RunFolderError: it does not.
    """
    seed, per_epoch, epochs = row.get("episode_seed"), row.get("per_epoch"), run.task.max_epochs
    if type(seed) is not int or not 0 <= seed <= _LARGEST_SEED:
        raise _damaged(run, row, f"episode_seed: expected a whole number from 0 to 2**63 - 1, got {seed!r}")
    if not isinstance(per_epoch, dict):
        raise _damaged(run, row, f"per_epoch: expected a list for each measurement, got {per_epoch!r}")
    columns = _dotted({"stages": row.get("stages"), "per_epoch": {"decision": None, **per_epoch}})
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != epochs:
            found = len(column) if isinstance(column, list) else repr(column)
            raise _damaged(run, row, f"{name}: expected a list of {epochs}, one for each epoch, got {found}")
    for decision in per_epoch["decision"]:
        if not isinstance(decision, str):
            raise _damaged(run, row, f"per_epoch.decision: expected names of actions, got {decision!r}")


def _damaged(run: RecordedRun, row: Row, what: str) -> RunFolderError:
    return RunFolderError(f"episode {row['episode']} of {run.path} is damaged: {what}; name another episode")


def _compare(epoch: int | None, recorded: Row, found: Row, on_difference: Callable[[Difference], None]) -> None:
    """Returns the differing values, in the order of a row; a missing value counts as None."""
    was, now = _dotted(recorded), _dotted(found)
    for name in dict.fromkeys([*now, *was]):
        if was.get(name) != now.get(name):
            on_difference(Difference(epoch, name, was.get(name), now.get(name)))


def _of_the_whole(row: Row) -> Row:
    """Returns a row's values of the whole episode."""
    return {name: value for name, value in row.items() if name not in (*_PER_EPOCH, *_PLACE, *_COST)}


def _at(columns: Mapping[str, Any], index: int) -> Row:
    """Returns one epoch of a row's columns; the reverse of `columns` in `esper_ray.episode.record`."""
    return {name: _at(column, index) if isinstance(column, dict) else column[index] for name, column in columns.items()}


def _dotted(row: Mapping[str, Any], prefix: str = "") -> Row:
    """Flattens a nested row; nested values get names such as "reward_components.rent"."""
    flat: Row = {}
    for name, value in row.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
