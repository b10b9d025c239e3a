"""What a data source is, and the registry of them."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esper_ray.errors import ConfigurationError, DatasetError, unknown_name
from esper_ray.plugins import is_redefinition
from esper_ray.user_code import remember_code

Split = tuple[NDArray[Any], NDArray[Any]]
"""Inputs (N, …) and labels (N,) of whole numbers from 0. Images are (N, channels, height, width). Bytes (uint8) and
floating-point inputs are standardised unless the task says otherwise; other integers, such as token ids or categories,
reach the host as they are, int64."""

Splits = dict[str, Split]
"""Split name ("train", "validation", "test") → its samples, already shuffled."""

Documents = dict[str, Iterable[str]]
"""Split name ("train", "validation", "test") → its documents."""

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_SEED = 20_260_101
"""Fixed: the three-way split is part of the task, not of a run."""


@dataclass(frozen=True)
class HubCopy:
    """A data set's copy on the Hugging Face hub.

    Attributes:
        repository: its name there.
        read: split name on the hub → pyarrow table; returns what the source's own `read` returns.
    """

    repository: str
    read: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class DataSource:
    """A data set that can be found on this machine and read.

    Attributes:
        name: also the name of its folder in the cache.
        description: one line for `esper-ray tasks`.
        version: raise it when `read` returns something else although its own file has not changed.
        find: data folder given by the user, or None → the files; raises `DatasetError` that says where it looked.
        read: the files → `Splits` of samples or, for a text, `Documents`; raises `DatasetError` if one is truncated or
            altered.
        kind: "samples" or "text".
        hub: where the hub has it, if it does.
    """

    name: str
    description: str
    version: int
    find: Callable[[Path | None], list[Path]]
    read: Callable[[list[Path]], Any]
    kind: Literal["samples", "text"] = "samples"
    hub: HubCopy | None = None


_SOURCES: dict[str, DataSource] = {}

Reader = Callable[[list[Path]], Any]


def data_source(
    name: str,
    description: str,
    *,
    version: int = 1,
    find: Callable[[Path | None], list[Path]] | None = None,
    kind: Literal["samples", "text"] = "samples",
    hub: HubCopy | None = None,
) -> Callable[[Reader], Reader]:
    """Registers a data source; decorates its `read`, see `DataSource`.

    Args:
        find: unset: the data comes with an installed package and takes no folder.

    Raises:
        ConfigurationError: the name is taken.
    """

    def register(read: Reader) -> Reader:
        if name in _SOURCES and not is_redefinition(_SOURCES[name].read, read):
            raise ConfigurationError(f"data source '{name}' is already registered")
        _SOURCES[name] = DataSource(name, description, version, find or no_folder(name), read, kind, hub)
        remember_code(read)
        return read

    return register


def get_source(name: str) -> DataSource:
    """Returns a data source by name.

    Raises:
        ConfigurationError: it is unknown; the nearest is named.
    """
    if name not in _SOURCES:
        raise ConfigurationError(unknown_name("data source", name, _SOURCES))
    return _SOURCES[name]


def no_folder(name: str) -> Callable[[Path | None], list[Path]]:
    """Returns a `find` for data that comes with an installed package."""

    def find(data_dir: Path | None) -> list[Path]:
        if data_dir is not None:
            raise DatasetError(f"{name} comes with an installed package and needs no data folder; leave --data-dir out")
        return []

    return find


def shuffled_split(inputs: NDArray[Any], labels: NDArray[Any], sizes: dict[str, int]) -> Splits:
    """Shuffles once, with a fixed seed, and cuts into consecutive pieces of the given sizes."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(inputs))
    bounds = np.cumsum([0, *sizes.values()])
    pieces = zip(sizes, itertools.pairwise(bounds), strict=True)
    return {name: (inputs[order[start:end]], labels[order[start:end]]) for name, (start, end) in pieces}


def hold_out_validation(train: Split, test: Split, largest: int) -> Splits:
    """Takes a validation split from published training data: a fifth of it, at most `largest` samples."""
    validation = min(largest, len(train[0]) // 5)
    sizes = {"train": len(train[0]) - validation, "validation": validation}
    return shuffled_split(*train, sizes) | {"test": test}
