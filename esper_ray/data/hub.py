"""Fetching a data set from the Hugging Face hub. The library is loaded only when somebody asks for it."""

from typing import Any

from esper_ray.data.source import DataSource
from esper_ray.errors import DatasetError
from esper_ray.optional import needs, optional


def read_hub(source: DataSource) -> Any:
    """Fetches a data set, or takes it from the library's own cache; returns it in the form of `source.read`.

    Raises:
        DatasetError: the library is not installed, the hub does not have the data set or cannot be reached.
    """
    assert source.hub is not None, "the caller has looked"
    library = optional("datasets", "load_dataset")
    if library is None:
        raise DatasetError(f"--hub {needs('datasets', 'datasets tokenizers (the extra [hub])')}")
    try:
        found = library[0](source.hub.repository)
        tables = {str(name): split.with_format("arrow")[:] for name, split in found.items()}
    except Exception as error:  # network, hub and cache each raise their own
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{source.name} cannot be fetched from the hub ({source.hub.repository}): {type(error).__name__}: "
            f"{reason}; see to the network, or pass a folder with --data-dir"
        ) from error
    return source.hub.read(tables)
