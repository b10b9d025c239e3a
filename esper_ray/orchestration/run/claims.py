"""Folders that belong to one process, from before anything slow until it ends."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from esper_ray.errors import RunFolderError
from esper_ray.file_locks import locked
from esper_ray.orchestration.run.run_folder import require_usable

_RUNS = Path("runs")


class FolderInUseError(RunFolderError):
    """Another process has claimed the folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder if need be, and keeps other processes from claiming it. One that stays empty is removed again.

    The claim is a lock on the folder itself: that of a process which was killed is void.

    Raises:
        FolderInUseError: another process has claimed it.
        RunFolderError: it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, blocking=False, folder=True))
        except BlockingIOError:
            raise FolderInUseError(
                f"another command writes to {folder}; wait for it, or end it, or name another folder with --out"
            ) from None
        except OSError as error:
            raise RunFolderError(f"--out {folder} cannot be written: {error.strerror}; name another folder") from None
        stack.callback(_remove_empty, made)
        yield


@contextmanager
def claimed_again(run: Path) -> Iterator[None]:
    """Claims the folder of a run that is there, to go on with it.

    Raises:
        FolderInUseError: another process has claimed it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run, blocking=False))
        except BlockingIOError:
            raise FolderInUseError(f"the run in {run} goes on in another process; end that first") from None
        yield


@contextmanager
def claimed_run(out: Path | None, name: str, overwrite: bool) -> Iterator[Path]:
    """Claims the folder of a new run, and returns it: `out`, or else one that is called after `name` and the time.

    Raises:
        RunFolderError: another process has claimed `out`, it holds a run or other things, or cannot be written.
    """
    with ExitStack() as stack:
        if out is None:
            yield _claim_new(stack, f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
            return
        require_usable(out, overwrite)
        stack.enter_context(claimed(out))
        require_usable(out, overwrite)  # whoever had it before may have left a run
        yield out


def _claim_new(stack: ExitStack, name: str) -> Path:
    """Claims a folder that was not there; runs that start in the same second get numbers."""
    for number in count(1):
        folder = _RUNS / (name if number == 1 else f"{name}-{number}")
        if folder.exists():
            continue
        with suppress(FolderInUseError):
            stack.enter_context(claimed(folder))
            return folder
    raise AssertionError("numbers have no end")


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # something lies in one of them
        for folder in folders:
            folder.rmdir()
