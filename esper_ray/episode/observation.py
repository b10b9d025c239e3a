"""The observation, defined once: names, bounds and meaning of every value the policy sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log2
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from esper_ray.episode.signals import HISTORY_LENGTH, EpochOutcome, Signals
from esper_ray.lifecycle import SeedStage, SeedState
from esper_ray.training import GradientStats

_STEP_SCALE = 100
_PLATEAU_SCALE = 10
_ACCURACY_DELTA_SCALE = 10.0
POINTS_SCALE = 50.0
"""Percentage points that are 1 in the observation of a contribution or an improvement."""
_GRADIENT_CAP = 10.0
_STAGES_SHOWN = tuple(stage for stage in SeedStage if stage not in (SeedStage.UNKNOWN, SeedStage.RESETTING))


@dataclass(frozen=True)
class EpisodeView:
    """The values behind an observation, after `epoch` completed epochs. `outcome` is None before the first."""

    epoch: int
    max_epochs: int
    uniform_loss: float
    outcome: EpochOutcome | None
    signals: Signals
    stage: SeedStage
    state: SeedState | None
    occupied: bool
    gradients: GradientStats | None
    embargo_epochs: int
    host_parameters: int
    slot_width: int
    train_share: float
    seed_sizes: Mapping[str, int]

    @property
    def seed(self) -> SeedState | None:
        """The seed that sits in the slot, live or fossilized."""
        return self.state if self.occupied else None


@dataclass(frozen=True)
class Feature:
    """One value of the observation, clipped to low…high."""

    name: str
    low: float
    high: float
    meaning: str
    read: Callable[[EpisodeView], float]


def _outcome(read: Callable[[EpochOutcome], float]) -> Callable[[EpisodeView], float]:
    return lambda view: read(view.outcome) if view.outcome is not None else 0.0


def _seed(read: Callable[[SeedState], float]) -> Callable[[EpisodeView], float]:
    return lambda view: read(view.seed) if view.seed is not None else 0.0


def _gradient(name: str, cap: float = 1.0) -> Callable[[EpisodeView], float]:
    return lambda view: min(float(view.gradients[name]), cap) / cap if view.gradients is not None else 0.0


def _nth_last(values: Sequence[float], age: int) -> float:
    return values[-1 - age] if age < len(values) else 0.0


def _progress_features() -> list[Feature]:
    return [
        Feature("epoch", 0, 1, "completed epochs ÷ epoch budget", lambda v: v.epoch / v.max_epochs),
        Feature("steps", 0, 2, "completed epochs ÷ 100", lambda v: v.epoch / _STEP_SCALE),
        Feature(
            "train_loss",
            0,
            2,
            "training loss ÷ loss of a uniform guess",
            lambda v: v.outcome.train_loss / v.uniform_loss if v.outcome else 0.0,
        ),
        Feature(
            "val_loss",
            0,
            2,
            "validation loss ÷ loss of a uniform guess",
            lambda v: v.outcome.val_loss / v.uniform_loss if v.outcome else 0.0,
        ),
        Feature(
            "loss_delta",
            -1,
            1,
            "previous − current validation loss, ÷ loss of a uniform guess",
            lambda v: v.signals.loss_delta / v.uniform_loss,
        ),
        Feature("train_accuracy", 0, 1, "training accuracy, as a fraction", _outcome(lambda o: o.train_accuracy / 100)),
        Feature("val_accuracy", 0, 1, "validation accuracy, as a fraction", _outcome(lambda o: o.val_accuracy / 100)),
        Feature(
            "accuracy_delta",
            -2,
            2,
            "change of validation accuracy ÷ 10 points",
            lambda v: v.signals.accuracy_delta / _ACCURACY_DELTA_SCALE,
        ),
        Feature("plateau", 0, 2, "plateau count ÷ 10", lambda v: v.signals.plateau_count / _PLATEAU_SCALE),
        Feature(
            "best_val_accuracy",
            0,
            1,
            "best validation accuracy so far, as a fraction",
            lambda v: v.signals.best_accuracy / 100,
        ),
        Feature(
            "best_val_loss",
            0,
            2,
            "best validation loss so far ÷ loss of a uniform guess",
            lambda v: v.signals.best_loss / v.uniform_loss,
        ),
    ]


def _history_features() -> list[Feature]:
    losses = [
        Feature(
            f"val_loss_{age}_ago",
            0,
            2,
            f"validation loss {age} epochs ago ÷ loss of a uniform guess",
            lambda v, age=age: _nth_last(v.signals.losses, age) / v.uniform_loss,  # type: ignore[misc]
        )
        for age in range(HISTORY_LENGTH)
    ]
    accuracies = [
        Feature(
            f"val_accuracy_{age}_ago",
            0,
            1,
            f"validation accuracy {age} epochs ago, as a fraction",
            lambda v, age=age: _nth_last(v.signals.accuracies, age) / 100,  # type: ignore[misc]
        )
        for age in range(HISTORY_LENGTH)
    ]
    return losses + accuracies


def _slot_features() -> list[Feature]:
    return [
        Feature("seed_present", 0, 1, "a seed, live or fossilized, sits in the slot", lambda v: float(v.occupied)),
        Feature("stage", 0, 1, "stage number ÷ 11", lambda v: v.stage / len(SeedStage)),
        Feature(
            "epochs_in_stage",
            0,
            1,
            "epochs in the present stage ÷ epoch budget",
            lambda v: v.state.epochs_in_stage / v.max_epochs if v.state else 0.0,
        ),
        Feature("alpha", 0, 1, "share of the seed in the slot's output", _seed(lambda s: s.alpha)),
        Feature(
            "stage_improvement",
            -2,
            2,
            "validation accuracy gained since the stage began ÷ 50 points",
            _seed(lambda s: s.improvement_in_stage / POINTS_SCALE),
        ),
        Feature(
            "free_slots", 0, 1, "slots in which a seed may germinate", lambda v: float(v.stage == SeedStage.DORMANT)
        ),
        Feature(
            "contribution",
            -2,
            2,
            "counterfactual contribution ÷ 50 points",
            _seed(lambda s: (s.contribution or 0.0) / POINTS_SCALE),
        ),
        Feature(
            "host_gradient_norm",
            0,
            1,
            "mean gradient norm per host tensor, capped at 10, ÷ 10; known while a live seed trains",
            _gradient("host_gradient_norm", _GRADIENT_CAP),
        ),
        Feature("learning_phase", 0, 1, "1 once the host has stabilised", lambda v: float(v.signals.stabilised)),
    ]


def _blueprint_features(blueprint_ids: Sequence[str]) -> list[Feature]:
    return [
        Feature(
            f"blueprint_{name}",
            0,
            1,
            f"the seed in the slot is of blueprint {name}",
            _seed(lambda s, name=name: float(s.blueprint_id == name)),  # type: ignore[misc]
        )
        for name in blueprint_ids
    ]


def _telemetry_features() -> list[Feature]:
    return [
        Feature(
            "seed_gradient_norm",
            0,
            1,
            "mean gradient norm per seed tensor, capped at 10, ÷ 10",
            _gradient("gradient_norm", _GRADIENT_CAP),
        ),
        Feature("seed_gradient_health", 0, 1, "gradient health of the seed", _gradient("gradient_health")),
        Feature("seed_has_vanishing", 0, 1, "a seed tensor has a vanishing gradient", _gradient("has_vanishing")),
        Feature("seed_has_exploding", 0, 1, "a seed tensor has an exploding gradient", _gradient("has_exploding")),
        Feature(
            "seed_epochs_in_stage", 0, 1, "epochs in the present stage ÷ 10", _seed(lambda s: s.epochs_in_stage / 10)
        ),
        Feature(
            "seed_accuracy",
            0,
            1,
            "validation accuracy with the seed in the slot, as a fraction",
            _seed(lambda s: (s.last_accuracy or 0.0) / 100),
        ),
        Feature(
            "seed_accuracy_delta",
            -2,
            2,
            "change of validation accuracy with the seed in the slot ÷ 10 points",
            lambda v: v.signals.accuracy_delta / _ACCURACY_DELTA_SCALE if v.occupied else 0.0,
        ),
        Feature("seed_stage", 0, 1, "stage number of the seed ÷ 11", _seed(lambda s: s.stage / len(SeedStage))),
        Feature("seed_alpha", 0, 1, "alpha of the seed", _seed(lambda s: s.alpha)),
        Feature(
            "seed_episode_time",
            0,
            1,
            "epochs since germination ÷ epoch budget",
            lambda v: v.seed.age / v.max_epochs if v.seed else 0.0,
        ),
    ]


def _policy_features() -> list[Feature]:
    stages = [
        Feature(
            f"stage_is_{stage.name.lower()}",
            0,
            1,
            f"the slot's stage is {stage.name}",
            lambda v, stage=stage: float(v.stage == stage),  # type: ignore[misc]
        )
        for stage in _STAGES_SHOWN
    ]
    return [
        *stages,
        Feature(
            "embargo_left",
            0,
            1,
            "epochs of embargo left ÷ length of an embargo",
            lambda v: v.state.embargo_left / max(1, v.embargo_epochs) if v.state else 0.0,
        ),
        Feature(
            "last_decision",
            0,
            1,
            "this is the last decision of the episode: the last chance to fossilize",
            lambda v: float(v.epoch == v.max_epochs - 1),
        ),
    ]


def _host_features(blueprint_ids: Sequence[str]) -> list[Feature]:
    """Returns the features that describe the host, where hosts differ. Learning rate and label noise stay hidden."""
    growth = [
        Feature(
            f"growth_by_{name}",
            0,
            2,
            f"doublings of the host that a seed of {name} would be, ÷ 4",
            lambda v, name=name: log2(1 + v.seed_sizes.get(name, 0) / v.host_parameters) / 4,  # type: ignore[misc]
        )
        for name in blueprint_ids
    ]
    return [
        Feature("host_parameters", 0, 2, "log2 of the host's parameters ÷ 16", lambda v: log2(v.host_parameters) / 16),
        Feature("slot_width", 0, 2, "log2 of the feature width at the slot ÷ 8", lambda v: log2(v.slot_width) / 8),
        Feature("train_share", 0, 1, "share of the training samples that the host sees", lambda v: v.train_share),
        *growth,
    ]


class ObservationTable:
    """The features of a task in order, and the observation made from them.

    Args:
        blueprint_ids: blueprints of the action table; each has an entry of the one-hot.
        hosts_differ: each episode draws its own host, so the observation says what may be known of it.
    """

    def __init__(self, blueprint_ids: Sequence[str], hosts_differ: bool = False) -> None:
        self._arguments = (tuple(blueprint_ids), hosts_differ)
        self.features: tuple[Feature, ...] = (
            *_progress_features(),
            *_history_features(),
            *_slot_features(),
            *_blueprint_features(blueprint_ids),
            *_telemetry_features(),
            *_policy_features(),
            *(_host_features(blueprint_ids) if hosts_differ else []),
        )
        self.names = tuple(feature.name for feature in self.features)
        self.index = {name: i for i, name in enumerate(self.names)}
        self._low = np.array([feature.low for feature in self.features], dtype=np.float32)
        self._high = np.array([feature.high for feature in self.features], dtype=np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObservationTable, self._arguments

    def __len__(self) -> int:
        return len(self.features)

    @property
    def space(self) -> spaces.Box:
        """The bounds of the observation: (len(self),) float32."""
        return spaces.Box(self._low, self._high, dtype=np.float32)

    def observe(self, view: EpisodeView) -> NDArray[np.float32]:
        """Returns the observation (len(self),) float32, clipped to its bounds; missing values are 0, never NaN."""
        values = (feature.read(view) for feature in self.features)
        finite = np.array([value if isfinite(value) else 0.0 for value in values], dtype=np.float32)
        return np.clip(finite, self._low, self._high)
