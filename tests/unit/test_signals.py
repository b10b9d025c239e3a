"""Signals derived from the outcomes of the epochs."""

from collections.abc import Iterable
from math import log

from esper_ray.episode.signals import EpochOutcome, Signals, SignalTracker
from esper_ray.tasks import DecisionSettings

UNIFORM = log(10)


def track(losses: Iterable[float], accuracies: Iterable[float] | None = None) -> list[Signals]:
    losses = list(losses)
    accuracies = list(accuracies) if accuracies is not None else [50.0] * len(losses)
    tracker = SignalTracker(UNIFORM, DecisionSettings())
    return [
        tracker.update(EpochOutcome(loss, accuracy, loss, accuracy, loss, accuracy))
        for loss, accuracy in zip(losses, accuracies, strict=True)
    ]


def test_deltas_point_upward_when_things_improve() -> None:
    last = track([2.0, 1.5], [20.0, 26.0])[-1]
    assert (last.loss_delta, last.accuracy_delta) == (0.5, 6.0)


def test_the_first_epoch_has_no_delta() -> None:
    first = track([2.0], [20.0])[0]
    assert (first.loss_delta, first.accuracy_delta, first.plateau_count) == (0.0, 0.0, 0)


def test_the_plateau_counts_epochs_in_a_row_below_half_a_point() -> None:
    counts = [s.plateau_count for s in track([2.0] * 6, [20.0, 20.4, 20.3, 20.9, 21.3, 18.0])]
    assert counts == [0, 1, 2, 0, 1, 2]


def test_best_values_and_histories_of_five() -> None:
    last = track([2.0, 1.0, 1.4, 1.3, 1.2, 1.1], [1, 6, 5, 4, 3, 2])[-1]
    assert (last.best_loss, last.best_accuracy) == (1.0, 6)
    assert last.losses == (1.0, 1.4, 1.3, 1.2, 1.1)
    assert last.accuracies == (6, 5, 4, 3, 2)


def test_the_latch_closes_after_three_steady_epochs_and_stays() -> None:
    signals = track([1.5, 1.0, 0.99, 0.98, 0.97, 0.5, 0.2])
    assert [s.stabilised for s in signals] == [False, False, False, False, True, True, True]


def test_a_slow_start_does_not_close_the_latch() -> None:
    """A host that still guesses has learned nothing, however steady its loss."""
    assert not any(s.stabilised for s in track([UNIFORM, 2.30, 2.29, 2.29, 2.28, 2.28]))


def test_an_unsteady_loss_starts_the_count_over() -> None:
    signals = track([1.5, 1.49, 1.48, 2.9, 1.48, 1.47, 1.46])
    assert not signals[-2].stabilised
