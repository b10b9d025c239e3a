"""Fashion-MNIST: four IDX files, or the hub's parquet files."""

from pathlib import Path
from typing import Any

from esper_ray.data.formats import find_shards, image_splits, read_idx, read_shards, require_labels
from esper_ray.data.source import HubCopy, Split, Splits, data_source, hold_out_validation
from esper_ray.errors import DatasetError

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CLASSES = 10
_SIDE = 28
_LARGEST_VALIDATION = 10_000


def find_fashion_mnist(data_dir: Path | None) -> list[Path]:
    """Returns the four IDX files, or the parquet files of both splits."""
    folder = data_dir or _DEBIAN
    found = []
    for name in _FILES:
        candidates = [folder / f"{name}.gz", folder / name]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            shards = find_shards(folder, ("train", "test"))
            if shards:
                return shards
            raise DatasetError(
                f"fashion_mnist not found: looked for {name}.gz and {name} in {folder}; install Debian's package "
                "dataset-fashion-mnist (apt-get install dataset-fashion-mnist), put the four IDX files of "
                "Fashion-MNIST or the hub's parquet files in a folder and pass it with --data-dir, or fetch it with "
                "--hub"
            )
        found.append(path)
    return found


def _from_tables(tables: dict[str, Any]) -> Splits:
    splits = image_splits(tables, "image", "fashion_mnist", "L", _SIDE, _CLASSES)
    return hold_out_validation(*splits, _LARGEST_VALIDATION)


@data_source(
    "fashion_mnist",
    "70,000 articles of clothing, 28×28, IDX files",
    find=find_fashion_mnist,
    hub=HubCopy("zalando-datasets/fashion_mnist", _from_tables),
)
def read_fashion_mnist(files: list[Path]) -> Splits:
    """Returns images (N, 1, 28, 28) uint8; the published test images are the test split."""
    if files[0].suffix == ".parquet":
        return _from_tables(read_shards(files, ["image", "label"]))
    return hold_out_validation(_read_pair(*files[:2]), _read_pair(*files[2:]), _LARGEST_VALIDATION)


def _read_pair(images_path: Path, labels_path: Path) -> Split:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (_SIDE, _SIDE) or labels.ndim != 1 or len(images) != len(labels):
        raise DatasetError(
            f"{images_path} does not fit its labels: expected images (N, 28, 28) and N labels, "
            f"got {images.shape} and {labels.shape}"
        )
    return images[:, None], require_labels(labels, images, _CLASSES, labels_path)
