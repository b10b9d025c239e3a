"""A host, a seed, a data set and a task of your own, in one file.

The data are squares cut out of the two photographs that scikit-learn ships; the task is to say which photograph a
square comes from. The host is a small MLP-mixer, whose features no shipped blueprint fits, so it brings two of its own.
Run it from the root of the checkout:

    esper-ray tasks photos --plugin examples.photo_mixer
    esper-ray train --plugin examples.photo_mixer --task photos --iterations 2
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.data import data_source, shuffled_split
from esper_ray.data.source import Splits
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.models import blueprint, host
from esper_ray.tasks import DataSettings, DecisionSettings, HostSettings, TaskSpec, register_task
from esper_ray.training import OptimizerSettings

SIDE = 8


@data_source("photos", "8×8 squares of two photographs, bundled with scikit-learn")
def read_photos(files: list[Path]) -> Splits:
    """Returns squares (N, 3, 8, 8) uint8, each labelled with the number of its photograph."""
    from sklearn.datasets import load_sample_images

    squares, labels = [], []
    for label, photo in enumerate(load_sample_images().images):
        rows, columns = photo.shape[0] // SIDE, photo.shape[1] // SIDE
        cut = photo[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
        squares.append(cut.transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE))
        labels.append(np.full(rows * columns, label))
    images, targets = np.concatenate(squares), np.concatenate(labels)
    return shuffled_split(images, targets, {"train": 2000, "validation": 1000, "test": 1000})


@host("mixer")
class MixerHost(nn.Module):
    """Cuts an image into patches, then mixes between patches and within them, block after block.

    Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021. Features are (N, patches, width).
    """

    topology = "mixer"  # the kind of features; blueprints are registered for it

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        width: Annotated[int, Field(ge=1)] = 4,
        blocks: Annotated[int, Field(ge=1)] = 2,
        patch: Annotated[int, Field(ge=1)] = 4,
    ) -> None:
        super().__init__()
        channels, height, columns = input_shape
        patches = (height // patch) * (columns // patch)
        self.injection_points = {f"block{i}_post": width for i in range(1, blocks + 1)}
        self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.between = nn.ModuleList(nn.Linear(patches, patches) for _ in range(blocks))
        self.within = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.slots = nn.ModuleDict()
        self.head = nn.Linear(width, classes)

    def register_slot(self, slot_id: str, module: nn.Module) -> None:
        """Runs `module` after a block from now on."""
        self.slots[slot_id] = module

    def forward(self, images: Tensor) -> Tensor:
        features = self.embed(images).flatten(2).transpose(1, 2)
        for i, (between, within) in enumerate(zip(self.between, self.within, strict=True), start=1):
            features = features + F.gelu(between(features.transpose(1, 2))).transpose(1, 2)
            features = features + F.gelu(within(features))
            if (slot_id := f"block{i}_post") in self.slots:
                features = self.slots[slot_id](features)
        logits: Tensor = self.head(features.mean(dim=1))
        return logits


@blueprint("gate", topology="mixer")
class Gate(nn.Module):
    """Scales each feature by a learned factor that starts at 1: exact identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.factor


@blueprint("widening_mlp", topology="mixer")
class WideningMLP(nn.Module):
    """Sixteen times as wide inside, residual; the way back starts at 0: exact identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 16 * width)
        self.contract = nn.Linear(16 * width, width)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, features: Tensor) -> Tensor:
        grown: Tensor = features + self.contract(F.gelu(self.expand(features)))
        return grown


@register_task
def photos() -> TaskSpec:
    """The task; whatever it does not say has the default of `esper_ray/tasks/settings.py`."""
    return TaskSpec(
        name="photos",
        summary="an MLP-mixer that tells two photographs apart by 8×8 squares",
        input_shape=(3, SIDE, SIDE),
        classes=2,
        max_epochs=15,
        episodes_per_iteration=8,
        data=DataSettings(source="photos", batch_size=64),
        host=HostSettings(kind="mixer"),
        host_optimizer=OptimizerSettings(kind="adamw", lr=2e-3),
        seed_optimizer=OptimizerSettings(kind="adamw", lr=5e-3),
        lifecycle=LifecycleSettings(training_dwell=2, blending_steps=3, shadowing_dwell=1, embargo_epochs=2),
        decisions=DecisionSettings(min_germination_epoch=3, min_plateau=0, require_stabilised=False, min_cull_age=3),
    )
