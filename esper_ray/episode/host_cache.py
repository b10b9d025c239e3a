"""A cache of results that depend on task and host seed only, in files that all processes of the machine share.

Host seeds recur, in a host pool and in held-out evaluations. All episodes of a host seed share its forced beginning and
its WAIT-only twin; the first process that needs one computes it. The files are pickles, written and read by this
package alone; they lie in the data cache and may be deleted at any time.
"""

import hashlib
import json
import logging
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from esper_ray.data.cache import cache_folder
from esper_ray.episode.provenance import numeric_provenance, what_is_unknown
from esper_ray.errors import DatasetError
from esper_ray.file_locks import locked
from esper_ray.numerics import numeric_settings
from esper_ray.tasks import TaskSpec

logger = logging.getLogger(__name__)


class HostCache:
    """Caches one result for each host seed of a task.

    Nothing is cached where the provenance of the numbers is not known, such as that of a host of a notebook; a line in
    the log says so.

    Args:
        kind: kind of result, "beginnings" or "twins".
        task: the task as an episode sees it; rewards and policies do not matter here.
        data: the folder of the prepared data.
        device: where the hosts are trained.
    """

    def __init__(self, kind: str, task: TaskSpec, data: Path, device: torch.device) -> None:
        self._kind = kind
        self._task = task
        self._data = data
        self._device = device

    def get(self, host_seed: int, compute: Callable[[], Any]) -> tuple[Any, bool]:
        """Returns the result for the host seed, which is computed if it is missing, and whether it was cached already.

        Raises:
            DatasetError: the cache cannot be written.
        """
        folder = self._folder()
        if folder is None:
            return compute(), False
        path = folder / f"{host_seed}.pickle"
        if (found := _read(path)) is not None:
            return found, True
        with _names_the_cache(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with _names_the_cache(folder):
                stack.enter_context(locked(path))
            if (found := _read(path)) is not None:
                return found, True
            computed = compute()
            if self._folder() == folder:  # else a file that the host reads has changed meanwhile
                with _names_the_cache(folder):
                    _write(path, pickle.dumps(computed))
            return computed, False

    def _folder(self) -> Path | None:
        """Returns the folder of the results; it is another one once a file that the host reads has another content."""
        task = self._task
        if (unknown := what_is_unknown(task)) is not None:
            say_not_shared(task.name, unknown)
            return None
        settings = task.model_dump(mode="json", exclude={"reward", "heuristic", "episodes_per_iteration", "summary"})
        provenance = numeric_provenance(task, self._data, self._device.type, numeric_settings())
        identity = {"task": settings, "threads": torch.get_num_threads(), **provenance}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "hosts" / f"{self._kind}-{digest}"


@lru_cache
def say_not_shared(task_name: str, unknown: str) -> None:
    """Says once that twins and beginnings of a task are computed anew for each episode, and why."""
    logger.warning("%s: nothing is shared between episodes, which takes longer: %s", task_name, unknown)


@contextmanager
def _names_the_cache(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"the cache {folder} cannot be written: {error.strerror}; name another folder in the environment "
            "variable ESPER_RAY_CACHE"
        ) from error


def _read(path: Path) -> Any:
    """Returns the object in a file; None if there is no file, or if it is damaged, as by a full disk."""
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # a damaged pickle can raise anything; what it held is computed again
        return None


def _write(path: Path, content: bytes) -> None:
    partial = path.parent / f".writing-{uuid.uuid4().hex}"  # of the umask's mode, which one of `mkstemp` has not
    try:
        partial.write_bytes(content)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
