"""How many threads an actor has is decided by its CPUs, not by what the surroundings say."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from driver import command

pytestmark = pytest.mark.slow


def ended(threads: str | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=280, check=False, env=environment
    )


def test_a_run_with_other_thread_variables_is_replayed_and_exported_to_the_last_digit(tmp_path: Path) -> None:
    """A host of this size comes out otherwise with two threads: the gradient norm differs in its seventh digit."""
    run = tmp_path / "run"
    length = ("--iterations", 1, "--episodes-per-iteration", 1, "--max-epochs", 20, "--wait-only-episodes", 0)
    trained = ended("2", "train", *length, "--runners", 1, "--seed", 3, "--keep-hosts", 0, "--out", run)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((run / "config.json").read_text())["threads_per_runner"] == 1
    replayed = ended(None, "replay", run, "--episode", 1)
    assert replayed.returncode == 0, replayed.stdout
    assert "all 20 epochs as recorded, to the last digit" in replayed.stdout
    exported = ended("3", "export", run, "--episode", 1)
    assert exported.returncode == 0, exported.stderr
