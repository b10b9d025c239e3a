"""The state of one seed."""

from dataclasses import dataclass

from esper_ray.lifecycle.stages import SeedStage


@dataclass
class SeedState:
    """The life of one seed so far. `SeedSlot` moves the stage; the episode loop fills in the measurements.

    Accuracies and contributions are percentage points, ages are epochs.
    """

    seed_id: str
    blueprint_id: str
    stage: SeedStage = SeedStage.UNKNOWN
    alpha: float = 0.0
    age: int = 0
    """Epochs since germination."""
    epochs_in_stage: int = 0
    blending_step: int = 0
    embargo_left: int = 0
    isolation_violations: int = 0
    gradient_ratio: float | None = None
    """Smoothed seed-gradient ratio; None until the first measurement."""
    gradient_health: float = 1.0
    contribution: float | None = None
    """Last counterfactual contribution; None until alpha has been above 0 for an epoch."""
    accuracy_at_stage_start: float | None = None
    last_accuracy: float | None = None
    cull_reason: str | None = None

    _RATIO_MEMORY = 0.9

    @property
    def improvement_in_stage(self) -> float:
        """Validation accuracy gained since the present stage began; 0 until it is known."""
        if self.last_accuracy is None or self.accuracy_at_stage_start is None:
            return 0.0
        return self.last_accuracy - self.accuracy_at_stage_start

    def enter(self, stage: SeedStage) -> None:
        """Moves to `stage`; the caller has checked that it may."""
        self.stage = stage
        self.epochs_in_stage = 0
        self.accuracy_at_stage_start = self.last_accuracy

    def record_gradient_ratio(self, ratio: float) -> None:
        """Adds one epoch's seed-gradient ratio. The moving average starts at its first value, not at 0."""
        if self.gradient_ratio is None:
            self.gradient_ratio = ratio
        else:
            self.gradient_ratio = self._RATIO_MEMORY * self.gradient_ratio + (1 - self._RATIO_MEMORY) * ratio
