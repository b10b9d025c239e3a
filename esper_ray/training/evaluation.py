"""Measuring a model on held-out data, with and without its seed, in one pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper_ray.models import MorphogeneticModel
from esper_ray.training.epoch import _loss_and_correct


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (nats) and accuracy (percent), as the model is and with alpha forced to 0.

    While alpha is 0 the two pairs are equal.
    """

    loss: float
    accuracy: float
    loss_without_seed: float
    accuracy_without_seed: float


@torch.inference_mode()
def evaluate(
    model: MorphogeneticModel, loader: Iterable[Any], criterion: nn.Module, device: str | torch.device, task_type: str
) -> Evaluation:
    """Evaluates `model` on every batch of `loader`; leaves it in evaluation mode.

    The host's layers before the slot run once (`MorphogeneticModel.forward_with_counterfactual`). Losses are averaged
    over predictions, not over batches. Reads the device once.

    Raises:
        ValueError: the loader is empty.
    """
    model.eval()
    sums: Tensor | None = None
    total = 0
    for inputs, targets in loader:
        inputs = inputs.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        with_seed, without_seed = model.forward_with_counterfactual(inputs)
        loss, correct, count = _loss_and_correct(with_seed, targets, criterion, task_type)
        loss_without, correct_without = loss, correct
        if without_seed is not with_seed:
            loss_without, correct_without, _ = _loss_and_correct(without_seed, targets, criterion, task_type)
        losses = torch.stack([loss, loss_without]).double() * count
        batch_sums = torch.cat([losses, torch.stack([correct, correct_without]).double()])
        sums = batch_sums if sums is None else sums + batch_sums
        total += count
    if sums is None:
        raise ValueError("cannot evaluate on an empty loader")
    mean_loss, mean_loss_without, share, share_without = (sums / total).tolist()
    return Evaluation(mean_loss, 100.0 * share, mean_loss_without, 100.0 * share_without)
