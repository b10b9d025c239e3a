"""What was computed of a host seed, kept in files that all processes of the machine share.

Host seeds come again: in a host pool, in held-out evaluations. What all episodes of one have in common, its forced
beginning and its WAIT-only twin, is computed by whoever wants it first. The files are pickles, written and read by this
package alone; they lie in the data cache and may be deleted at any time.
"""

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import esper_ray
from esper_ray.data.cache import cache_folder
from esper_ray.errors import DatasetError
from esper_ray.file_locks import locked
from esper_ray.models.hosts import host_code
from esper_ray.numerics import numeric_settings
from esper_ray.tasks import TaskSpec

_CODE = ("seeding.py", "lifecycle", "models", "data", "training", "tasks", "episode")
"""Parts of the package that the numbers of an epoch follow from."""


class HostCache:
    """Keeps one thing for each host seed of a task.

    Args:
        kind: what is kept, "beginnings" or "twins".
        task: the task as an episode sees it; rewards and policies do not matter here.
        data: the folder of the prepared data.
        device: where the hosts are trained.
    """

    def __init__(self, kind: str, task: TaskSpec, data: Path, device: torch.device) -> None:
        settings = task.model_dump(mode="json", exclude={"reward", "heuristic", "episodes_per_iteration", "summary"})
        identity = {
            "task": settings,
            "threads": torch.get_num_threads(),
            **numeric_provenance(task, data, device.type, numeric_settings()),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = cache_folder() / "hosts" / f"{kind}-{digest}"

    def get(self, host_seed: int, compute: Callable[[], Any]) -> tuple[Any, bool]:
        """Returns what is kept of the host seed, computing it first if need be; and whether it was there already.

        Raises:
            DatasetError: the cache cannot be written.
        """
        path = self._folder / f"{host_seed}.pickle"
        if (found := _read(path)) is not None:
            return found, True
        with self._names_the_cache():
            self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with self._names_the_cache():
                stack.enter_context(locked(path))
            if (found := _read(path)) is not None:
                return found, True
            computed = compute()
            with self._names_the_cache():
                _write(path, pickle.dumps(computed))
            return computed, False

    @contextmanager
    def _names_the_cache(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatasetError(
                f"the cache {self._folder} cannot be written: {error.strerror}; name another folder in the environment "
                "variable ESPER_RAY_CACHE"
            ) from error


def numeric_provenance(task: TaskSpec, data: Path, device: str, numerics: Mapping[str, str]) -> dict[str, str]:
    """Returns what the numbers of an episode follow from besides the task's settings, the seeds and the decisions.

    Args:
        data: the folder of the prepared data; its name changes with the data.
        device: "cpu" or "cuda".
        numerics: of the process that plays, see `numeric_settings`.
    """
    on_gpu = device == "cuda" and torch.cuda.is_available()
    return {
        "data": data.name,
        "device": torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "code": _code(task),
        **numerics,
    }


def _read(path: Path) -> Any:
    """Returns what a file holds; None if there is none, or if it is damaged, as by a full disk."""
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # a damaged pickle can raise anything; what it held is computed again
        return None


def _write(path: Path, content: bytes) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(partial).rename(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _code(task: TaskSpec) -> str:
    """Returns a digest of the code that the numbers of an epoch follow from, the host's own included."""
    return hashlib.sha256(code_digest(*_CODE).encode() + host_code(task.host.kind)).hexdigest()


def code_digest(*parts: str) -> str:
    """Returns a digest of parts of this package: modules, or folders of them."""
    package = Path(esper_ray.__file__).parent
    digest = hashlib.sha256()
    for part in parts:
        path = package / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
