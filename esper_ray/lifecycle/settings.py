"""Thresholds and durations of the seed lifecycle."""

from pydantic import BaseModel, ConfigDict, Field


class LifecycleSettings(BaseModel):
    """Durations are in epochs, accuracies in percentage points. Every default stands here once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_dwell: int | None = Field(None, ge=1)
    """Epochs in TRAINING before G2 is asked. Unset: a tenth of the episode, at least 1."""
    shadowing_dwell: int | None = Field(None, ge=1)
    """Epochs in SHADOWING before G4 is asked. Unset: a tenth of the episode, at least 1."""
    blending_steps: int = Field(5, ge=1)
    """Steps of the alpha ramp, one an epoch."""
    blending_temperature: float = Field(1.0, gt=0)
    """Width of the alpha sigmoid, in steps."""
    min_blending_epochs: int = Field(3, ge=1)
    """G3: epochs in BLENDING at least."""
    min_blending_alpha: float = Field(0.95, ge=0, le=1)
    """G3: alpha at least."""
    max_isolation_violations: int = Field(10, ge=0)
    """G2: epochs in TRAINING, at most, in which the seed disturbed the host's gradient."""
    min_gradient_ratio: float = Field(0.05, ge=0)
    """G2: smoothed seed-gradient ratio at least. It stops dead seeds."""
    min_training_improvement: float | None = None
    """G2: gain in validation accuracy since TRAINING began, at least. Unset: not asked."""
    min_healthy_gradient: float = Field(0.5, ge=0, le=1)
    """A seed whose last gradient health is below this is not healthy, and G5 refuses it."""
    embargo_epochs: int = Field(5, ge=0)
    """Epochs after CULL in which nothing germinates."""
    freeze_fossilized: bool = False
    """Keep a fossilized seed's weights fixed instead of training them on with the host."""

    def resolved(self, max_epochs: int) -> "LifecycleSettings":
        """Returns the settings with the dwells of an episode of `max_epochs` epochs filled in."""
        tenth = max(1, max_epochs // 10)
        return self.model_copy(
            update={
                "training_dwell": self.training_dwell or tenth,
                "shadowing_dwell": self.shadowing_dwell or tenth,
            }
        )

    def epochs_to_probation(self, max_epochs: int) -> int:
        """Returns the epochs between germination and PROBATIONARY when every gate passes at once."""
        settings = self.resolved(max_epochs)
        assert settings.training_dwell is not None and settings.shadowing_dwell is not None
        blending = max(settings.blending_steps, settings.min_blending_epochs)
        return settings.training_dwell + blending + settings.shadowing_dwell
