"""Entry point of `esper-ray`: reads the flags, runs the command, turns errors into one line and exit code 2."""

import io
import itertools
import operator
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from esper_ray import __version__
from esper_ray.cli.commands import COMMANDS, Command
from esper_ray.cli.flags import fields_of, gathered, require_known, without_config
from esper_ray.cli.output import exit_code_of_lost_output, make_output_lasting
from esper_ray.errors import EpisodeFailedError, EsperError, unknown_name

if TYPE_CHECKING:
    from pydantic import BaseModel

_USAGE_ERROR = 2
_SHELLS = ("bash", "zsh")
_TOP_FLAGS = ("--help", "--version", "--print-completion")
_DESCRIPTION = (
    "Parallel episodes for networks that grow while they train. --version prints the version, --print-completion bash "
    "or zsh a script with which that shell completes commands and flags."
)
_RULE = re.compile(r"[ │╭╮╰╯─-]*")


@dataclass
class _Unset:
    """Placeholder for the settings of a command that was not called: to build them all takes longer than to answer."""


def main() -> None:
    """Runs the command line and exits: 0 done, 1 the run failed, 2 the user can mend it, 130 interrupted.

    Output that cannot be written ends nothing; a command that is there for its output alone then exits above 0.
    """
    make_output_lasting()
    arguments = sys.argv[1:]
    try:
        code = run(arguments)
    except SystemExit as request:  # --help, or Ray's handler of SIGTERM
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
    sys.exit(code or (exit_code_of_lost_output() if _only_prints(arguments) else 0))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # libraries warn about each other
            if arguments[:1] == ["--version"]:
                print(f"esper-ray {__version__}")
                return 0
            if arguments[:1] == ["--print-completion"]:
                return _print_completion(arguments[1:])
            config = _parse(arguments)
            return COMMANDS[arguments[0]].run(config)
    except EpisodeFailedError as error:
        print(f"esper-ray: {error}", file=sys.stderr)
        return 1
    except EsperError as error:
        print(f"esper-ray: {' '.join(str(error).split())}", file=sys.stderr)  # torch's own messages run over lines
        return _USAGE_ERROR
    except PermissionError as error:
        refused = error.filename or error
        print(f"esper-ray: no permission for {refused}: ask its owner for it, or name another", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        print("esper-ray: interrupted", file=sys.stderr)
        return 130


def _only_prints(arguments: Sequence[str]) -> bool:
    command = COMMANDS.get(arguments[0]) if arguments else None
    return command is None or command.only_prints or "--help" in arguments or "-h" in arguments


def _print_completion(shell: Sequence[str]) -> int:
    if len(shell) != 1 or shell[0] not in _SHELLS:
        raise EsperError(f"--print-completion expects {' or '.join(_SHELLS)}, got '{' '.join(shell)}'")
    everything = [_subcommand(name, command.model()) for name, command in COMMANDS.items()]
    _with_tyro(everything, ["--tyro-write-completion", shell[0], "-"])
    return 0


def _parse(arguments: Sequence[str]) -> "BaseModel":
    """Returns the command's configuration; `--help` prints and exits.

    Raises:
        EsperError: a flag or command is unknown (the nearest is named), or a value is not valid.
    """
    rest, config = list(arguments), None
    if arguments and arguments[0] not in ("-h", "--help"):
        fields = fields_of(_command(arguments[0]).model())
        require_known(arguments, fields)
        rest, config = without_config(gathered(arguments, fields))
    commands: list[Any] = []
    for name, command in COMMANDS.items():
        settings: Any = command.model() if name in arguments[:1] else _Unset
        commands.append(_subcommand(name, settings, config))
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            parsed: BaseModel = _with_tyro(commands, rest)
            return parsed
    except SystemExit as exit_request:
        if not exit_request.code:
            raise
        raise EsperError(_one_line(errors.getvalue())) from None


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    kind, known = ("flag", _TOP_FLAGS) if name.startswith("--") else ("command", tuple(COMMANDS))
    raise EsperError(unknown_name(kind, name, known))


def _subcommand(name: str, settings: Any, config: Path | None = None) -> Any:
    """Returns a command as an annotated type for tyro; its defaults come from the file that `--config` names."""
    default: dict[str, Any] = {}
    if "config" in getattr(settings, "model_fields", ()):
        from esper_ray.orchestration.config_files import load_config

        default = {"default": settings() if config is None else load_config(config, settings)}
    return Annotated[settings, tyro.conf.subcommand(name, description=COMMANDS[name].summary, **default)]


def _with_tyro(commands: Sequence[Any], arguments: Sequence[str]) -> Any:
    choice: Any = Union[tuple(commands)]  # noqa: UP007
    return tyro.cli(
        choice,
        prog="esper-ray",
        description=_DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _one_line(box: str) -> str:
    """Condenses tyro's error message to one line with the flag, the expected and the given value.

    The message is a title, a paragraph and a rule; in a box where the terminal can show one.
    """
    _title, *lines = ["" if _RULE.fullmatch(line) else line.strip(" │") for line in box.splitlines()]
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines)))
    contradiction = re.search(
        r"validation error for \w+ (?:[\w.]+ )?Value error, (?P<message>.*?) \[type=value_error", text
    )
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
