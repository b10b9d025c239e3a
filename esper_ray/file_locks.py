"""Locks between processes, held on the protected file or folder itself; a dead process holds none."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, blocking: bool = True, folder: bool = False) -> Iterator[None]:
    """Keeps other processes from holding the same lock.

    Args:
        path: a folder that is there, or a file; it is made if need be, and whoever holds the lock may replace it.
        blocking: wait for who holds it.
        folder: make a folder rather than a file.

    Raises:
        BlockingIOError: another process holds it, and this one does not wait.
        OSError: it cannot be made.
    """
    descriptor = _hold(path, blocking, folder)
    while not _is_at(descriptor, path):  # it was replaced by whoever held it
        os.close(descriptor)
        descriptor = _hold(path, blocking, folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _hold(path: Path, blocking: bool, folder: bool) -> int:
    if folder:
        path.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDONLY if folder or path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network drives know no locks
        logger.warning("%s cannot be locked: see to it that no other process writes there", path)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
