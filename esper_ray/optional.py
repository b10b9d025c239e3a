"""Libraries that need not be installed."""

from importlib import import_module
from typing import Any


def optional(library: str, *names: str) -> list[Any] | None:
    """Returns these parts of a library; None if it is not installed, or only half of it.

    A folder that happens to have its name, such as the one that wandb writes into, is no library.

    >>> optional("json", "dumps", "nothing") is None
    True
    """
    try:
        module = import_module(library)
        return [getattr(module, name) for name in names]
    except (ImportError, AttributeError):
        return None
