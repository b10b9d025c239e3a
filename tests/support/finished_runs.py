"""Runs that are over, each played once for all tests, which look at them or change a copy."""

import io
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from driver import SETTINGS
from shared_ray import CPUS

from esper_ray.cli.main import run
from esper_ray.file_locks import locked
from esper_ray.orchestration.fleet.cluster import local_ray

_SMALL = ("--set", "data.train_samples=64", "data.validation_samples=50", "host.base_channels=2")
SHORT_RUN = ("--max-epochs", "12", "--episodes-per-iteration", "6", "--ppo.minibatch-size", "32", *_SMALL)
"""Settings of a run of six episodes of 12 epochs in an iteration, each of some 20 milliseconds."""
EPOCHS, POOLED_EPOCHS = 14, 12
"""Epochs of an episode, of most runs and of the pooled one."""
_SHORT = ("--max-epochs", str(EPOCHS), "--ppo.minibatch-size", "32")
_EVALUATED = ("--evaluate-every", "2", "--evaluation-episodes", "3")
_RUNS: dict[str, Sequence[str]] = {
    "trained": (
        *("train", "--runners", "2", "--iterations", "2", "--episodes-per-iteration", "4", *_SHORT, *_EVALUATED),
        *("--wait-only-episodes", "2", *_SMALL),
    ),
    "pooled": (
        *("train", "--runners", "2", "--iterations", "2", "--episodes-per-iteration", "6", *_SHORT, *_EVALUATED),
        *("--wait-only-episodes", "0", "--host-pool", "4", "--skip-forced-waits", "--max-epochs", str(POOLED_EPOCHS)),
        *("--set", "data.train_samples=64", "data.validation_samples=50", "decisions.min_cull_age=11"),
    ),
    "varied": (
        *("train", "--runners", "0", "--iterations", "1", "--episodes-per-iteration", "6", *_SHORT),
        *("--wait-only-episodes", "0", "--host-variety", "--reward", "paired"),
        *("--set", "data.train_samples=64", "data.validation_samples=50", "decisions.min_cull_age=11"),
    ),
    "heuristic": (
        *("heuristic", "--runners", "2", "--episodes", "5", "--keep-hosts", "2", "--max-epochs", str(EPOCHS), *_SMALL),
    ),
    "undisturbed": ("train", *SETTINGS, "--runners", "0"),
}


class FinishedRuns:
    """The run folders, shared by the processes of a test session; a run is played when it is first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        base = factory.getbasetemp()
        self._folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished_runs"
        self._folder.mkdir(exist_ok=True)

    def folder(self, name: str) -> Path:
        """Returns the folder of a run, which nobody may change."""
        folder, printed = self._folder / name, self._folder / f"{name}.txt"
        with locked(self._folder / f"{name}.lock"):
            if not printed.exists():
                with local_ray(num_cpus=CPUS), redirect_stdout(io.StringIO()) as output:
                    assert run([*_RUNS[name], "--out", str(folder)]) == 0
                printed.write_text(output.getvalue())
        return folder

    def printed(self, name: str) -> str:
        """Returns what the command printed."""
        return self.folder(name).with_name(f"{name}.txt").read_text()

    def copy(self, name: str, folder: Path, *left_out: str) -> Path:
        """Copies a run, without the parts named, and returns its folder `folder`."""
        shutil.copytree(self.folder(name), folder, ignore=shutil.ignore_patterns(*left_out))
        return folder
