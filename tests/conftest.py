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

from esper_ray.tasks import TaskSpec, get_task_spec


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One torch thread, as in an actor; a data cache that starts empty; `fakes` importable inside the actors."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPER_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture
def fast_task() -> TaskSpec:
    """A real host on real digits whose epoch takes about two milliseconds."""
    return make_fast_task()


def make_fast_task(**overrides: object) -> TaskSpec:
    """Returns `digits` cut down to a host of 2 channels and one small batch an epoch."""
    small = {"data.train_samples": 64, "data.validation_samples": 50, "host.base_channels": 2, "max_epochs": 12}
    return get_task_spec("digits", {**small, **{key.replace("__", "."): value for key, value in overrides.items()}})


def make_fast_text_task(**overrides: object) -> TaskSpec:
    """Returns `pydoc` cut down to a host of width 16 and a few short sequences an epoch."""
    small = {
        **{"data.train_samples": 32, "data.validation_samples": 32, "data.sequence_length": 16, "data.batch_size": 16},
        **{"host.layers": 2, "host.heads": 2, "host.width": 16, "host.context": 16, "max_epochs": 12},
    }
    return get_task_spec("pydoc", {**small, **{key.replace("__", "."): value for key, value in overrides.items()}})


def ray_processes() -> set[str]:
    """Process ids of every Ray daemon and worker on this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"raylet" in command or b"gcs_server" in command or command.startswith(b"ray::"):
                found.add(entry.name)
    return found


def leftovers() -> set[str]:
    """Folders of Ray sessions, shared memory, and lock files: Ray's own, those of the cache, those beside a run."""
    temporary = Path(tempfile.gettempdir())
    shared_memory = Path("/dev/shm")
    found = [*temporary.glob("esper-*"), *temporary.glob("_ray_lockfiles/*")]
    found += [path for folder in (Path(os.environ["ESPER_RAY_CACHE"]), Path.cwd()) for path in folder.rglob("*.lock")]
    found += shared_memory.iterdir() if shared_memory.is_dir() else ()
    return {str(path) for path in found}


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


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
