"""The code, data, files and versions that the numbers of an episode follow from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import esper_ray
from esper_ray.data import get_source
from esper_ray.models.blueprints import seed_factories
from esper_ray.models.hosts import host_factory
from esper_ray.plugins import loaded_plugins
from esper_ray.tasks import TaskSpec
from esper_ray.user_code import UserCode, file_digest, in_home, user_code

_CODE = ("seeding.py", "lifecycle", "models", "data", "training", "tasks", "episode")
"""Parts of the package that the numbers of an epoch follow from."""


def numeric_provenance(task: TaskSpec, data: Path, device: str, numerics: Mapping[str, str]) -> dict[str, str]:
    """Returns the provenance of an episode's numbers, beside the task's settings, the seeds and the decisions.

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
        "code": hashlib.sha256(f"{code_digest(*_CODE)} {_code_of(task).digest}".encode()).hexdigest(),
        "files": _files_digest(task),
        **numerics,
    }


def what_is_unknown(task: TaskSpec) -> str | None:
    """Returns why the provenance of the task's numbers is not fully known; None if it is."""
    for value in _option_values(task):
        if _names(os.path.isdir, value) or not isinstance(value, str | int | float | None):
            return f"the content of {value}, an option of host '{task.host.kind}', is not known"
    return _code_of(task).unknown


@lru_cache
def code_digest(*parts: str) -> str:
    """Returns a digest of parts of this package: modules, or folders of them."""
    package = Path(esper_ray.__file__).parent
    digest = hashlib.sha256()
    for part in parts:
        path = package / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _code_of(task: TaskSpec) -> UserCode:
    """Returns the digest of the user's code: host, blueprints, data source and every plugin that is loaded."""
    source = get_source(task.data.source)
    seeds = seed_factories()
    return user_code(host_factory(task.host.kind), *seeds, source.read, source.find, *loaded_plugins())


def _files_digest(task: TaskSpec) -> str:
    """Returns the digests of the files that are named in the host's options."""
    found = {str(value): file_digest(Path(value)) for value in _option_values(task) if _names(os.path.isfile, value)}
    return json.dumps({name: digest.hex()[:16] for name, digest in sorted(found.items())})


def _option_values(task: TaskSpec) -> Iterator[Any]:
    """Yields every value that an option of the host has or can be drawn to have; paths without their `~`."""
    pending: list[Any] = [task.host.options, task.variety.hosts, task.variety.options]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value
        else:
            text = str(value) if isinstance(value, str | Path) else ""
            yield str(in_home(text)) if text.startswith("~/") else text or value


def _names(is_such: Callable[[str], bool], value: Any) -> bool:
    return isinstance(value, str) and is_such(value)
