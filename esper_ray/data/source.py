"""Data sources and their registry."""

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from esper_ray.errors import ConfigurationError, DatasetError, EsperError, unknown_name
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

Finder = Callable[[Path | None], list[Path]]
Reader = Callable[[list[Path]], Any]
_Kind = Literal["samples", "text"]

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
        find: data folder given by the user, or None → the files, at least one; raises `DatasetError` that says where it
            looked.
        read: the files → `Splits` of samples or, for a text, `Documents`; raises `DatasetError` if one is truncated or
            altered.
        kind: "samples" or "text".
        hub: where the hub has it, if it does.
    """

    name: str
    description: str
    version: int
    find: Finder
    read: Callable[[list[Path]], Any]
    kind: _Kind = "samples"
    hub: HubCopy | None = None


_SOURCES: dict[str, DataSource] = {}


def data_source(
    name: str,
    description: str,
    *,
    version: int = 1,
    find: Finder | None = None,
    kind: _Kind = "samples",
    hub: HubCopy | None = None,
) -> Callable[[Reader], Reader]:
    """Registers a data source; decorates its `read`, see `DataSource`.

    Args:
        find: takes the data folder that the user gave, or None, and returns the paths of the files that `read` gets, at
            least one; prepared data is made anew once one of them changes. It may raise `DatasetError` that says where
            it looked. Unset: the data comes with an installed package and takes no folder.

    Raises:
        ConfigurationError: the name is taken or no name of a folder, or the kind is unknown.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigurationError(f"data source {name!r}: expected a name of letters, digits, _, - and .")
    if kind not in get_args(_Kind):
        raise ConfigurationError(f"data source '{name}': {unknown_name('kind', kind, get_args(_Kind))}")

    def register(read: Reader) -> Reader:
        if name in _SOURCES and not is_redefinition(_SOURCES[name].read, read):
            raise ConfigurationError(f"data source '{name}' is already registered")
        finder = no_folder(name) if find is None else _checked(name, find)
        _SOURCES[name] = DataSource(name, description, version, finder, read, kind, hub)
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


def no_folder(name: str) -> Finder:
    """Returns a `find` for data that comes with an installed package."""

    def find(data_dir: Path | None) -> list[Path]:
        if data_dir is not None:
            raise DatasetError(f"{name} comes with an installed package and needs no data folder; leave --data-dir out")
        return []

    return find


def _checked(name: str, find: Finder) -> Finder:
    """Returns `find`, whose result is checked."""

    @wraps(find)
    def find_files(data_dir: Path | None) -> list[Path]:
        remedy = "see to its find" if data_dir is not None else "pass its folder with --data-dir, or see to its find"
        try:
            found = find(data_dir)
        except EsperError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DatasetError(f"{name} is not found: {type(error).__name__}: {reason}; {remedy}") from error
        if isinstance(found, str | Path) or not isinstance(found, Iterable):
            raise DatasetError(f"the find of {name} must return a list of files, got {found!r}")
        files = [Path(file) for file in found]
        if not files:
            raise DatasetError(f"no files of {name} were found in {data_dir or 'the usual places'}; {remedy}")
        for file in files:
            if not file.is_file():
                raise DatasetError(f"the find of {name} must return files, but {file} is none; {remedy}")
        return files

    return find_files


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
