"""Prepared data sets, once per machine, in memory-mapped files that all actors share through the page cache."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esper_ray.data.sources import DataSource, Splits
from esper_ray.errors import DatasetError

_STATISTICS = "statistics.json"


@dataclass(frozen=True)
class PreparedData:
    """A data set on disk.

    Attributes:
        folder: where its files lie.
        mean, std: of the training inputs, one per channel, in the units of the stored values.
    """

    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def split(self, name: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns inputs (N, C, H, W) uint8 and targets (N,) int64 of a split, memory-mapped, at most `limit` of them.

        Mapped copy-on-write: the pages are shared between processes, and torch asks for writable memory.
        """
        inputs, targets = (np.load(self.folder / f"{name}_{part}.npy", mmap_mode="c") for part in ("inputs", "targets"))
        return torch.from_numpy(inputs[:limit]), torch.from_numpy(targets[:limit])


def cache_folder() -> Path:
    """Returns `$ESPER_RAY_CACHE`, or `esper_ray` in the user's cache folder."""
    given = os.environ.get("ESPER_RAY_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "esper_ray"


def prepare(source: DataSource, data_dir: Path | None = None) -> PreparedData:
    """Reads the data set if this machine has not done so before, and opens it.

    Safe when several processes do it at once: each writes a folder of its own and the first to rename it wins.

    Raises:
        DatasetError: the data set is missing, truncated or altered, or the cache cannot be written.
    """
    files = source.find(data_dir)
    identity = [source.version, [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{source.name}-{fingerprint}"
    if not folder.is_dir():
        splits = source.read(files)
        try:
            _write(splits, folder)
        except OSError as error:
            raise DatasetError(
                f"the data cache {folder.parent} cannot be written: {error.strerror}; "
                "name another folder in the environment variable ESPER_RAY_CACHE"
            ) from error
    statistics = json.loads((folder / _STATISTICS).read_text())
    return PreparedData(folder, tuple(statistics["mean"]), tuple(statistics["std"]))


def _write(splits: Splits, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-", ignore_cleanup_errors=True) as temporary:
        partial = Path(temporary) / "data"
        partial.mkdir()
        for name, (inputs, targets) in splits.items():
            np.save(partial / f"{name}_inputs.npy", np.ascontiguousarray(inputs))
            np.save(partial / f"{name}_targets.npy", targets)
        inputs = splits["train"][0]
        statistics = {"mean": inputs.mean(axis=(0, 2, 3)).tolist(), "std": inputs.std(axis=(0, 2, 3)).tolist()}
        (partial / _STATISTICS).write_text(json.dumps(statistics))
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
