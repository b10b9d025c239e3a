"""Locks between processes that leave no file behind: what is locked is there anyway, and a dead process holds none."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, blocking: bool = True) -> Iterator[None]:
    """Keeps other processes from holding the same lock.

    Args:
        path: a folder that is there, or a file; it is made if need be, and whoever holds the lock may replace it.
        blocking: wait for who holds it.

    Raises:
        BlockingIOError: another process holds it, and this one does not wait.
        OSError: the file cannot be made.
    """
    descriptor = _hold(path, blocking)
    while not _is_at(descriptor, path):  # it was replaced by whoever held it
        os.close(descriptor)
        descriptor = _hold(path, blocking)
    try:
        yield
    finally:
        os.close(descriptor)


def _hold(path: Path, blocking: bool) -> int:
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
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
