"""Work items of a host's epoch, and their execution one by one."""

from collections.abc import Generator, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from esper_ray.data import BatchLoader
from esper_ray.models import MorphogeneticModel
from esper_ray.seeding import seeded
from esper_ray.training.epoch import _train_one_epoch
from esper_ray.training.evaluation import Evaluation, evaluate
from esper_ray.training.gradients import GradientStats

Trained = tuple[float, float, int, GradientStats | None]


@dataclass(frozen=True)
class TrainingWork:
    """Work item: one host's training for an epoch. Its result is that of `_train_one_epoch`.

    Attributes:
        structure: tells hosts apart that are built differently.
        order_seed: of the order of the samples.
        generator_seed: of torch's generators during the epoch.
    """

    structure: Hashable
    model: MorphogeneticModel
    loader: BatchLoader
    order_seed: int
    generator_seed: int
    host_optimizer: torch.optim.Optimizer
    seed_optimizer: torch.optim.Optimizer | None
    device: torch.device
    task_type: str


@dataclass(frozen=True)
class EvaluationWork:
    """Work item: one host's evaluation, at alpha `forced_alpha` if that is given. Its result is an `Evaluation`."""

    structure: Hashable
    model: MorphogeneticModel
    loader: BatchLoader
    device: torch.device
    task_type: str
    forced_alpha: float | None = None


Work = TrainingWork | EvaluationWork
Result = TypeVar("Result")
Steps = Generator[Work, Any, Result]


def run_one(steps: Steps[Result]) -> Result:
    """Runs the coroutine of one host, executes its work items one by one, and returns its result."""
    try:
        work = next(steps)
        while True:
            work = steps.send(do(work))
    except StopIteration as end:
        result: Result = end.value
        return result


def do(work: Work) -> Any:
    """Executes one work item and returns its result."""
    if isinstance(work, EvaluationWork):
        return _evaluate(work)
    work.loader.start_epoch(work.order_seed)
    with seeded(work.generator_seed, work.device):
        return _train_one_epoch(
            model=work.model,
            trainloader=work.loader,
            criterion=nn.CrossEntropyLoss(),
            host_optimizer=work.host_optimizer,
            seed_optimizer=work.seed_optimizer,
            device=work.device,
            task_type=work.task_type,
            collect_gradients=work.model.has_active_seed,
        )


def _evaluate(work: EvaluationWork) -> Evaluation:
    if work.forced_alpha is None:
        return evaluate(work.model, work.loader, nn.CrossEntropyLoss(), work.device, work.task_type)
    with work.model.seed_slot.force_alpha(work.forced_alpha):
        return evaluate(work.model, work.loader, nn.CrossEntropyLoss(), work.device, work.task_type)
