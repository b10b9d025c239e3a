"""Ray's processes, folders and shared memory that belong to this test session; others may test on the same machine."""

import os
import tempfile
from pathlib import Path


def ray_processes() -> set[str]:
    """Process ids of every Ray daemon and worker that was started, at whatever remove, by this test session."""
    mine = f"ESPER_RAY_CACHE={os.environ['ESPER_RAY_CACHE']}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            is_ray = b"raylet" in command or b"gcs_server" in command or command.startswith(b"ray::")
            if is_ray and mine in environment.split(b"\0"):
                found.add(entry.name)
    return found


def leftovers() -> set[str]:
    """Folders of Ray sessions and lock files: Ray's own, those of the cache, those beside a run; shared memory."""
    temporary = Path(tempfile.gettempdir())
    shared_memory = Path("/dev/shm")
    found = [*temporary.glob("esper-*"), *temporary.glob("_ray_lockfiles/*")]
    found += [path for folder in (Path(os.environ["ESPER_RAY_CACHE"]), Path.cwd()) for path in folder.rglob("*.lock")]
    found += shared_memory.iterdir() if shared_memory.is_dir() else ()
    return {str(path) for path in found}
