"""A guard process that ends the local Ray of a driver that died.

Ray's agents notice the death of their raylet, but then wait more than a minute for a GCS that died with it, and the
session's folder stays for good. A guard is a process of its own that waits for its driver to end; it needs neither Ray
nor torch, and is run as a file, so that it starts at once.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 30.0


@contextmanager
def guarded(session: Path) -> Iterator[None]:
    """While this lasts, the death of this process ends the Ray that lives in the folder `session`, and removes it."""
    guard = subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid()), str(session)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # a Ctrl-C, or a signal to the driver's whole group, is not for the guard
    )
    try:
        yield
    finally:
        guard.kill()
        guard.wait()


def end_session(session: Path) -> None:
    """Ends every process of the Ray session in the folder `session`, and removes it; mere readers are left alone."""
    give_up = time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < give_up:
        members = [process for process in _processes() if _is_session_process(process, session)]
        for process in members:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(members, timeout=1)
        shutil.rmtree(session, ignore_errors=True)
        if not members and not session.exists():
            return


def _processes() -> list[psutil.Process]:
    """Returns the processes of this machine; none where the system does not show them."""
    try:
        return list(psutil.process_iter())
    except (psutil.Error, OSError):
        return []


def _is_session_process(process: psutil.Process, session: Path) -> bool:
    """Returns whether a process names the session in its command line, or has one of its files open for writing.

    All that Ray starts has both at first; its workers and agents later change their command line.
    """
    try:
        if any(argument.startswith("--") and str(session) in argument for argument in process.cmdline()):
            return True
        files = process.open_files()
    except (psutil.Error, OSError):
        return False
    return any(Path(file.path).is_relative_to(session) and getattr(file, "mode", "w") != "r" for file in files)


def _guard(driver: int, session: Path) -> None:
    while os.getppid() == driver:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    end_session(session)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), Path(sys.argv[2]))
