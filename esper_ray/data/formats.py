"""Reading published file formats, with checks: a truncated or altered file is never read in part."""

import gzip
import io
import pickle
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esper_ray.data.source import Split
from esper_ray.errors import DatasetError

if TYPE_CHECKING:  # pyarrow and pillow are imported by what reads parquet files and images: training needs neither
    import pyarrow as pa

_SHARD = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9A-Za-z]+)?\.parquet$")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads one file of unsigned bytes in the IDX format of MNIST, gzipped or not.

    Raises:
        DatasetError: the magic number, the element type or the length is not what the format says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError.altered(path, error) from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DatasetError(f"{path} is not an IDX file of unsigned bytes; fetch it again")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else ()
    if not shape or len(content) - header != int(np.prod(shape)):
        raise DatasetError(f"{path} is truncated or altered: {len(content)} bytes for shape {shape}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find_shards(folder: Path, splits: Sequence[str]) -> list[Path]:
    """Returns the parquet files of the splits, NAME-00000-of-00003….parquet as on the Hugging Face hub, or none at all.

    Looks in `folder`, and in its folders if it has none itself. Files of other names, such as copies, are ignored.

    Raises:
        DatasetError: shards are missing, or several folders hold such files, which would mix data sets.
    """
    by_split = {name: sorted(filter(_is_shard, folder.glob(f"{name}-*.parquet"))) for name in splits}
    if not any(by_split.values()):
        holders = {path.parent for name in splits for path in filter(_is_shard, folder.rglob(f"{name}-*.parquet"))}
        if len(holders) > 1:
            names = ", ".join(str(holder) for holder in sorted(holders))
            raise DatasetError(f"{folder} holds parquet files in several folders ({names}); pass one of them")
        return find_shards(holders.pop(), splits) if holders else []
    for name, files in by_split.items():
        numbers = [number for path in files if (number := _SHARD.search(path.name))]
        of = {int(number[2]) for number in numbers}
        if len(of) != 1 or [int(number[1]) for number in numbers] != list(range(*of)):
            found = ", ".join(path.name for path in files) or "none"
            raise DatasetError(f"{folder} does not hold every shard of split {name}: found {found}; fetch the rest")
    return [path for files in by_split.values() for path in files]


def _is_shard(path: Path) -> bool:
    return _SHARD.search(path.name) is not None


def read_shards(files: Sequence[Path], columns: Sequence[str]) -> "dict[str, pa.Table]":
    """Reads columns of the parquet files that `find_shards` found; returns split name → table.

    Raises:
        DatasetError: a file is truncated or altered, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables: dict[str, list[pa.Table]] = {}
    for path in files:
        try:
            missing = set(columns) - set(pq.read_schema(path).names)
            if missing:
                raise DatasetError(f"{path} has no column {', '.join(sorted(missing))}: it is another data set")
            tables.setdefault(path.name.partition("-")[0], []).append(pq.read_table(path, columns=list(columns)))
        except (OSError, pa.ArrowException) as error:
            raise DatasetError.altered(path, _first_line(error)) from error
    return {name: pa.concat_tables(parts, promote_options="permissive") for name, parts in tables.items()}


def decode_images(table: "pa.Table", image: str, where: str, mode: str, side: int) -> NDArray[np.uint8]:
    """Decodes a column of encoded images, structs {bytes, path} as Hugging Face `datasets` stores them.

    Args:
        image: name of the column.
        where: what the table was read from, for messages.
        mode: "RGB" or "L", pillow's name of what the images must be.
        side: their height and width.

    Returns:
        (N, channels, side, side) uint8.

    Raises:
        DatasetError: an image cannot be decoded, or is of another mode or size.
    """
    from PIL import Image

    decoded = []
    for row, entry in enumerate(table.column(image).to_pylist()):
        try:
            with Image.open(io.BytesIO(entry["bytes"])) as opened:
                pixels, found = np.asarray(opened), (opened.mode, *opened.size)
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise DatasetError(
                f"{where}: image {row} cannot be decoded: {_first_line(error)}; fetch it again"
            ) from error
        if found != (mode, side, side):
            raise DatasetError(
                f"{where}: image {row} is {found}, expected {(mode, side, side)}: it is another data set"
            )
        decoded.append(pixels.reshape(side, side, -1).transpose(2, 0, 1))
    return np.stack(decoded) if decoded else np.zeros((0, 3 if mode == "RGB" else 1, side, side), np.uint8)


def require_labels(labels: NDArray[Any], images: NDArray[Any], classes: int, where: object) -> NDArray[np.int64]:
    """Returns the labels as int64 once they are known to be one per image and 0 to `classes` − 1.

    Raises:
        DatasetError: they are not.
    """
    if len(labels) != len(images):
        raise DatasetError(f"{where} does not fit together: {len(images)} images and {len(labels)} labels")
    if labels.dtype.kind not in "iu":
        raise DatasetError(
            f"{where}: expected a whole number as label of every image, got {labels.dtype}; fetch it again"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise DatasetError(f"{where}: expected labels 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def image_splits(
    tables: "dict[str, pa.Table]", image: str, name: str, mode: str, side: int, classes: int
) -> tuple[Split, Split]:
    """Returns the train and test split of tables with an image column and a column "label"."""
    train, test = (
        _image_split(tables[s], image, f"the {s} split of {name}", mode, side, classes) for s in ("train", "test")
    )
    return train, test


def _image_split(table: "pa.Table", image: str, where: str, mode: str, side: int, classes: int) -> Split:
    images = decode_images(table, image, where, mode, side)
    return images, require_labels(table.column("label").to_numpy(), images, classes, where)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, texts, containers and numpy arrays; anything else could run code and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        }
        key = (module.rpartition(".")[2], name)
        if key not in allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no data")
        return allowed[key]


def unpickle_arrays(content: bytes, where: object) -> Any:
    """Reads a pickle that holds data only, of Python 2 or 3; texts of Python 2 come back as bytes.

    Raises:
        DatasetError: it is truncated, or holds anything but data.
    """
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DatasetError(f"{where} is truncated or altered: {_first_line(error)}; fetch it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
