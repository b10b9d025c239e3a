"""TinyStories: text files, parquet files, or the hub."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from esper_ray.data.formats import read_parquet
from esper_ray.data.source import Documents, HubCopy, data_source
from esper_ray.errors import DatasetError

_PAIRS = (
    ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"),
    ("TinyStories-train.txt", "TinyStories-valid.txt"),
)
_SEPARATOR = "<|endoftext|>"
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
    train, validation = (sorted(data_dir.rglob(f"{name}-*.parquet")) for name in ("train", "validation"))
    if train and validation:
        return [*train, *validation]
    raise DatasetError(
        f"tinystories not found: looked in {data_dir} for {' with '.join(_PAIRS[0])}, {' with '.join(_PAIRS[1])}, and "
        f"train-*.parquet with validation-*.parquet; {remedy}"
    )


def _from_tables(tables: dict[str, Any]) -> Documents:
    columns = (tables[name].column("text") for name in ("train", "validation"))
    return _splits(*((str(story) for story in column) for column in columns))


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
        parts = {name: [f for f in files if f.name.startswith(name)] for name in ("train", "validation")}
        return _from_tables({name: read_parquet(part, ["text"]) for name, part in parts.items()})
    return _splits(*(_stories(path) for path in files))


def _splits(train: Iterable[str], held_out: Iterable[str]) -> Documents:
    stories = list(held_out)
    return {"train": train, "validation": stories[::2], "test": stories[1::2]}


def _stories(path: Path) -> Iterator[str]:
    """Yields the stories of a text file, which ends each with a separator."""
    rest = ""
    try:
        with path.open(encoding="utf-8") as file:
            while chunk := file.read(_CHUNK):
                *whole, rest = (rest + chunk).split(_SEPARATOR)
                yield from (story.strip() for story in whole)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is altered: it is not UTF-8 at byte {error.start}; fetch it again") from error
    if rest.strip():
        raise DatasetError(
            f"{path} is truncated or altered: expected {_SEPARATOR} after the last story; fetch it again, or add it if "
            "the file is whole"
        )
