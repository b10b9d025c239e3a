"""CIFAR-10: the archive for Python, as it is or unpacked, or the hub's parquet files."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esper_ray.data.formats import find_shards, image_splits, read_shards, require_labels, unpickle_arrays
from esper_ray.data.source import HubCopy, Split, Splits, data_source, hold_out_validation
from esper_ray.errors import DatasetError

_ARCHIVE = "cifar-10-python.tar.gz"
_FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_ROWS = 10_000
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Checksums of the published batches of 10,000 rows. Of a batch of another size, a selection, the shape is checked."""
_CLASSES = 10
_SIDE = 32
_LARGEST_VALIDATION = 10_000


def find_cifar10(data_dir: Path | None) -> list[Path]:
    """Returns the archive, the unpacked batches, or the parquet files of both splits."""
    remedy = (
        f"put {_ARCHIVE} (from the page of CIFAR-10), its folder {_FOLDER}, or the hub's parquet files in a folder and "
        "pass it with --data-dir, or fetch it with --hub"
    )
    if data_dir is None:
        raise DatasetError(f"cifar10 not found: no machine has it ready; {remedy}")
    if (data_dir / _ARCHIVE).is_file():
        return [data_dir / _ARCHIVE]
    for folder in (data_dir / _FOLDER, data_dir):
        batches = [folder / name for name in (*_TRAIN, _TEST)]
        if all(path.is_file() for path in batches):
            return batches
    if shards := find_shards(data_dir, ("train", "test")):
        return shards
    raise DatasetError(
        f"cifar10 not found: looked in {data_dir} for {_ARCHIVE}, {_FOLDER} with all six batches, and "
        f"train-*.parquet with test-*.parquet; {remedy}"
    )


def _from_tables(tables: dict[str, Any]) -> Splits:
    return hold_out_validation(*image_splits(tables, "img", "cifar10", "RGB", _SIDE, _CLASSES), _LARGEST_VALIDATION)


@data_source(
    "cifar10",
    "60,000 colour photographs, 32×32, in 10 classes",
    find=find_cifar10,
    hub=HubCopy("uoft-cs/cifar10", _from_tables),
)
def read_cifar10(files: list[Path]) -> Splits:
    """Returns images (N, 3, 32, 32) uint8; the published test images are the test split."""
    if files[0].suffix == ".parquet":
        return _from_tables(read_shards(files, ["img", "label"]))
    archived = len(files) == 1
    contents = dict(_unpacked(files[0]) if archived else ((path.name, path.read_bytes()) for path in files))
    missing = {*_TRAIN, _TEST} - contents.keys()
    if missing:
        raise DatasetError(f"{files[0]} is altered: it lacks {', '.join(sorted(missing))}; fetch it again")
    where = f"{files[0]}: " if archived else f"{files[0].parent}/"
    parts_read = {name: _read_batch(name, content, f"{where}{name}") for name, content in contents.items()}
    images, labels = zip(*(parts_read[name] for name in _TRAIN), strict=True)
    train = np.concatenate(images), np.concatenate(labels)
    return hold_out_validation(train, parts_read[_TEST], _LARGEST_VALIDATION)


def _unpacked(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                content = tar.extractfile(member) if member.isfile() and name in _MD5 else None
                if content is not None:
                    yield name, content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DatasetError.altered(archive, error) from error


def _read_batch(name: str, content: bytes, where: str) -> Split:
    batch = unpickle_arrays(content, where)
    pixels = batch.get(b"data") if isinstance(batch, dict) else None
    width = 3 * _SIDE * _SIDE
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != width:
        raise DatasetError(f"{where} is altered: expected b'data' (N, {width}) uint8; fetch it again")
    if len(pixels) == _ROWS and hashlib.md5(content, usedforsecurity=False).hexdigest() != _MD5[name]:
        raise DatasetError(f"{where} is altered: its MD5 checksum is not {_MD5[name]}; fetch it again")
    images = pixels.reshape(-1, 3, _SIDE, _SIDE)
    return images, require_labels(np.asarray(batch.get(b"labels", ()), np.int64), images, _CLASSES, where)
