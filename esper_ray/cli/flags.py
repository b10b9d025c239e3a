"""Preparation of the flags before tyro parses them: unknown names, lists, and the file that `--config` names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_origin

import tyro

from esper_ray.errors import EsperError, unknown_name

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Fields = Mapping[str, "FieldInfo"]
"""Flag, or name of a positional argument → its field of the settings."""


def fields_of(model: "type[BaseModel]", prefix: str = "--") -> "dict[str, FieldInfo]":
    """Returns the flags and positional arguments that stand for the settings of a command."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if hasattr(inner, "model_fields"):
            fields |= fields_of(inner, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            fields[name if _is_positional(field) else prefix + name.replace("_", "-")] = field
    return fields


def require_known(arguments: Sequence[str], fields: Fields) -> None:
    """Refuses an unknown flag with the nearest known one, which tyro spreads over several lines.

    Raises:
        EsperError: a flag is unknown.
    """
    known = {"--help", *(name for name in fields if name.startswith("--"))}
    for argument in arguments[1:]:
        flag = _flag(argument)
        if flag.startswith("--") and flag not in known:
            raise EsperError(unknown_name("flag", flag, known))


def gathered(arguments: Sequence[str], fields: Fields) -> list[str]:
    """Puts the values of each flag that takes several behind one such flag at the end.

    Such a flag takes all values up to the next flag, with spaces or commas between them, and may be repeated. Only
    --set is not split at commas, since its values may hold some. The FOLDER, FILE or NAME of a command may stand last.

    Raises:
        EsperError: one has no value.
    """
    segments: list[list[str]] = [[]]
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            segments.append([])
        segments[-1].append(argument)
    last = segments[-1]
    is_missing = any(map(_is_positional, fields.values())) and not any(_has_positional(s, fields) for s in segments)
    spare = [last.pop()] if is_missing and len(last) > 2 and _is_list(last[0], fields) else []
    rest: list[str] = []
    values: dict[str, list[str]] = {}
    for segment in segments:
        first, following = segment[0], segment[1:]
        if not _is_list(first, fields):
            rest += segment
            continue
        flag, equals, value = _flag(first), "=" in first, first.partition("=")[2]
        words = [value] if equals else following
        rest += following if equals else []
        if not words:
            raise EsperError(f"{flag} expects a value")
        values.setdefault(flag, []).extend(part for word in words for part in _parts(flag, word))
    return [*rest, *spare, *(part for flag, taken in values.items() for part in (flag, *taken))]


def without_config(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Returns the arguments without `--config FILE`, and the file; None if there is none."""
    rest: list[str] = []
    file = None
    words = iter(arguments)
    for word in words:
        if word == "--config" and (following := next(words, None)) is not None:
            file = Path(following)
        elif word.startswith("--config="):
            file = Path(word.removeprefix("--config="))
        else:
            rest.append(word)
    return rest, file


def _flag(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")


def _is_positional(field: "FieldInfo") -> bool:
    return tyro.conf.Positional in field.metadata


def _is_list(argument: str, fields: Fields) -> bool:
    field = fields.get(_flag(argument)) if argument.startswith("--") else None
    return field is not None and get_origin(field.annotation) is tuple


def _has_positional(segment: Sequence[str], fields: Fields) -> bool:
    """Returns whether words after a flag, or after the command, are positional arguments and not its values."""
    if _is_list(segment[0], fields) and "=" not in segment[0]:
        return False
    field = fields.get(_flag(segment[0]))
    takes_one = field is not None and "=" not in segment[0] and field.annotation is not bool
    return len(segment) > 1 + takes_one


def _parts(flag: str, word: str) -> list[str]:
    return [word] if flag == "--set" else [part for part in word.split(",") if part]
