"""The language reference that ships with CPython, as text."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from esper_ray.data.source import SPLIT_NAMES, SPLIT_SEED, Documents, data_source, no_folder
from esper_ray.errors import DatasetError

_MODULE = "pydoc_data.topics"
_SHARES = (0.8, 0.1, 0.1)
_PARAGRAPH = "\n\n"


def find_pydoc(data_dir: Path | None) -> list[Path]:
    """Returns the file of the interpreter that holds the topics."""
    no_folder("pydoc")(data_dir)
    spec = find_spec(_MODULE) if find_spec(_MODULE.partition(".")[0]) else None
    if spec is None or spec.origin is None:
        raise DatasetError(f"pydoc not found: this Python has no module {_MODULE}; use one with its standard library")
    return [Path(spec.origin)]


@data_source(
    "pydoc",
    "the language reference that ships with CPython, 0.38 MB of English once repeated paragraphs are dropped",
    find=find_pydoc,
    kind="text",
)
def read_pydoc(files: list[Path]) -> Documents:
    """Returns whole topics, four fifths of the text for training and a tenth for each of the other splits.

    Topics repeat each other: a chapter holds its sections, which are topics as well. So that no split contains text of
    another, each paragraph is kept only where it occurs first.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    documents = []
    for name in np.random.default_rng(SPLIT_SEED).permutation(sorted(topics)):
        parts = (part.strip("\n") for part in topics[name].split(_PARAGRAPH))
        fresh = [part for part in dict.fromkeys(parts) if part not in seen]
        seen.update(fresh)
        documents.append(_PARAGRAPH.join(fresh))
    ends = np.cumsum([len(document) for document in documents])
    bounds = np.searchsorted(ends, np.cumsum(_SHARES)[:-1] * ends[-1])
    pieces = zip((0, *bounds), (*bounds, len(documents)), strict=True)
    return {name: documents[start:end] for name, (start, end) in zip(SPLIT_NAMES, pieces, strict=True)}
