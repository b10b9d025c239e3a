"""Shared fixtures: real parts, made small."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from driver import SETTINGS, ended
from fast_tasks import make_fast_task
from processes import leftovers, ray_processes

from esper_ray.tasks import TaskSpec


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


@pytest.fixture
def fast_task() -> TaskSpec:
    """A real host on real digits whose epoch takes about two milliseconds."""
    return make_fast_task()


@pytest.fixture
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs in a folder of its own; afterwards no process, folder or shared memory of Ray may be left."""
    monkeypatch.chdir(tmp_path)
    processes, folders = ray_processes(), leftovers()
    yield
    assert not ray.is_initialized()
    give_up = time.monotonic() + 20
    while (ray_processes() - processes or leftovers() - folders) and time.monotonic() < give_up:
        time.sleep(0.2)
    assert ray_processes() <= processes
    assert leftovers() <= folders


@pytest.fixture(scope="session")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of `driver.SETTINGS` to which nothing happened. Copy it before changing anything."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finished = ended("train", "--out", out, *SETTINGS)
    assert (finished.returncode, finished.stderr) == (0, "")
    return out


@pytest.fixture
def killed_run(undisturbed_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, as if it had been killed just before its end."""
    copy = tmp_path / "run"
    shutil.copytree(undisturbed_run, copy)
    (copy / "summary.json").unlink()
    return copy
