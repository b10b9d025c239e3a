"""The files of a run: configuration, a row per iteration and per episode, checkpoints, TensorBoard events."""

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from typing_extensions import Self

from esper_ray.episode.record import json_safe
from esper_ray.errors import RunFolderError, no_permission
from esper_ray.orchestration.fleet.tickets import FinishedEpisode
from esper_ray.orchestration.run.append_file import AppendFile
from esper_ray.orchestration.run.tensorboard_events import TensorBoardEvents
from esper_ray.shell import pasteable

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
METRICS_FILE = "metrics.jsonl"
EPISODES_FILE = "episodes.jsonl"
_SUMMARY = "summary.json"
_CHECKPOINTS = "checkpoints"
HOSTS = "hosts"
EXPORTS = "exports"
HELD_OUT = "held_out"
IN_PROGRESS = "episodes_in_progress"
"""Folder of the hosts in mid-episode, which actors write while a run goes on."""
_EVENTS = "events.out.tfevents.*"
PARTIAL = ".writing"
_WRITING, _REMOVING = ".writing-", ".removing-"
"""Begin the names of checkpoints that are only half there."""
NUMBER = r"(?:\d{6}|[1-9]\d{6,})"
"""Matches what the format 06d writes."""
_CHECKPOINT_NAME = re.compile(f"iteration_{NUMBER}")
_ALWAYS_KEPT = 2
"""Checkpoints: the last one, and one more should it be damaged."""


def require_usable(path: Path, overwrite: bool) -> None:
    """Checks, without writing anything, that a run can be put at `path`.

    Raises:
        RunFolderError: it is a file, holds a run or other things, or cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"--out {path} is not a folder; name another one")
    if (path / _CONFIG).exists() and not overwrite:
        raise RunFolderError(f"--out {path} already holds a run; name another folder, or replace it with --overwrite")
    others = [entry for entry in path.iterdir() if entry.suffix != PARTIAL] if path.is_dir() else []
    if others and not (path / _CONFIG).exists():
        raise RunFolderError(f"--out {path} holds other files; name a new or empty folder")
    require_writable(path)


def require_writable(path: Path) -> None:
    """Checks, without writing anything, that a folder can be made at `path`.

    Raises:
        RunFolderError: it cannot.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RunFolderError(f"--out {path} cannot be written: no permission in {existing}; name another folder")


def is_run(path: Path) -> bool:
    """Returns whether a folder holds a run."""
    return (path / _CONFIG).is_file()


