"""The inputs of `gpu_check.py`: device and size, tasks, hosts."""

import os
from dataclasses import dataclass
from typing import Any

import made_up_images
import torch

from esper_ray.episode import MorphogenesisEnv
from esper_ray.tasks import TaskSpec, get_task_spec

Row = dict[str, Any]
_LONG = 10**6


@dataclass(frozen=True)
class Check:
    """The device and the size of the check.

    Attributes:
        small: sizes that take a CPU seconds.
    """

    device: torch.device
    small: bool

    @property
    def on_gpu(self) -> bool:
        """True if the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Waits until the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def digits(self) -> TaskSpec:
        """Returns a few batches of digits."""
        return get_task_spec("digits", {"data.train_samples": 128 if self.small else 256})


def image_task(check: Check, wide: bool = False) -> TaskSpec:
    """Returns the weak host of cifar10 on 50,000 images of noise; `wide`: a host that fills a GPU."""
    changes: dict[str, Any] = {"host.base_channels": 64, "host.blocks": 4} if wide else {}
    if check.small:
        changes = {"data.train_samples": 64, "data.validation_samples": 64, "data.batch_size": 32}
    return get_task_spec("weak_cnn", changes)


def long_runs(task: TaskSpec, device: torch.device, hosts: int) -> list[Any]:
    """Returns hosts of which each has many epochs before it."""
    task = task.model_copy(update={"max_epochs": _LONG})
    first = MorphogenesisEnv(task, device)
    envs = [first, *(MorphogenesisEnv(task, device, data=first.data) for _ in range(hosts - 1))]
    return [env._new_run(seed) for seed, env in enumerate(envs)]


def shrink_images() -> None:
    """Makes fewer images of noise, for a CPU. Only where the data cache is a scratch folder."""
    assert "ESPER_RAY_CACHE" in os.environ
    made_up_images.TRAIN, made_up_images.VALIDATION = 64, 64
