"""Commands: a small training run as a process of its own, to which something happens; and what must be refused."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper_ray.cli.main import run

ITERATIONS = 30
SETTINGS = [
    *("--runners", "1", "--iterations", str(ITERATIONS), "--episodes-per-iteration", "2", "--wait-only-episodes", "4"),
    *("--checkpoint-every", "10", "--max-epochs", "12"),
    *("--set", "data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"),
]
"""A run of real hosts on real digits; an iteration takes about a third of a second."""


def command(*arguments: object) -> list[str]:
    """The command line, as a process of its own."""
    return [sys.executable, "-m", "esper_ray.cli.main", *map(str, arguments)]


def ended(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def begun(*arguments: object) -> subprocess.Popen[bytes]:
    """Starts the command line; whatever it prints is dropped."""
    return subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command, in this process, that must be refused in one line; returns that line."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("esper-ray: ") and error.count("\n") == 1
    return error


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 200) -> None:
    """Waits for something that a process does."""
    give_up = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "it ended before that"
        assert time.monotonic() < give_up
        time.sleep(0.002)


def whole_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of a run; one that was being written when its process died is none."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def results(run: Path) -> dict[str, Any]:
    """Everything that came out of a run, without wall time."""
    episodes = [{**row, "seconds": None} for row in whole_rows(run / "episodes.jsonl")]
    metrics = whole_rows(run / "metrics.jsonl")
    return {
        "episodes": [row.pop("episode") for row in episodes],
        "rows": episodes,
        "iterations": [row["iteration"] for row in metrics],
        "learner": [row["learner"] for row in metrics],
        "hosts": {path.name: path.read_bytes() for path in (run / "hosts").iterdir()},
        "waited": json.loads((run / "summary.json").read_text())["wait_only"],
    }


def half_written(folder: Path) -> list[str]:
    """Files and folders that were being written, or removed."""
    return [path.name for path in folder.rglob("*") if ".writing" in path.name or ".removing" in path.name]
