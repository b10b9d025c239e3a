"""A plugin with work that is always there: images of noise as large as CIFAR-10, for measuring speed and nothing else.

What a host learns from them means nothing, so no other program uses them.
"""

from pathlib import Path

import numpy as np

from esper_ray.data import data_source
from esper_ray.tasks import get_task_spec, register_task

TRAIN, VALIDATION, TEST = 50_000, 10_000, 100


def _find(data_dir: Path | None) -> list[Path]:
    return [Path(__file__)]


@data_source("made_up_images", "70,000 images of noise, 32×32 in three colours, for measuring speed", find=_find)
def _read(files: list[Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return {
        split: (generator.integers(0, 256, (count, 3, 32, 32), np.uint8), generator.integers(0, 10, count))
        for split, count in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
    }


_WEAK = get_task_spec("cifar10")
register_task(
    _WEAK.model_copy(
        update={
            "name": "weak_cnn",
            "summary": "the weak host of cifar10 on 50,000 images of noise, for measuring speed",
            "data": _WEAK.data.model_copy(update={"source": "made_up_images"}),
        }
    )
)
