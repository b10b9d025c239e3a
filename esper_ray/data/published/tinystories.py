"""TinyStories: text files, parquet files, or the hub."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from esper_ray.data.formats import find_shards, read_shards
from esper_ray.data.source import Documents, HubCopy, data_source
from esper_ray.errors import DatasetError

_PAIRS = (
    ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
    ("TinyStories-train.txt", "TinyStories-valid.txt"),
)
_SEPARATOR = b"<|endoftext|>"
_CHUNK = 1 << 22


def find_tinystories(data_dir: Path | None) -> list[Path]:
    """Returns the two text files, or the parquet files of both splits."""
    remedy = (
        f"put {_PAIRS[0][0]} and {_PAIRS[0][1]}, or the hub's parquet files, in a folder and pass it with --data-dir, "
        "or fetch it with --hub"
    )
    if data_dir is None:
        raise DatasetError(f"tinystories not found: no machine has it ready; {remedy}")
    for pair in _PAIRS:
        if all((data_dir / name).is_file() for name in pair):
            return [data_dir / name for name in pair]
    if shards := find_shards(data_dir, ("train", "validation")):
        return shards
    raise DatasetError(
        f"tinystories not found: looked in {data_dir} for {' with '.join(_PAIRS[0])}, {' with '.join(_PAIRS[1])}, and "
        f"train-*.parquet with validation-*.parquet; {remedy}"
    )


def _from_tables(tables: dict[str, Any]) -> Documents:
    return _splits(*(_rows(tables[name].column("text"), name) for name in ("train", "validation")))


def _rows(column: Any, split: str) -> Iterator[str]:
    if column.null_count:
        raise DatasetError(f"the {split} split of tinystories has rows without a story; fetch it again")
    for chunk in column.chunks:
        yield from chunk.to_pylist()


@data_source(
    "tinystories",
    "two million short stories for small children, about 2 GB",
    find=find_tinystories,
    kind="text",
    hub=HubCopy("roneneldan/TinyStories", _from_tables),
)
def read_tinystories(files: list[Path]) -> Documents:
    """Returns the stories; the published validation stories are shared out between validation and test."""
    if files[0].suffix == ".parquet":
        return _from_tables(read_shards(files, ["text"]))
    return _splits(*(_stories(path) for path in files))


def _splits(train: Iterable[str], held_out: Iterable[str]) -> Documents:
    stories = list(held_out)
    return {"train": train, "validation": stories[::2], "test": stories[1::2]}


def _stories(path: Path) -> Iterator[str]:
    """Yields the stories of a text file, which ends each with a separator."""
    rest, position = b"", 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(_SEPARATOR)
            if len(rest) > _CHUNK:
                raise DatasetError(f"{path} is no file of TinyStories: no {_SEPARATOR.decode()} in {_CHUNK:,} bytes")
            for story in whole:
                yield _decoded(story, path, position).strip()
                position += len(story) + len(_SEPARATOR)
    if rest.strip():
        raise DatasetError(
            f"{path} is truncated or altered: expected {_SEPARATOR.decode()} after the last story; fetch it again, or "
            "add it if the file is whole"
        )


def _decoded(story: bytes, path: Path, position: int) -> str:
    try:
        return story.decode()
    except UnicodeDecodeError as error:
        place = position + error.start
        raise DatasetError(f"{path} is altered: it is not UTF-8 at byte {place:,}; fetch it again") from error
