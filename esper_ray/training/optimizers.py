"""Optimizers of host and seed, and how a fossilized seed changes hands."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class OptimizerSettings(BaseModel):
    """One optimizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    """Learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD; AdamW does not use it."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty of SGD, decoupled weight decay of AdamW."""


def build_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Builds the optimizer; each parameter group remembers its learning rate as `initial_lr`.

    AdamW is fused on the CPU only: on a GPU it would count its steps there, which no one could read without waiting.
    """
    parameters = list(parameters)
    optimizer: torch.optim.Optimizer
    if settings.kind == "sgd":
        optimizer = torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=on_cpu or None
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def adopt_seed(host_optimizer: torch.optim.Optimizer, seed_optimizer: torch.optim.Optimizer) -> None:
    """Moves a fossilized seed's parameters to the host's optimizer, as a group of their own.

    Learning rate, momentum, weight decay and the optimizer's state of each parameter are carried over. Both optimizers
    are of the same kind. `seed_optimizer` is of no further use.
    """
    for group in seed_optimizer.param_groups:
        host_optimizer.add_param_group(group)
        for parameter in group["params"]:
            host_optimizer.state[parameter] = seed_optimizer.state[parameter]


def decay_factor(epoch: int, max_epochs: int, decay_epochs: int) -> float:
    """Returns the learning-rate factor of epoch `epoch` (1 to `max_epochs`).

    1 until the last `decay_epochs` epochs, over which it falls in equal steps, so that the last epoch is steady and
    its accuracy can count: 1 − k/(decay_epochs + 1) in the k-th of them.
    """
    return 1.0 - max(0, epoch - (max_epochs - decay_epochs)) / (decay_epochs + 1)


def scale_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` times the one it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
