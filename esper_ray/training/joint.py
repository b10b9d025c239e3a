"""Training and evaluating several hosts as one network."""

import copy
from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from esper_ray.data.batches import iterate_batched
from esper_ray.models.joined import JoinedModel, Part, joined
from esper_ray.training.epoch import _mark_last
from esper_ray.training.evaluation import Evaluation
from esper_ray.training.gradients import GradientStats, summarise_norms, with_host
from esper_ray.training.work import EvaluationWork, Trained, TrainingWork


class JoinedOptimizer:
    """The optimizers of several hosts as one over the joined parameters. Each parameter keeps its own settings."""

    def __init__(self, model: JoinedModel, works: Sequence[TrainingWork]) -> None:
        owned_by = [owners(work) for work in works]
        self._trained: list[tuple[Part, list[torch.optim.Optimizer]]] = []
        groups: dict[str, dict[str, Any]] = {}
        for part in model.parts:
            owned = [owned_by[place].get(id(own)) for place, own in zip(part.models, part.each, strict=True)]
            if owned[0] is None:  # a buffer, or a frozen weight
                continue
            settings = optimizer_settings(owned[0][1])
            groups.setdefault(repr(settings), {**settings, "params": []})["params"].append(part.whole)
            self._trained.append((part, [found[0] for found in owned if found is not None]))
        (kind,) = {type(owned[0]) for _, owned in self._trained}
        self._optimizer: torch.optim.Optimizer = kind(list(groups.values()), lr=0.0)  # type: ignore[call-arg]
        for part, optimizers in self._trained:
            states = [optimizer.state.get(own, {}) for optimizer, own in zip(optimizers, part.each, strict=True)]
            self._optimizer.state[part.whole] = {
                key: joined([state[key] for state in states]) if _is_of_elements(key, value) else copy.deepcopy(value)
                for key, value in states[0].items()
            }

    def step(self) -> None:
        """Steps all parameters."""
        self._optimizer.step()

    @torch.no_grad()
    def detach(self) -> None:
        """Gives each host's optimizers their state."""
        for part, optimizers in self._trained:
            for key, value in self._optimizer.state[part.whole].items():
                each = part.unstacked(value) if _is_of_elements(key, value) else [value] * len(part.each)
                for optimizer, own, found in zip(optimizers, part.each, each, strict=True):
                    optimizer.state[own][key] = found.clone() if isinstance(found, Tensor) else found


def _is_of_elements(key: str, value: Any) -> bool:
    """Returns whether a value of an optimizer's state has the parameter's number of elements; "step" is a count."""
    return isinstance(value, Tensor) and key != "step"


def optimizer_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of an optimizer's parameter group, without the parameters."""
    return {key: value for key, value in group.items() if key not in ("params", "initial_lr")}


def owners(work: TrainingWork) -> dict[int, tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """Returns the optimizer and the group of each parameter that is trained, by its id."""
    return {
        id(parameter): (optimizer, group)
        for optimizer in (work.host_optimizer, work.seed_optimizer)
        if optimizer is not None
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def train_batched(model: JoinedModel, works: Sequence[TrainingWork]) -> list[Trained]:
    """Trains all hosts of `model` for an epoch; the results are those of `_train_one_epoch`, within rounding.

    The hosts and their optimizers are written to at the end only.

    Raises:
        FloatingPointError: the loss of one was not finite; nothing has been written.
    """
    optimizer = JoinedOptimizer(model, works)
    for work in works:
        work.loader.start_epoch(work.order_seed)
    collects = any(work.model.has_active_seed for work in works)
    sums: Tensor | None = None
    total = 0
    norms: list[Tensor] = []
    for (inputs, targets), is_last in _mark_last(iterate_batched([work.loader for work in works])):
        for part in model.parts:
            part.whole.grad = None
        loss, correct = _losses_and_correct(model(inputs), targets)
        found = torch.stack([loss.detach().double(), correct.double()])
        sums = found if sums is None else sums + found
        total += len(targets)
        loss.sum().backward()
        if is_last and collects:
            norms = _gradient_norms(model)
        optimizer.step()
    assert sums is not None
    losses, hits = sums.tolist()
    if not all(isfinite(loss) for loss in losses):
        raise FloatingPointError("the loss of a host is not finite")
    model.detach()
    optimizer.detach()
    return list(zip(losses, hits, [total] * len(works), _gradient_stats(model, norms, works), strict=True))


@torch.inference_mode()
def evaluate_batched(model: JoinedModel, works: Sequence[EvaluationWork]) -> list[Evaluation]:
    """Evaluates all hosts of `model`; the results are those of `evaluate`, within rounding."""
    sums: Tensor | None = None
    total = 0
    with model.slot.paired_output(any(any(kind.alphas) for kind in model.slot.seeds)):
        for inputs, targets in iterate_batched([work.loader for work in works]):
            ways = [_losses_and_correct(logits, targets) for logits in model(inputs).split(len(targets))]
            found = torch.stack([torch.stack([loss.double() * len(targets), hits.double()]) for loss, hits in ways])
            sums = found if sums is None else sums + found
            total += len(targets)
    assert sums is not None, "a validation split is not empty"
    with_seed, without = (sums[[0, -1]] / total).tolist()
    return [
        Evaluation(loss, 100.0 * share, loss_without, 100.0 * share_without)
        for loss, share, loss_without, share_without in zip(*with_seed, *without, strict=True)
    ]


def _losses_and_correct(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean loss and correct predictions of each host, (K,); logits (N, K, classes), targets (N, K)."""
    loss = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(0)
    return loss, (logits.detach().argmax(dim=2) == targets).sum(0)


def _gradient_norms(model: JoinedModel) -> list[Tensor]:
    """Returns for each part that has a gradient the norm of each model's, (number of models,)."""
    return [
        part.whole.grad.unflatten(0, (len(part.each), -1)).flatten(1).norm(dim=1)
        for part in model.parts
        if part.whole.grad is not None
    ]


def _gradient_stats(
    model: JoinedModel, norms: Sequence[Tensor], works: Sequence[TrainingWork]
) -> list[GradientStats | None]:
    """Returns the statistics of each host that has a live seed."""
    if not norms:
        return [None] * len(works)
    flat = torch.cat(list(norms)).tolist()
    of_seed: list[list[tuple[float, int]]] = [[] for _ in works]
    of_host: list[list[tuple[float, int]]] = [[] for _ in works]
    seeds = [{id(parameter) for parameter in work.model.get_seed_parameters()} for work in works]
    for part in model.parts:
        if part.whole.grad is not None:
            for place, own in zip(part.models, part.each, strict=True):
                (of_seed if id(own) in seeds[place] else of_host)[place].append((flat.pop(0), own.numel()))

    def summary(found: Sequence[tuple[float, int]]) -> GradientStats:
        return summarise_norms([norm for norm, _ in found], sum(size for _, size in found))

    return [
        with_host(summary(seed), summary(host)) if work.model.has_active_seed else None
        for work, seed, host in zip(works, of_seed, of_host, strict=True)
    ]
