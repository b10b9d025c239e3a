"""Exceptions whose messages name the user's mistake and its remedy.

Every message is one line and reads "what was found, what was expected, what to do". The command line prints it and
exits with 2; a program can catch `EsperError`.
"""

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line's help does without it
    from pydantic import ValidationError


class EsperError(Exception):
    """Base class of every error that esper_ray raises on purpose."""


class ConfigurationError(EsperError, ValueError):
    """A setting has an unknown name, a value out of range, or contradicts another setting."""


class IllegalActionError(EsperError, ValueError):
    """An action was taken that the action mask forbids."""


class LifecycleError(EsperError, ValueError):
    """A seed was asked for something that its stage, its blueprint or its slot does not allow."""


class DatasetError(EsperError, ValueError):
    """A data set is missing, truncated or altered."""

    @classmethod
    def altered(cls, file: Path, reason: object) -> "DatasetError":
        """Returns the error about a file that is not as it was published, or that this user may not read."""
        return cls(no_permission(file) or f"{file} is truncated or altered: {reason}; fetch it again")


class PlacementError(EsperError, ValueError):
    """The cluster cannot place the actors that were asked for."""


class RunFolderError(EsperError, ValueError):
    """The run folder cannot be written, or already holds a run."""


class CheckpointError(EsperError, ValueError):
    """A checkpoint is damaged, or was made for another task, other actions or another version."""

    @classmethod
    def damaged(cls, folder: Path, reason: object) -> "CheckpointError":
        """Returns the error about a checkpoint that is not as it was written, or that this user may not read."""
        damage = f"the checkpoint {folder} is damaged: {' '.join(str(reason).split())}; take another one"
        return cls(no_permission(folder, within=True) or damage)


class EpisodeFailedError(EsperError, RuntimeError):
    """An episode raised inside its actor, or its actor was lost too often."""


def no_permission(path: Path, within: bool = False) -> str | None:
    """Returns the message that this user may not read a file or a folder; None if they may, or if there is none.

    Args:
        within: ask for everything that lies in the folder, too.
    """
    for parent in reversed(path.absolute().parents):
        if parent.is_dir() and not os.access(parent, os.X_OK):
            return _not_permitted(parent)
    for place in [path, *(path.rglob("*") if within else ())]:
        needed = os.R_OK | os.X_OK if place.is_dir() else os.R_OK
        if os.access(place, os.F_OK) and not os.access(place, needed):
            return _not_permitted(place)
    return None


def _not_permitted(path: Path) -> str:
    return f"no permission to read {path}: ask its owner for it, or name another one"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that is not among `known`: the nearest one, or all of them if none is near.

    >>> unknown_name("task", "digit", ["digits", "cifar10"])
    "unknown task 'digit': did you mean 'digits'?"
    >>> unknown_name("task", "chess", ["digits", "cifar10"])
    "unknown task 'chess': expected one of cifar10, digits"
    """
    names = sorted(known)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    remedy = f"did you mean '{nearest[0]}'?" if nearest else f"expected one of {', '.join(names)}"
    return f"unknown {kind} '{name}': {remedy}"


def differing_names(then: Sequence[str], now: Sequence[str]) -> str:
    """Returns how two lists of names differ.

    >>> differing_names(["WAIT", "CULL"], ["WAIT", "FOSSILIZE"])
    'it has CULL; here there is FOSSILIZE'
    """
    gone, new = [name for name in then if name not in now], [name for name in now if name not in then]
    parts = [f"it has {', '.join(gone)}"] * bool(gone) + [f"here there is {', '.join(new)}"] * bool(new)
    return "; ".join(parts) or "they have another order"


def setting_error(error: "ValidationError") -> str:
    """Returns a message about the first invalid setting: its name, its value, and the expected values."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # one of ours, which says everything
        return str(first["ctx"]["error"])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"setting {where} of {error.title} is missing"
    return f"setting {where}={first['input']!r} of {error.title}: {first['msg']}"
