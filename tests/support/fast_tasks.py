"""Real tasks whose epochs take milliseconds, and where real data lies."""

from pathlib import Path

from esper_ray.tasks import TaskSpec, get_task_spec

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` installs its files."""


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
