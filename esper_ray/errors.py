"""Errors that name what a user did and how to mend it.

Every message is one line and reads "what was found, what was expected, what to do". The command line prints it and
exits with 2; a program can catch `EsperError`.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

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


class PlacementError(EsperError, ValueError):
    """The cluster cannot place the actors that were asked for."""


class RunFolderError(EsperError, ValueError):
    """The run folder cannot be written, or already holds a run."""


class CheckpointError(EsperError, ValueError):
    """A checkpoint is damaged, or was made for another task, other actions or another version."""

    @classmethod
    def damaged(cls, folder: Path, reason: object) -> "CheckpointError":
        """Returns the error about a checkpoint that is not as it was written; the reason comes into one line."""
        return cls(f"the checkpoint {folder} is damaged: {' '.join(str(reason).split())}; take another one")


class EpisodeFailedError(EsperError, RuntimeError):
    """An episode raised inside its actor, or its actor was lost too often."""


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


def setting_error(error: ValidationError) -> str:
    """Returns the first thing that is wrong with some settings: which one, its value, and what was expected."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # one of ours, which says everything
        return str(first["ctx"]["error"])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"setting {where} of {error.title} is missing"
    return f"setting {where}={first['input']!r} of {error.title}: {first['msg']}"
