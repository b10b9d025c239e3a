"""Where each data set lies and how its published format is read."""

import gzip
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esper_ray.errors import DatasetError

Splits = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Split name ("train", "validation", "test") → images (N, C, H, W) uint8 and labels (N,) int64, already shuffled."""

_SPLIT_SEED = 20_260_101
"""Fixed: the three-way split is part of the task, not of a run."""


@dataclass(frozen=True)
class DataSource:
    """A data set that can be found on this machine and read.

    Attributes:
        name: also the name of its folder in the cache.
        description: one line for `esper-ray tasks`.
        version: raise it when `read` changes what it returns.
        find: data folder given by the user, or None → the files; raises `DatasetError` that says where it looked.
        read: the files → the three splits; raises `DatasetError` if one is truncated or altered.
    """

    name: str
    description: str
    version: int
    find: Callable[[Path | None], list[Path]]
    read: Callable[[list[Path]], Splits]


def _split(images: NDArray[np.uint8], labels: NDArray[np.int64], sizes: dict[str, int]) -> Splits:
    """Shuffles once, with a fixed seed, and cuts into consecutive pieces of the given sizes."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    bounds = np.cumsum([0, *sizes.values()])
    pieces = zip(sizes, itertools.pairwise(bounds), strict=True)
    return {name: (images[order[start:end]], labels[order[start:end]]) for name, (start, end) in pieces}


def _find_digits(data_dir: Path | None) -> list[Path]:
    if data_dir is not None:
        raise DatasetError("digits come with scikit-learn and need no data folder; leave --data-dir out")
    return []


def _read_digits(files: list[Path]) -> Splits:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = bundle.images.astype(np.uint8)[:, None]
    return _split(images, bundle.target.astype(np.int64), {"train": 1000, "validation": 400, "test": 397})


_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_VALIDATION = 10_000


def _find_fashion_mnist(data_dir: Path | None) -> list[Path]:
    folder = data_dir or _FASHION_DEBIAN
    found = []
    for name in _FASHION_FILES:
        candidates = [folder / f"{name}.gz", folder / name]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise DatasetError(
                f"fashion_mnist not found: looked for {name}.gz and {name} in {folder}; install Debian's package "
                "dataset-fashion-mnist (apt-get install dataset-fashion-mnist), or put the four IDX files of "
                "Fashion-MNIST in a folder and pass it with --data-dir"
            )
        found.append(path)
    return found


def _read_fashion_mnist(files: list[Path]) -> Splits:
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in files)
    for path, images, labels in ((files[0], train_images, train_labels), (files[2], test_images, test_labels)):
        if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) != len(labels):
            raise DatasetError(
                f"{path} does not fit its labels: expected images (N, 28, 28) and N labels, "
                f"got {images.shape} and {labels.shape}"
            )
        if labels.max(initial=0) > 9:
            raise DatasetError(f"{path}: expected labels 0 to 9, got {labels.max()}")
    validation = min(_FASHION_VALIDATION, len(train_images) // 5)
    sizes = {"train": len(train_images) - validation, "validation": validation}
    splits = _split(train_images[:, None], train_labels.astype(np.int64), sizes)
    return splits | {"test": (test_images[:, None], test_labels.astype(np.int64))}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads one file of unsigned bytes in the IDX format of MNIST, gzipped or not.

    Raises:
        DatasetError: the magic number, the element type or the length is not what the format says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; fetch it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DatasetError(f"{path} is not an IDX file of unsigned bytes; fetch it again")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else ()
    if not shape or len(content) - header != int(np.prod(shape)):
        raise DatasetError(f"{path} is truncated or altered: {len(content)} bytes for shape {shape}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


SOURCES: dict[str, DataSource] = {
    source.name: source
    for source in (
        DataSource("digits", "1,797 handwritten digits, 8×8, bundled with scikit-learn", 1, _find_digits, _read_digits),
        DataSource(
            "fashion_mnist",
            "70,000 articles of clothing, 28×28, IDX files",
            1,
            _find_fashion_mnist,
            _read_fashion_mnist,
        ),
    )
}


def get_source(name: str) -> DataSource:
    """Returns a data source by name.

    Raises:
        DatasetError: this version cannot read it.
    """
    if name not in SOURCES:
        raise DatasetError(f"this version cannot read the data source '{name}'; it reads {', '.join(SOURCES)}")
    return SOURCES[name]
