"""What every episode of a host seed has in common, trained once per machine: forced beginnings and WAIT-only twins.

Both follow from (task, host seed, device) alone. They lie in the data cache as pickles that this package wrote itself.
"""

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import esper_ray
from esper_ray.data.cache import cache_folder
from esper_ray.errors import DatasetError
from esper_ray.models.hosts import host_code
from esper_ray.tasks import TaskSpec

_CODE = ("lifecycle", "models", "data", "training", "tasks", "episode")
"""Parts of the package that the numbers of an epoch follow from."""


@dataclass(frozen=True)
class Beginning:
    """The epochs of a host up to its first real choice, or up to its last one if there is none.

    Attributes:
        reports: one `EpochReport` per epoch.
        state: host, optimizer, signals and governor after the last of them, see `HostRun.state`.
    """

    reports: tuple[Any, ...]
    state: bytes


class HostCache:
    """Keeps what was computed of a host seed: in a file that all processes of the machine share.

    Whoever wants something first computes it; others wait for it.

    Args:
        kind: what is kept, "beginnings" or "twins".
        task: the task as an episode sees it; rewards and policies do not matter here.
        data: the folder of the prepared data.
        device: where the hosts are trained.

    Raises:
        DatasetError: the cache cannot be written.
    """

    def __init__(self, kind: str, task: TaskSpec, data: Path, device: torch.device) -> None:
        identity = {
            "task": task.model_dump(mode="json", exclude={"reward", "heuristic", "episodes_per_iteration", "summary"}),
            "data": data.name,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "code": _code(task),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = cache_folder() / "hosts" / f"{kind}-{digest}"

    def get(self, host_seed: int, compute: Callable[[], Any]) -> tuple[Any, bool]:
        """Returns what is kept of the host seed, computing it first if need be; and whether it was there already."""
        path = self._folder / f"{host_seed}.pickle"
        if (found := _read(path)) is not None:
            return found, True
        with self._only_one_process(path):
            if (found := _read(path)) is not None:
                return found, True
            computed = compute()
            _write(path, pickle.dumps(computed))
            return computed, False

    @contextmanager
    def _only_one_process(self, path: Path) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            raise DatasetError(
                f"the cache {self._folder} cannot be written: {error.strerror}; name another folder in the environment "
                "variable ESPER_RAY_CACHE"
            ) from error
        try:
            yield
        finally:
            lock.release()


def _read(path: Path) -> Any:
    """Returns what a file holds; None if there is none, or if it was cut off, as by a full disk."""
    try:
        return pickle.loads(path.read_bytes())
    except (FileNotFoundError, EOFError, pickle.UnpicklingError):
        return None


def _write(path: Path, content: bytes) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(partial).rename(path)


def _code(task: TaskSpec) -> str:
    """Returns a digest of the code that the numbers of an epoch follow from, the host's own included."""
    package = Path(esper_ray.__file__).parent
    files = [file for part in _CODE for file in sorted((package / part).rglob("*.py"))]
    digest = hashlib.sha256()
    for content in [*(file.read_bytes() for file in files), host_code(task.host.kind)]:
        digest.update(content)
    return digest.hexdigest()
