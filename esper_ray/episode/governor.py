"""Detects failed training from the losses, and rolls the host back to its last good snapshot."""

import copy
from collections import deque
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from esper_ray.lifecycle import SeedStage
from esper_ray.models import MorphogeneticModel
from esper_ray.tasks import GovernorSettings


class Failure(str, Enum):
    """Reason for which an epoch was rolled back."""

    NON_FINITE = "non-finite loss"
    EXPLOSION = "exploding loss"
    COLLAPSE = "collapse to guessing"


@dataclass(frozen=True)
class _Snapshot:
    tensors: list[Tensor]
    optimizer: dict[str, Any]


class Governor:
    """Judges every epoch, keeps snapshots, and restores the last good one.

    A snapshot holds the host, a fossilized seed and the host's optimizer (which a fossilized seed has joined); a live
    seed is never part of one. A seed joins it when it is fossilized, so that a rollback never undoes that.

    Args:
        settings: when an epoch has failed.
        uniform_loss: loss of a uniform guess, nats.
    """

    def __init__(self, settings: GovernorSettings, uniform_loss: float) -> None:
        self._settings = settings
        self._uniform_loss = uniform_loss
        self._losses: deque[float] = deque(maxlen=settings.history)
        self._explosions = 0
        self._learned = False
        self._snapshot: _Snapshot | None = None

    def judge(self, train_loss: float, val_loss: float) -> Failure | None:
        """Records the losses (nats) of one epoch; returns the reason to roll it back, or None."""
        failure = self._failure(train_loss, val_loss)
        if failure is None:
            if self._explosions == 0:
                self._losses.append(val_loss)
            self._learned |= val_loss < self._settings.learned_share * self._uniform_loss
        else:
            self._explosions = 0
        return failure

    def _failure(self, train_loss: float, val_loss: float) -> Failure | None:
        if not (isfinite(train_loss) and isfinite(val_loss)):
            return Failure.NON_FINITE
        self._explosions = self._explosions + 1 if self._is_explosion(val_loss) else 0
        if self._explosions >= self._settings.explosion_patience:
            return Failure.EXPLOSION
        margin = self._settings.guessing_margin * self._uniform_loss
        if self._learned and abs(val_loss - self._uniform_loss) <= margin:
            return Failure.COLLAPSE
        return None

    def _is_explosion(self, loss: float) -> bool:
        if len(self._losses) < self._settings.min_history:
            return False
        mean = fmean(self._losses)
        return loss > max(
            self._settings.explosion_loss,
            mean + self._settings.explosion_sigmas * pstdev(self._losses),
            self._settings.explosion_ratio * mean,
        )

    def is_snapshot_due(self, epoch: int) -> bool:
        """Returns whether a snapshot is to be taken after `epoch` completed epochs."""
        return epoch % self._settings.snapshot_every == 0 and self._explosions == 0

    def take_snapshot(self, model: MorphogeneticModel, optimizer: torch.optim.Optimizer) -> None:
        """Saves a copy of the state that a rollback restores."""
        tensors = [tensor.detach().clone() for tensor in _kept_tensors(model)]
        self._snapshot = _Snapshot(tensors, copy.deepcopy(optimizer.state_dict()))

    def adopt_fossil(self, model: MorphogeneticModel, optimizer: torch.optim.Optimizer) -> None:
        """Makes a seed that was fossilized just now a part of the snapshot.

        The snapshot is taken anew, but while losses explode the host in it stays the last good one.
        """
        good = self._snapshot
        self.take_snapshot(model, optimizer)
        now = self._snapshot
        if self._explosions == 0:
            return
        assert good is not None and now is not None, "the first snapshot is taken at the start"
        of_host = sum(len(group["params"]) for group in good.optimizer["param_groups"])
        fossil_state = {index: state for index, state in now.optimizer["state"].items() if index >= of_host}
        fossil_groups = now.optimizer["param_groups"][len(good.optimizer["param_groups"]) :]
        self._snapshot = _Snapshot(
            tensors=good.tensors + now.tensors[len(good.tensors) :],
            optimizer={
                "state": good.optimizer["state"] | fossil_state,
                "param_groups": good.optimizer["param_groups"] + fossil_groups,
            },
        )

    def roll_back(self, model: MorphogeneticModel, optimizer: torch.optim.Optimizer) -> None:
        """Discards a live seed and restores host, fossilized seed and optimizer as of the last snapshot."""
        assert self._snapshot is not None, "the first snapshot is taken at the start"
        if model.has_active_seed:
            model.cull_seed("rolled back by the governor")
        with torch.no_grad():
            for tensor, kept in zip(_kept_tensors(model), self._snapshot.tensors, strict=True):
                tensor.copy_(kept)
        optimizer.load_state_dict(copy.deepcopy(self._snapshot.optimizer))

    def resume_after_rollback(self, val_loss: float) -> None:
        """Records the validation loss (nats) of the host after a rollback.

        The host may be one that has not learned anything yet, or that had learned only with its seed. Then it must not
        count as collapsed for guessing, or it would be rolled back again every epoch.
        """
        self._learned = val_loss < self._settings.learned_share * self._uniform_loss


def _kept_tensors(model: MorphogeneticModel) -> list[Tensor]:
    """Returns parameters and buffers of the host, and of the seed once it is fossilized, in a fixed order."""
    of_slot: list[Tensor] = [*model.seed_slot.parameters(), *model.seed_slot.buffers()]
    slot_ids = {id(tensor) for tensor in of_slot}
    everything = (*model.host.parameters(), *model.host.buffers())
    of_host = [tensor for tensor in everything if id(tensor) not in slot_ids]
    return of_host + of_slot if model.seed_slot.stage == SeedStage.FOSSILIZED else of_host
