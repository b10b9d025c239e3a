"""Standard output and error that cannot fail: nobody needs to read them for a command to do its work."""

import errno
import io
import os
import sys
from typing import IO, Any

_BROKEN_PIPE = 128 + 13
"""Exit code of a program that writes to a pipe that nobody reads any more: ended by SIGPIPE."""


class _Lasting(io.FileIO):
    """A file descriptor that drops output which cannot be written, and everything after it."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError as error:
            self.lost = error
            _point_nowhere(self.fileno())  # for the processes that inherit it, too
            return len(data)


def make_output_lasting() -> None:
    """Lets standard output and error take everything: a full disk, a closed pipe or descriptor is no error.

    Descriptors that are closed are opened on nothing, so that no file of a run gets their numbers.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _point_nowhere(descriptor)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


def exit_code_of_lost_output() -> int:
    """Returns 0 if standard output took everything; else says why it did not and returns an exit code above 0."""
    sys.stdout.flush()
    lost = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = lost.lost if isinstance(lost, _Lasting) else None
    if error is None:
        return 0
    if error.errno == errno.EPIPE:
        return _BROKEN_PIPE
    print(f"esper-ray: the output could not be written: {error.strerror}", file=sys.stderr)
    return 1


def _point_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _lasting(stream: IO[str] | None, descriptor: int) -> io.TextIOWrapper:
    """Returns a text stream like `stream` that cannot fail; characters that its encoding lacks are replaced."""
    buffer = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
    if not isinstance(stream, io.TextIOWrapper):  # the descriptor was closed when Python started
        return io.TextIOWrapper(buffer, encoding="utf-8", errors="replace")
    return io.TextIOWrapper(
        buffer, stream.encoding, "replace", line_buffering=stream.line_buffering, write_through=stream.write_through
    )
