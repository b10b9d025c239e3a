"""The one training loop of the project, for every seed stage."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.training.gradients import GradientStats, collect_seed_gradients, with_host

Batch = tuple[Tensor, Tensor]
TASK_TYPES = ("classification", "lm")


def _train_one_epoch(
    model: nn.Module,
    trainloader: Iterable[Any],
    criterion: nn.Module,
    host_optimizer: torch.optim.Optimizer,
    seed_optimizer: torch.optim.Optimizer | None,
    device: str | torch.device,
    task_type: str,
    collect_gradients: bool = False,
) -> tuple[float, float, int, GradientStats | None]:
    """Trains `model` for one epoch.

    Nothing inside the loop waits for the device; the sums are read once at the end. A non-finite loss ends the epoch
    before its optimizer step and makes `running_loss` non-finite, which the governor sees. (On a GPU the loss is
    looked at once it has arrived, so a few more batches may run.)

    Args:
        model: takes the inputs of a batch; with `collect_gradients` a `MorphogeneticModel`.
        trainloader: yields (inputs, targets).
        criterion: mean loss of (logits (N, classes), targets (N,)).
        host_optimizer: steps first.
        seed_optimizer: steps second, if given.
        device: where the batches go.
        task_type: "classification" (logits (N, classes), one sample each) or "lm" (logits (B, T, V), targets (B, T),
            one token each).
        collect_gradients: take gradient statistics after the last batch's backward pass.

    Returns:
        (running_loss, correct, total, grad_stats): the sum over batches of the mean batch loss; correct predictions;
        samples or tokens; statistics of `collect_seed_gradients` with `host_gradient_norm` and `seed_gradient_ratio`
        = (seed norm/√seed size) ÷ (host norm/√host size), or None. An empty loader gives (0.0, 0.0, 0, None).

    Raises:
        ConfigurationError: the task type is unknown.
    """
    model.train()
    loss_sum: Tensor | None = None
    correct_sum: Tensor | None = None
    total = 0
    grad_stats: GradientStats | None = None
    watch = _FiniteWatch()
    for (inputs, targets), is_last in _mark_last(trainloader):
        inputs = inputs.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        host_optimizer.zero_grad(set_to_none=True)
        if seed_optimizer is not None:
            seed_optimizer.zero_grad(set_to_none=True)
        loss, correct, count = _loss_and_correct(model(inputs), targets, criterion, task_type)
        loss_sum = loss.detach() if loss_sum is None else loss_sum + loss.detach()
        correct_sum = correct if correct_sum is None else correct_sum + correct
        total += count
        if watch.saw_non_finite(loss.detach()):
            break
        loss.backward()
        if collect_gradients and is_last:
            grad_stats = _gradient_stats(model)
        host_optimizer.step()
        if seed_optimizer is not None:
            seed_optimizer.step()
    if loss_sum is None or correct_sum is None:
        return 0.0, 0.0, 0, None
    running_loss, correct_count = torch.stack([loss_sum.double(), correct_sum.double()]).tolist()
    return running_loss, correct_count, total, grad_stats


def _loss_and_correct(
    outputs: Tensor, targets: Tensor, criterion: nn.Module, task_type: str
) -> tuple[Tensor, Tensor, int]:
    """Returns the mean loss, the number of correct predictions (both on the device) and the number of predictions."""
    if task_type == "lm":
        outputs = outputs.reshape(-1, outputs.shape[-1])
        targets = targets.reshape(-1)
    elif task_type != "classification":
        raise ConfigurationError(unknown_name("task type", task_type, TASK_TYPES))
    loss = criterion(outputs, targets)
    correct = (outputs.detach().argmax(dim=1) == targets).sum()
    return loss, correct, targets.numel()


def _gradient_stats(model: nn.Module) -> GradientStats:
    seed = collect_seed_gradients(model.get_seed_parameters())  # type: ignore[operator]
    return with_host(seed, collect_seed_gradients(model.get_host_parameters()))  # type: ignore[operator]


def _mark_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yields each batch with whether it is the last; works for loaders without a length."""
    iterator = iter(batches)
    try:
        current = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield current, False
        current = following
    yield current, True


class _FiniteWatch:
    """Notices a non-finite loss; on a GPU without waiting for it, so somewhat later."""

    def __init__(self) -> None:
        self._arriving: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def saw_non_finite(self, loss: Tensor) -> bool:
        finite = loss.isfinite()
        if loss.device.type != "cuda":
            return not finite.item()
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._arriving.append((arrived, flag))
        while self._arriving and self._arriving[0][0].query():
            if not self._arriving.popleft()[1].item():
                return True
        return False
