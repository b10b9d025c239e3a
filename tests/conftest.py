"""Shared fixtures: real parts, made small."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import shared_ray
import torch
from fast_tasks import make_fast_task
from finished_runs import FinishedRuns
from plugin_source import registries_as_before
from processes import leftovers, ray_processes

from esper_ray.tasks import TaskSpec


def pytest_configure() -> None:
    """Lets Ctrl-C through: what a shell starts in the background inherits that the signal is ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray, then those that need another one or none, so that it seldom starts twice; then units."""
    items.sort(key=lambda item: (item.path.parent.name == "unit", "no_ray" in getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One torch thread, as in an actor; temporary files and a data cache of its own; tests importable in actors."""
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    with (
        tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as own,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tempfile, "tempdir", own)
        patch.setenv("TMPDIR", own)
        patch.setenv("ESPER_RAY_CACHE", str(cache))
        for folder in ("support", "unit", "integration", "nightly"):
            patch.setenv("PYTHONPATH", str(Path(__file__).parent / folder), prepend=os.pathsep)
        yield
        shared_ray.stop()


@pytest.fixture(autouse=True)
def _registries_as_before(tmp_path: Path) -> Iterator[None]:
    """What a test registers, no other test sees."""
    with registries_as_before(tmp_path):
        yield


@pytest.fixture
def fast_task() -> TaskSpec:
    """A real host on real digits whose epoch takes about two milliseconds."""
    return make_fast_task()


@pytest.fixture
def session_ray() -> None:
    """The Ray of four CPUs that all tests of this process share; commands that are run in this process use it."""
    shared_ray.start()


@pytest.fixture
def no_ray() -> None:
    """No Ray runs in this process at the start."""
    shared_ray.stop()


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_left_behind(no_ray: None, own_folder: Path) -> Iterator[None]:
    """Runs in a folder of its own; afterwards no process, folder or shared memory of Ray may be left."""
    processes, folders = ray_processes(), leftovers()
    yield
    assert not ray.is_initialized()
    give_up = time.monotonic() + 20
    while (ray_processes() - processes or leftovers() - folders) and time.monotonic() < give_up:
        time.sleep(0.2)
    assert ray_processes() <= processes
    assert leftovers() <= folders


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> FinishedRuns:
    """Runs that are over. Copy one before changing anything."""
    return FinishedRuns(tmp_path_factory)


@pytest.fixture(scope="session")
def undisturbed_run(finished_runs: FinishedRuns) -> Path:
    """The folder of the run of `driver.SETTINGS`, played without an actor, to which nothing happened."""
    return finished_runs.folder("undisturbed")


@pytest.fixture
def killed_run(undisturbed_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, as if it had been killed just before its end."""
    copy = tmp_path / "run"
    shutil.copytree(undisturbed_run, copy)
    (copy / "summary.json").unlink()
    return copy
