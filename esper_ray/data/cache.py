"""Prepared data sets, once per machine, in memory-mapped files that all actors share through the page cache."""

import hashlib
import inspect
import json
import marshal
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_ray.data.checks import require_sound_samples, require_sound_tokens, require_splits
from esper_ray.data.hub import read_hub
from esper_ray.data.source import SPLIT_NAMES, DataSource
from esper_ray.data.tokenizers import Tokenizer, make_tokenizer
from esper_ray.errors import DatasetError, EsperError, no_permission
from esper_ray.file_locks import locked
from esper_ray.user_code import user_code

_FACTS = "facts.json"
_FORMAT = 4
"""Raise it when the files of a prepared data set change."""


@dataclass(frozen=True)
class PreparedData:
    """A data set on disk.

    Attributes:
        folder: where its files lie.
        mean, std: what the inputs are standardised with, one per channel, in the units of the stored values: those of
            the training inputs; empty for a text and for integers other than bytes, which stay as they are.
        classes: number of classes that its labels need; for a text, of tokens.
    """

    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    def split(self, name: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns inputs (N, channels, …) and targets (N,) int64 of a split, memory-mapped, at most `limit` of them.

        The channels lie side by side: images can be cut out and put together by whole rows.
        """
        return self._open(f"{name}_inputs")[:limit].movedim(-1, 1), self._open(f"{name}_targets")[:limit]

    def tokens(self, name: str) -> Tensor:
        """Returns the tokens of a text's split, (N,) uint8 or uint16, memory-mapped."""
        return self._open(f"{name}_tokens")

    def _open(self, name: str) -> Tensor:
        """Maps copy-on-write: the pages are shared between processes, and torch asks for writable memory."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c"))


def cache_folder() -> Path:
    """Returns `$ESPER_RAY_CACHE`, or `esper_ray` in the user's cache folder.

    An empty or relative `$XDG_CACHE_HOME` counts for nothing, as the XDG Base Directory Specification has it.

    Raises:
        DatasetError: the user has no home folder to look for one.
    """
    if given := os.environ.get("ESPER_RAY_CACHE"):
        return Path(given)
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (user if user.is_absolute() else Path.home() / ".cache") / "esper_ray"
    except RuntimeError:
        raise DatasetError("this user has no home folder: set HOME, or ESPER_RAY_CACHE, to one") from None


def prepare(
    source: DataSource, data_dir: Path | None = None, *, hub: bool = False, tokenizer: str = "bytes"
) -> PreparedData:
    """Reads the data set if this machine has not done so before, and opens it.

    When several processes of the machine want it at once, one reads it and the others wait.

    Args:
        data_dir: folder with its files; None: where the source looks by itself.
        hub: fetch it from the Hugging Face hub instead.
        tokenizer: of a text: "bytes" or "gpt2".

    Raises:
        DatasetError: the data set is missing, truncated or altered, has values that no training can use, or the cache
            cannot be written.
    """
    if hub and data_dir is not None:
        raise DatasetError("--hub and --data-dir exclude each other; leave one out")
    if hub and source.hub is None:
        raise DatasetError(f"the hub has no copy of {source.name} that is known here; leave --hub out")
    with _named(source):
        files = [] if hub else source.find(data_dir)
    encoder = make_tokenizer(tokenizer, data_dir, hub) if source.kind == "text" else None
    origin = source.hub.repository if hub and source.hub else ""
    folder = cache_folder() / f"{source.name}-{_fingerprint(source, origin, tokenizer, files, encoder)}"
    if (refusal := no_permission(folder, within=True)) is not None:
        raise DatasetError(f"{refusal} in the environment variable ESPER_RAY_CACHE")
    if not folder.is_dir():
        with _only_one_process(folder):
            if not folder.is_dir():
                with _named(source):
                    content = read_hub(source) if hub else source.read(files)
                    arrays, facts = _tokens(source, content, encoder) if encoder else _samples(source, content)
                _write(arrays, facts, folder)
    facts = json.loads((folder / _FACTS).read_text())
    return PreparedData(folder, tuple(facts["mean"]), tuple(facts["std"]), facts["classes"])


@contextmanager
def _only_one_process(folder: Path) -> Iterator[None]:
    """Holds the lock of the cache, and names the cache if that cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent):
            yield
    except OSError as error:
        raise DatasetError(
            f"the data cache {folder.parent} cannot be written: {error.strerror}; set HOME, or name another folder in "
            "the environment variable ESPER_RAY_CACHE"
        ) from error


@contextmanager
def _named(source: DataSource) -> Iterator[None]:
    """Turns whatever a reader raises into one line that names the data set."""
    try:
        yield
    except EsperError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{source.name} cannot be read: {type(error).__name__}: {reason}; see to its files, or to its reader"
        ) from error


def _fingerprint(source: DataSource, origin: str, tokenizer: str, files: list[Path], encoder: Tokenizer | None) -> str:
    """Returns a text that changes with everything the prepared data follows from, the reader's own file included."""
    stats = [
        (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns)
        for f in [*files, *(encoder.files if encoder else ())]
    ]
    identity = [_FORMAT, source.version, _code_of(source), origin, tokenizer if encoder else None, stats]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def _code_of(source: DataSource) -> str:
    """Returns a digest of the reader's file, or of its code where there is no file, and of all that is imported."""
    try:
        content = Path(inspect.getfile(source.read)).read_bytes()
    except (OSError, TypeError):
        code = getattr(source.read, "__code__", None)
        content = marshal.dumps(code) if code else repr(type(source.read)).encode()
    return hashlib.sha256(content + user_code(source.read).digest.encode()).hexdigest()


def _samples(source: DataSource, splits: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Returns the arrays to store for labelled samples, and the facts about them."""
    splits = require_sound_samples(source.name, splits)
    inputs = splits["train"][0]
    facts = {"mean": [], "std": [], "classes": 1 + max(int(targets.max()) for _, targets in splits.values())}
    if inputs.dtype != np.int64:
        others = (0, *range(2, inputs.ndim))  # all dimensions but the channel's
        std = inputs.std(axis=others)
        facts["mean"] = inputs.mean(axis=others).tolist()
        facts["std"] = np.where(std > 0, std, 1.0).tolist()  # a constant channel becomes 0
    arrays = {}
    for name in SPLIT_NAMES:
        split_inputs, arrays[f"{name}_targets"] = splits[name]
        arrays[f"{name}_inputs"] = np.moveaxis(split_inputs, 1, -1)
    return arrays, facts


def _tokens(source: DataSource, documents: Any, encoder: Tokenizer) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Returns the arrays to store for a text, and the facts about them."""
    require_splits(source.name, documents)
    for name, texts in documents.items():
        if isinstance(texts, str | bytes):
            raise DatasetError(f"the {name} split of {source.name} must be a list of documents, got a single text")
    tokens = require_sound_tokens(source.name, {name: encoder.encode(texts) for name, texts in documents.items()})
    facts = {"mean": [], "std": [], "classes": 1 + max(int(part.max()) for part in tokens.values())}
    return {f"{name}_tokens": tokens[name] for name in SPLIT_NAMES}, facts


def _write(arrays: dict[str, NDArray[Any]], facts: dict[str, Any], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-", ignore_cleanup_errors=True) as temporary:
        partial = Path(temporary) / "data"
        partial.mkdir()
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", np.ascontiguousarray(array))
        (partial / _FACTS).write_text(json.dumps(facts))
        partial.rename(folder)
