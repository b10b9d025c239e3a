"""Shared fixtures: real parts, made small."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
