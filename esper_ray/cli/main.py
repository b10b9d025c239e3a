"""Entry point of `esper-ray`: reads the flags, runs the command, turns errors into one line and exit code 2."""

import io
import itertools
import operator
import re
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from esper_ray.cli.commands import COMMANDS
from esper_ray.errors import EpisodeFailedError, EsperError, unknown_name

if TYPE_CHECKING:
    from pydantic import BaseModel

    from esper_ray.orchestration.config import TrainConfig

_USAGE_ERROR = 2
_GATHERED = ("--plugin", "--set", "--logger")
_RULE = re.compile(r"[ │╭╮╰╯─-]*")


@dataclass
class _Unset:
    """Stands for the settings of a command that is not asked for: to build them all takes longer than to answer."""


def main() -> None:
    """Runs the command line and exits: 0 done, 1 the run failed, 2 the user can mend it, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only still gets its output
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        config = _parse(arguments)
        return COMMANDS[arguments[0]].run(config)
    except EpisodeFailedError as error:
        print(f"esper-ray: {error}", file=sys.stderr)
        return 1
    except EsperError as error:
        print(f"esper-ray: {' '.join(str(error).split())}", file=sys.stderr)  # torch's own messages run over lines
        return _USAGE_ERROR
    except PermissionError as error:
        print(f"esper-ray: no permission for {error.filename}: ask its owner for it, or name another", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        print("esper-ray: interrupted", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str]) -> "BaseModel":
    """Returns the command's configuration; `--help` prints and exits.

    Raises:
        EsperError: a flag or command is unknown (the nearest is named), or a value is not valid.
    """
    _require_known(arguments)
    errors = io.StringIO()
    commands: list[Any] = []
    for name, command in COMMANDS.items():
        settings: Any = command.model() if name in arguments[:1] else _Unset
        default = _config_of_file(arguments, settings) if "config" in getattr(settings, "model_fields", ()) else None
        given: dict[str, Any] = {} if default is None else {"default": default}
        commands.append(Annotated[settings, tyro.conf.subcommand(name, description=command.summary, **given)])
    choice: Any = Union[tuple(commands)]  # noqa: UP007
    try:
        with redirect_stderr(errors):
            parsed: BaseModel = tyro.cli(
                choice,
                prog="esper-ray",
                description="Parallel episodes for networks that grow while they train.",
                args=_gathered(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
            return parsed
    except SystemExit as exit_request:
        if not exit_request.code:
            raise
        raise EsperError(_one_line(errors.getvalue())) from None


def _gathered(arguments: Sequence[str]) -> list[str]:
    """Puts the values of each flag that takes several behind one such flag at the end.

    So a flag may be repeated, and none swallows what is not its own: --plugin takes one value each time, --set all
    KEY=VALUE that follow.

    Raises:
        EsperError: one has no value.
    """
    rest: list[str] = []
    values: dict[str, list[str]] = {}
    queue = deque(part for argument in arguments for part in _split_flag(argument))
    while queue:
        argument = queue.popleft()
        if argument not in _GATHERED:
            rest.append(argument)
            continue
        if not queue or queue[0].startswith("--"):
            raise EsperError(f"{argument} expects a value")
        taken = values.setdefault(argument, [])
        taken.append(queue.popleft())
        while argument == "--set" and queue and "=" in queue[0] and not queue[0].startswith("--"):
            taken.append(queue.popleft())
    return rest + [part for flag, taken in values.items() for part in (flag, *taken)]


def _split_flag(argument: str) -> list[str]:
    flag, equals, value = argument.partition("=")
    return [flag, value] if flag in _GATHERED and equals else [argument]


def _config_of_file(arguments: Sequence[str], model: "type[TrainConfig]") -> "TrainConfig":
    """Returns what `--config FILE` says, which the flags then override; without it the defaults."""
    from esper_ray.orchestration.config import load_config

    joined = [part for argument in arguments for part in argument.split("=", 1)]
    if "--config" not in joined[:-1]:
        return model()
    return load_config(Path(joined[joined.index("--config") + 1]), model)


def _require_known(arguments: Sequence[str]) -> None:
    """Refuses an unknown command or flag with the nearest known one, which tyro spreads over several lines."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return
    command = arguments[0]
    if command not in COMMANDS:
        raise EsperError(unknown_name("command", command, COMMANDS))
    known = {"--help", *_flags(COMMANDS[command].model())}
    for argument in arguments[1:]:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise EsperError(unknown_name("flag", flag, known))


def _flags(model: "type[BaseModel]", prefix: str = "--") -> list[str]:
    flags: list[str] = []
    for name, field in model.model_fields.items():
        flag = prefix + name.replace("_", "-")
        inner = field.annotation
        flags += _flags(inner, f"{flag}.") if hasattr(inner, "model_fields") else [flag]  # type: ignore[arg-type]
    return flags


def _one_line(box: str) -> str:
    """Returns what tyro's message says in one line, naming the flag, what was expected and what was given.

    The message is a title, a paragraph and a rule; in a box where the terminal can show one.
    """
    _title, *lines = ["" if _RULE.fullmatch(line) else line.strip(" │") for line in box.splitlines()]
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines)))
    contradiction = re.search(r"validation error for \w+ Value error, (?P<message>.*?) \[type=value_error", text)
    if contradiction is not None:
        return contradiction["message"]
    constraint = re.search(
        r"Error parsing (?P<model>\S+): .*? validation errors? for \w+ (?P<name>[\w.]+) "
        r"(?P<expected>.*?) \[type=\w+, input_value=(?P<given>.*?), input_type=",
        text,
    )
    if constraint is None:
        return text
    _, _, group = constraint["model"].partition(".")
    flag = ".".join(filter(None, (group, constraint["name"]))).replace("_", "-")
    return f"--{flag}: {constraint['expected'].lower()}, got {constraint['given']}"


if __name__ == "__main__":
    main()
