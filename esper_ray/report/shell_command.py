"""The command that made a run, ready to be pasted into a shell again."""

import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from esper_ray.orchestration.config import HeuristicConfig, TrainConfig, TuneConfig

_MODELS: dict[str, type[BaseModel]] = {"train": TrainConfig, "heuristic": HeuristicConfig, "tune": TuneConfig}
_POSITIONAL = {"tune": "file"}
_OF_A_FILE = "config"
"""Left out: the file's values are recorded one by one, so it need not be there any more."""


def shell_command(command: Mapping[str, Any]) -> str:
    """Returns the command line recorded in config.json or experiment.json, without default values."""
    name = str(command.get("name", "train"))
    model = _MODELS.get(name)
    words = ["esper-ray", name]
    if name in _POSITIONAL:
        words.append(str(command.get(_POSITIONAL[name], "FILE")))
    if model is not None:
        words += _flags(command, model, "--", _POSITIONAL.get(name))
    return shlex.join(words)


def in_lines(command: str, width: int = 100) -> str:
    """Returns a command over several lines, each flag on its own, if it is longer than `width`; a shell reads the same.

    >>> print(in_lines("esper-ray train --seed 3 --set 'a=[1, 2]'", 20))
    esper-ray train \\
      --seed 3 \\
      --set 'a=[1, 2]'
    """
    if len(command) <= width:
        return command
    lines: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def _flags(values: Mapping[str, Any], model: type[BaseModel], prefix: str, positional: str | None = None) -> list[str]:
    words: list[str] = []
    for name, field in model.model_fields.items():
        if name not in values or name in (positional, _OF_A_FILE):
            continue
        value, default = values[name], field.get_default(call_default_factory=True)
        flag = prefix + name.replace("_", "-")
        if isinstance(default, BaseModel) and isinstance(value, Mapping):
            words += _flags(value, type(default), f"{flag}.")
        elif default is PydanticUndefined or _plain(value) != _plain(default):
            words += _words(name, flag, value)
    return words


def _words(name: str, flag: str, value: Any) -> list[str]:
    if value is True:
        return [flag]
    if value is None or value is False:
        return []
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)] if value else []
    return [flag, str(value)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
