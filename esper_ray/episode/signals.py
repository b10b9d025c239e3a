"""Signals of a host's progress for the controller, derived from one measurement per epoch."""

from dataclasses import dataclass

from esper_ray.tasks import DecisionSettings

HISTORY_LENGTH = 5
_PLATEAU_POINTS = 0.5
_STABLE_EPOCHS = 3
_STABLE_IMPROVEMENT = 0.03
_STABLE_RATIO = 1.5


@dataclass(frozen=True)
class EpochOutcome:
    """Measurements of one epoch. Losses in nats, accuracies in percent.

    Attributes:
        loss_without_seed, accuracy_without_seed: validation loss and accuracy with alpha forced to 0.
        contribution: validation accuracy − accuracy_without_seed; None while alpha is 0.
        probe_loss_change: change of the validation loss at alpha 0.1, measured in TRAINING only; else None.
    """

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    loss_without_seed: float
    accuracy_without_seed: float
    contribution: float | None = None
    probe_loss_change: float | None = None


@dataclass(frozen=True)
class Signals:
    """The state of progress after an epoch; before the first one everything is 0.

    Attributes:
        loss_delta: previous − current validation loss.
        accuracy_delta: current − previous validation accuracy.
        plateau_count: epochs in a row with an accuracy delta below 0.5 points.
        losses, accuracies: of the last five epochs, the newest last.
        stabilised: a latch, see `SignalTracker`.
    """

    loss_delta: float = 0.0
    accuracy_delta: float = 0.0
    plateau_count: int = 0
    best_loss: float = 0.0
    best_accuracy: float = 0.0
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    stabilised: bool = False


class SignalTracker:
    """Derives `Signals` from the outcomes of the epochs.

    The host counts as stabilised, for good, after three epochs in a row in which the validation loss improved by less
    than 3 % and stayed below 1.5 times the previous one. Only epochs of a host that has learned something count: its
    loss is below `learned_share` of a uniform guess. Otherwise a slow start would open the latch.
    """

    def __init__(self, uniform_loss: float, settings: DecisionSettings) -> None:
        self._learned_loss = settings.learned_share * uniform_loss
        self._stable_epochs = 0
        self.signals = Signals()

    def update(self, outcome: EpochOutcome) -> Signals:
        """Adds one epoch and returns the new signals."""
        before = self.signals
        if not before.losses:
            self.signals = Signals(
                best_loss=outcome.val_loss,
                best_accuracy=outcome.val_accuracy,
                losses=(outcome.val_loss,),
                accuracies=(outcome.val_accuracy,),
            )
            return self.signals
        previous_loss = before.losses[-1]
        accuracy_delta = outcome.val_accuracy - before.accuracies[-1]
        self._count_stable(previous_loss, outcome.val_loss)
        self.signals = Signals(
            loss_delta=previous_loss - outcome.val_loss,
            accuracy_delta=accuracy_delta,
            plateau_count=before.plateau_count + 1 if accuracy_delta < _PLATEAU_POINTS else 0,
            best_loss=min(before.best_loss, outcome.val_loss),
            best_accuracy=max(before.best_accuracy, outcome.val_accuracy),
            losses=(*before.losses, outcome.val_loss)[-HISTORY_LENGTH:],
            accuracies=(*before.accuracies, outcome.val_accuracy)[-HISTORY_LENGTH:],
            stabilised=before.stabilised or self._stable_epochs >= _STABLE_EPOCHS,
        )
        return self.signals

    def _count_stable(self, previous: float, current: float) -> None:
        improvement = (previous - current) / max(previous, 1e-12)
        stable = improvement < _STABLE_IMPROVEMENT and current < _STABLE_RATIO * previous
        self._stable_epochs = self._stable_epochs + 1 if stable and current < self._learned_loss else 0
