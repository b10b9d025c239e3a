"""Output is never needed: whatever happens to it, a command goes on to its end."""

import subprocess
import sys
from pathlib import Path

import pytest

_WORK = """
import sys
from esper_ray.cli.output import exit_code_of_lost_output, make_output_lasting
make_output_lasting()
with open(sys.argv[1], "w") as result:
    for i in range(5000):
        print("line", i, flush=True)
        print("error", i, file=sys.stderr)
    result.write(f"whole {result.fileno() > 2}")
sys.exit(exit_code_of_lost_output())
"""


def ended(redirection: str, result: Path) -> subprocess.CompletedProcess[str]:
    """A command that writes a file and says much, with its output redirected as a shell does."""
    command = f'exec 9>&2; "$0" -c "$1" "$2" {redirection}; echo rc=$? >&9'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, _WORK, str(result)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("2>/dev/null >/dev/null", 0),
        ("2>/dev/null >&-", 0),
        ("2>&- >/dev/null", 0),
        ("2>/dev/full >/dev/null", 0),
        ("<&- >&- 2>&-", 0),
        ("2>/dev/null >/dev/full", 1),
        ("2>/dev/null > >(head -1 >/dev/null)", 141),
    ],
)
def test_a_command_ends_its_work_whatever_happens_to_its_output(redirection: str, code: int, tmp_path: Path) -> None:
    done = ended(redirection, tmp_path / "result")
    assert (tmp_path / "result").read_text() == "whole True", "no file of its own gets the number of an output"
    assert done.stderr == f"rc={code}\n"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    done = ended("2>&1 >/dev/full | tail -1 >&9", tmp_path / "result")
    assert "esper-ray: the output could not be written: No space left on device\n" in done.stderr


def test_commands_whose_output_is_all_that_comes_of_them_say_so_with_their_exit_code() -> None:
    for arguments, code in (("--version", 1), ("train --help", 1), ("train --task chess", 2)):
        command = [sys.executable, "-m", "esper_ray", *arguments.split()]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, check=False)
        assert done.returncode == code, arguments
