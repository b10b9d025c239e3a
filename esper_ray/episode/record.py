"""Records of an episode and of its epochs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from esper_ray.episode.rewards import score_of_record


@dataclass(frozen=True)
class EpochRecord:
    """One step: the decision, then the epoch that followed it. Losses in nats, accuracies in percent.

    Attributes:
        epoch: number of the epoch, from 1.
        decision: name of the action taken before it.
        stage: the slot's stage once the decision had taken effect: GERMINATED, FOSSILIZED and CULLED show here.
        stage_at_end: the slot's stage after the epoch's mechanical progress.
        alpha: share of the seed while the epoch was trained.
        contribution: counterfactual contribution in points; None while alpha is 0.
        probe_loss_change: change of the validation loss at alpha 0.1; in TRAINING only.
        gradient_norm, gradient_health, host_gradient_norm, seed_gradient_ratio: of the last batch; None without a
            live seed.
        rolled_back: why the governor rolled the epoch back, or None.
    """

    epoch: int
    decision: str
    stage: str
    stage_at_end: str
    alpha: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    contribution: float | None
    probe_loss_change: float | None
    gradient_norm: float | None
    gradient_health: float | None
    host_gradient_norm: float | None
    seed_gradient_ratio: float | None
    rolled_back: str | None
    reward: float
    reward_components: dict[str, float]


@dataclass
class EpisodeRecord:
    """One finished episode.

    Attributes:
        final_val_accuracy: of the host as it was after the last epoch, percent.
        kept_val_accuracy: of what is kept: a seed that is not FOSSILIZED is dropped first. Percent.
        kept_val_loss: of what is kept, nats.
        kept_blueprint: blueprint of the fossilized seed, or None.
        added_parameters: parameters of the fossilized seed, else 0.
        seconds: wall time of the episode.
        forced_beginning: epochs before the first real choice.
        taken_over: epochs that were not trained, because another episode of the same host seed had them.
        twin_epochs: epochs that its WAIT-only twin was trained for, unless another episode had done so.
        host: what distinguishes this host, where hosts differ.
        kept_test_accuracy: test accuracy of what is kept, percent; None unless the episode is part of a final report.
        rent: ρ of the score of record, points per doubling of the host.
        epochs: one record per epoch.
    """

    task: str
    episode_seed: int
    final_val_accuracy: float
    final_val_loss: float
    kept_val_accuracy: float
    kept_val_loss: float
    kept_blueprint: str | None
    final_stage: str
    host_parameters: int
    added_parameters: int
    rent: float
    seconds: float
    forced_beginning: int = 0
    taken_over: int = 0
    twin_epochs: int = 0
    host: dict[str, Any] = field(default_factory=dict)
    kept_test_accuracy: float | None = None
    epochs: list[EpochRecord] = field(default_factory=list)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the rewards."""
        return sum(epoch.reward for epoch in self.epochs)

    @property
    def val_score(self) -> float:
        """The score of record with validation in the place of test accuracy, points."""
        return score_of_record(self.kept_val_accuracy, self.added_parameters, self.host_parameters, self.rent)

    @property
    def test_score(self) -> float:
        """The score of record: kept test accuracy − ρ · doublings of the host, points."""
        assert self.kept_test_accuracy is not None, "the test accuracy has not been measured"
        return score_of_record(self.kept_test_accuracy, self.added_parameters, self.host_parameters, self.rent)

    @property
    def action_counts(self) -> dict[str, int]:
        """Number of times that each action was taken; actions never taken are left out."""
        return dict(Counter(epoch.decision for epoch in self.epochs))

    @property
    def trained_epochs(self) -> int:
        """Host epochs that the episode cost, its twin's included."""
        return len(self.epochs) - self.taken_over + self.twin_epochs

    @property
    def stages(self) -> list[str]:
        """The stage of every epoch, as the decision before it left it."""
        return [epoch.stage for epoch in self.epochs]

    @property
    def stages_reached(self) -> set[str]:
        """Every stage that the slot was in at some time."""
        return {stage for epoch in self.epochs for stage in (epoch.stage, epoch.stage_at_end)}

    @property
    def rollbacks(self) -> int:
        """Number of epochs that the governor rolled back."""
        return sum(epoch.rolled_back is not None for epoch in self.epochs)

    @property
    def reward_components(self) -> dict[str, float]:
        """The sum of each component over the episode."""
        totals: Counter[str] = Counter()
        for epoch in self.epochs:
            totals.update(epoch.reward_components)
        return dict(totals)

    def as_row(self) -> dict[str, Any]:
        """Returns the episode as one JSON object: totals first, then a list over the epochs for each measurement."""
        per_epoch = columns([asdict(epoch) for epoch in self.epochs])
        stages = per_epoch.pop("stage")
        own = {name: value for name, value in vars(self).items() if name != "epochs"}
        row = own | {
            "return": self.episode_return,
            "reward_components": self.reward_components,
            "action_counts": self.action_counts,
            "rollbacks": self.rollbacks,
            "stages": stages,
            "per_epoch": per_epoch,
        }
        cleaned: dict[str, Any] = json_safe(row)
        return cleaned


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Turns a list of equal dicts into a dict of lists; nested dicts likewise."""
    if not rows:
        return {}
    return {
        key: columns([row[key] for row in rows]) if isinstance(value, dict) else [row[key] for row in rows]
        for key, value in rows[0].items()
    }


def json_safe(value: Any) -> Any:
    """Returns `value` with floats rounded to seven significant digits and non-finite ones as None (strict JSON)."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if isfinite(value) else None
    if isinstance(value, dict):
        return {key: json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    return value
