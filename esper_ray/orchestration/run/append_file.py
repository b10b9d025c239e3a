"""A file that grows at its end, by whole entries."""

import os
from pathlib import Path


class AppendFile:
    """An unbuffered append-only file: an entry that cannot be written, as on a full disk, leaves it unchanged.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, entry: bytes) -> None:
        """Appends all of an entry.

        Raises:
            OSError: it could not be written; nothing of it is there.
        """
        before = os.fstat(self._descriptor).st_size
        rest = memoryview(entry)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise

    def sync(self) -> None:
        """Flushes the file to disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