def has_ended(path: Path) -> bool:
    """Returns whether a folder holds a run that ended of itself: not interrupted, nor stopped by a search."""
    try:
        return not json.loads((path / _SUMMARY).read_text())["interrupted"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one, which is written again at the end
        return False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl, one per iteration.

    Raises:
        RunFolderError: the file cannot be read, or is damaged.
    """
    return _read_rows(path / METRICS_FILE)


def read_config(path: Path) -> dict[str, Any]:
    """Returns the content of a run's config.json.

    Raises:
        RunFolderError: there is no run at `path`, or the file is damaged.
    """
    if (refusal := no_permission(path / _CONFIG)) is not None:
        raise RunFolderError(refusal)
    try:
        config = json.loads((path / _CONFIG).read_text())
    except OSError as error:
        raise RunFolderError(
            f"{path} holds no run: {_CONFIG} cannot be read ({error.strerror}); name a run folder"
        ) from None
    except ValueError as error:
        raise RunFolderError(f"{path / _CONFIG} is damaged: {error}; play the run again") from None
    if not isinstance(config, dict) or not isinstance(config.get("command"), dict) or "device" not in config:
        raise RunFolderError(f"{path / _CONFIG} is no run of this version of esper_ray; play the run again")
    return dict(config)


def read_episodes(path: Path) -> dict[int, dict[str, Any]]:
    """Returns the rows of episodes.jsonl by the number of the episode.

    Raises:
        RunFolderError: the file cannot be read, or is damaged.
    """
    rows = _read_rows(path / EPISODES_FILE)
    if any(not isinstance(row, dict) or "episode" not in row or "kept_blueprint" not in row for row in rows):
        file = path / EPISODES_FILE
        raise RunFolderError(f"{file} was written by an earlier version of esper_ray; play the run again")
    return {row["episode"]: row for row in rows}


def _read_rows(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # one without is still being written
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunFolderError(f"{file} is damaged: {error}; play the run again") from None
    if not all(isinstance(row, dict) for row in rows):
        raise RunFolderError(f"{file} is damaged: expected an object in every line; play the run again")
    return rows


def write_json(path: Path, content: Mapping[str, Any], exact: bool = False) -> None:
    """Writes a JSON file under another name and renames it, so that it is never half there.

    Args:
        exact: write floats to their last digit, for a file that is compared with.
    """
    replace_file(path, json.dumps(content if exact else json_safe(dict(content)), indent=2) + "\n")


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it, so that it is never half there; makes its folder if need be.

    Raises:
        RunFolderError: it cannot be written, as on a full disk; what was there before is as it was.
    """
    partial = path.with_suffix(PARTIAL)
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunFolderError(f"{path} cannot be written: {error.strerror}; mend that, then go on") from error


def checkpoints_of(path: Path) -> list[Path]:
    """Returns the checkpoints of the run at `path`, in the order of their iterations; other names are ignored."""
    found = [entry for entry in (path / _CHECKPOINTS).glob("iteration_*") if _CHECKPOINT_NAME.fullmatch(entry.name)]
    return sorted(found, key=iteration_of)


def iteration_of(checkpoint: Path) -> int:
    """Returns the iteration of a checkpoint, by the name of its folder."""
    return int(checkpoint.name.removeprefix("iteration_"))


def _remove(checkpoint: Path) -> None:
    """Renames a checkpoint before deleting it, so that a killed process never leaves half of it."""
    gone = checkpoint.with_name(_REMOVING + checkpoint.name)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _flush(folder: Path) -> None:
    """Flushes a folder's files to disk, so that a later rename never precedes its content."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RunFolder:
    """Writes one run. Use it as a context manager.

    Args:
        path: as checked by `require_usable`, and claimed by this process where others may write there.
        config: everything that the run follows from.
        keep_iterations: go on with the run that the folder holds: its rows up to this iteration stay, later ones go;
            None: begin a new one.
        keep_policies: its checkpoints and hosts stay as well.

    Raises:
        RunFolderError: the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        keep_iterations: int | None = None,
        keep_policies: bool = True,
    ) -> None:
        self.path = path
        with ExitStack() as opened:
            try:
                path.mkdir(parents=True, exist_ok=True)
                if keep_iterations is None:
                    self._remove_old_run()
                else:
                    self._keep(keep_iterations, keep_policies)
                # First of all, so that a folder without it is none of ours; to the last digit, for it is read again.
                replace_file(path / _CONFIG, json.dumps(config, indent=2) + "\n")
                (path / _CHECKPOINTS).mkdir(exist_ok=True)
                shutil.rmtree(path / IN_PROGRESS, ignore_errors=True)
                (path / IN_PROGRESS).mkdir()
                opened.callback(shutil.rmtree, path / IN_PROGRESS, ignore_errors=True)
                self._metrics = opened.enter_context(closing(AppendFile(path / METRICS_FILE)))
                self._episodes = opened.enter_context(closing(AppendFile(path / EPISODES_FILE)))
                self._events = opened.enter_context(closing(TensorBoardEvents(path, (keep_iterations or 0) + 1)))
            except OSError as error:
                raise RunFolderError(
                    f"--out {path} cannot be written: {error.strerror}; name another folder"
                ) from error
            self._opened = opened.pop_all()

    def _remove_old_run(self) -> None:
        for name in (METRICS_FILE, EPISODES_FILE, _SUMMARY):  # config.json is replaced: without one, it is no run
            (self.path / name).unlink(missing_ok=True)
        for events in self.path.glob(_EVENTS):
            events.unlink()
        for folder in (_CHECKPOINTS, HOSTS, EXPORTS, HELD_OUT):
            shutil.rmtree(self.path / folder, ignore_errors=True)

    def _keep(self, iterations: int, policies: bool) -> None:
        """Deletes the rows and checkpoints after an iteration, and temporary files."""
        for name in (_CONFIG, METRICS_FILE, EPISODES_FILE, _SUMMARY):
            (self.path / name).with_suffix(PARTIAL).unlink(missing_ok=True)
        (self.path / _SUMMARY).unlink(missing_ok=True)
        for name in (METRICS_FILE, EPISODES_FILE):
            file = self.path / name
            lines = file.read_text().splitlines(keepends=True) if file.exists() else []
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= iterations]
            replace_file(file, "".join(kept))
        for kind in (_WRITING, _REMOVING):
            for half in (self.path / _CHECKPOINTS).glob(f"{kind}*"):
                shutil.rmtree(half)
        for checkpoint in self.checkpoints():
            if not policies or iteration_of(checkpoint) > iterations:
                _remove(checkpoint)
        if not policies:
            shutil.rmtree(self.path / HOSTS, ignore_errors=True)

    @property
    def hosts(self) -> Path:
        """Folder of the best hosts' weights."""
        return self.path / HOSTS

    def add_episode(self, number: int, iteration: int, episode: FinishedEpisode) -> None:
        """Appends a row to episodes.jsonl. Both numbers count from 1, `number` over the whole run."""
        ticket = episode.ticket
        place = {"episode": number, "iteration": iteration, "runner": ticket.runner, "number": ticket.number}
        self._append(self._episodes, place | episode.record.as_row())

    def add_iteration(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl, and its numbers to the TensorBoard events."""
        clean = json_safe(dict(row))
        self._append(self._metrics, clean)
        self._events.add(flat(clean), row["iteration"])

    def _append(self, file: AppendFile, row: Mapping[str, Any]) -> None:
        try:
            file.append(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise RunFolderError(
                f"{file.path} cannot be written: {error.strerror}; mend that, then go on with "
                f"{pasteable('--resume', self.path)}"
            ) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        write_json(self.path / _SUMMARY, summary)

    def save_checkpoint(self, iteration: int, save: Callable[[Path], Any], keep_every: int = 1) -> Path:
        """Writes a checkpoint under a temporary name with `save(folder)`, then renames it: none is ever half there.

        Args:
            iteration: of the checkpoint.
            save: writes it into a folder.
            keep_every: the two last ones stay, and those of every so many iterations.

        Raises:
            RunFolderError: it could not be written, as on a full disk; the earlier ones are as they were.
        """
        final = self.path / _CHECKPOINTS / f"iteration_{iteration:06d}"
        if not final.exists():
            try:
                temporary = final.parent / f"{_WRITING}{uuid.uuid4().hex}"
                temporary.mkdir()  # of the umask's mode, which one of `mkdtemp` has not
                try:
                    save(temporary.absolute())
                    _flush(temporary)
                    for rows in (self._metrics, self._episodes):
                        rows.sync()
                    temporary.rename(final)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
            except (OSError, SafetensorError) as error:
                there = self.checkpoints()
                rest = f"the last one is {there[-1].name}" if there else "there is none yet"
                raise RunFolderError(
                    f"the checkpoint of iteration {iteration} could not be written: {error}; {rest}"
                ) from error
        for earlier in self.checkpoints()[:-_ALWAYS_KEPT]:
            if iteration_of(earlier) % keep_every:
                with suppress(OSError):
                    _remove(earlier)
        return final

    def checkpoints(self) -> list[Path]:
        """Returns the checkpoints that are there."""
        return checkpoints_of(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def flat(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Returns the numbers of a nested row as ("group/name", value)."""
    numbers: list[tuple[str, float]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            numbers += flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers.append((f"{prefix}{name}", float(value)))
    return numbers
