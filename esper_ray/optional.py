"""Libraries that need not be installed."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def optional(library: str, *names: str) -> list[Any] | None:
    """Returns these parts of a library; None if it is not installed, or does not import.

    A folder that happens to have its name, such as the one that wandb writes into, is no library.

    >>> optional("json", "dumps", "nothing") is None
    True
    """
    try:
        module = import_module(library)
        return [getattr(module, name) for name in names]
    except (ImportError, AttributeError):
        return None


def needs(library: str, install: str) -> str:
    """Returns the end of a message about a library that `optional` did not find: what to install, or what is broken.

    Args:
        install: its distributions, and the extra that brings them, as in "datasets (the extra [hub])".

    >>> needs("nowhere_to_be_found", "it")
    'needs the library nowhere_to_be_found: pip install it'
    """
    spec = find_spec(library)
    if spec is not None and spec.origin is not None:  # not a folder of that name
        try:
            import_module(library)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return f"needs the library {library}, which is installed but does not import: {reason}"
    return f"needs the library {library}: pip install {install}"
