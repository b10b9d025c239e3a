"""A task: everything that an episode depends on besides the policy and the seed."""

from collections.abc import Mapping
from math import log
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from esper_ray.data import VOCABULARIES
from esper_ray.errors import ConfigurationError
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.models import host_options
from esper_ray.tasks.settings import (
    DataSettings,
    DecisionSettings,
    GovernorSettings,
    HeuristicSettings,
    HostSettings,
    RewardSettings,
    VarietySettings,
)
from esper_ray.training import OptimizerSettings


class TaskSpec(BaseModel):
    """A named task. Change a copy with `get_task_spec(name, overrides)`; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    task_type: Literal["classification", "lm"] = "classification"
    """Prediction: a class for each sample, or ("lm") the next token at each place of a text."""
    input_shape: tuple[int, ...] = ()
    """Shape of one sample, (channels, height, width) of an image; of a text it follows from `data.sequence_length`."""
    classes: int = 0
    """Number of classes; of a text, of tokens: it follows from `data.tokenizer`."""
    max_epochs: int = Field(25, ge=1)
    """Epochs of one episode: its budget, after which it terminates."""
    lr_decay_epochs: int = Field(5, ge=0)
    """Last epochs, over which the host's learning rate falls, so that the final accuracy is steady."""
    episodes_per_iteration: int = Field(32, ge=1)
    """Episodes per learner update, unless the run says otherwise."""
    data: DataSettings
    host: HostSettings = HostSettings()
    variety: VarietySettings = VarietySettings()
    host_optimizer: OptimizerSettings = OptimizerSettings(lr=0.01, weight_decay=5e-4)
    seed_optimizer: OptimizerSettings = OptimizerSettings(lr=0.01)
    lifecycle: LifecycleSettings = LifecycleSettings()
    decisions: DecisionSettings = DecisionSettings()
    heuristic: HeuristicSettings = HeuristicSettings()
    governor: GovernorSettings = GovernorSettings()
    reward: RewardSettings = RewardSettings()

    @model_validator(mode="before")
    @classmethod
    def _shape_of_a_text(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("task_type") != "lm":
            return given
        data = given.get("data")
        settings = data.model_dump() if isinstance(data, DataSettings) else data
        if not isinstance(settings, dict) or settings.get("sequence_length") is None:
            raise ValueError("a task of type lm needs data.sequence_length")
        vocabulary = VOCABULARIES.get(str(settings.get("tokenizer")), VOCABULARIES["bytes"])
        return {**given, "input_shape": (settings["sequence_length"],), "classes": vocabulary}

    @model_validator(mode="after")
    def _settings_fit_the_kind_of_data(self) -> "TaskSpec":
        if not self.input_shape or self.classes < 2:
            raise ValueError(f"task {self.name} needs input_shape, and classes of at least 2")
        if self.task_type != "lm" and self.data.sequence_length is not None:
            raise ValueError("data.sequence_length is for texts; a task of type classification has none")
        if self.task_type == "lm" and self.data.mean is not None:
            raise ValueError("data.mean is for samples; a text has tokens, which stay as they are")
        if len(self.input_shape) != 3 and self.data.augmentation != "none":
            raise ValueError(f"data.augmentation={self.data.augmentation} is for images; use none")
        noise = self.data.label_noise + (self.variety.label_noise[1] if self.variety.enabled else 0.0)
        if self.task_type == "lm" and noise > 0:
            raise ValueError(
                "label noise is for labelled samples; a text has none: data.label_noise=0, variety.label_noise=[0, 0]"
            )
        if noise >= 1:
            raise ValueError("data.label_noise and the upper end of variety.label_noise come to 1 or more")
        return self

    @property
    def uniform_loss(self) -> float:
        """Loss of a uniform guess, in nats."""
        return log(self.classes)

    @property
    def earliest_germination(self) -> int:
        """First epoch after which a seed can germinate. The first epoch has no delta yet."""
        plateau = self.decisions.min_plateau + 1 if self.decisions.min_plateau else 0
        stabilised = 4 if self.decisions.require_stabilised else 0
        return max(self.decisions.min_germination_epoch, plateau, stabilised)

    @property
    def earliest_probation(self) -> int:
        """First epoch after which a seed can be PROBATIONARY."""
        return self.earliest_germination + self.lifecycle.epochs_to_probation(self.max_epochs)

    @model_validator(mode="after")
    def _optimizers_agree(self) -> "TaskSpec":
        if self.host_optimizer.kind != self.seed_optimizer.kind:
            raise ValueError("host_optimizer and seed_optimizer must be of one kind: a fossilized seed changes hands")
        return self

    @model_validator(mode="after")
    def _hosts_can_be_drawn(self) -> "TaskSpec":
        if self.variety.enabled and self.variety.any_slot and self.host.slot is not None:
            raise ValueError("the slot is drawn for each host; to have it at one point, set variety.any_slot=false")
        single = ({option: value} for option, values in self.variety.options.items() for value in values)
        for drawn in (*self.variety.hosts, *single):
            host_options(self.host.kind, {**self.host.options, **drawn})
        return self

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> "TaskSpec":
        if self.reward.mode == "loss" and self.reward.target_loss >= self.uniform_loss:
            raise ValueError(
                f"reward.target_loss={self.reward.target_loss:g} must be below the loss of a uniform guess, "
                f"{self.uniform_loss:.2f} nats for {self.classes} classes"
            )
        return self

    def require_reachable_probation(self) -> None:
        """Refuses a task in which no seed can become PROBATIONARY in time for a decision.

        Raises:
            ConfigurationError: it says how many epochs would do.
        """
        if self.earliest_probation >= self.max_epochs:
            raise ConfigurationError(
                f"no seed can reach PROBATIONARY in time: germination opens after epoch {self.earliest_germination}, "
                f"a seed is PROBATIONARY {self.earliest_probation - self.earliest_germination} epochs later, and the "
                f"last decision falls after epoch {self.max_epochs - 1}; use at least --max-epochs "
                f"{self._sufficient_epochs()}"
            )

    def _sufficient_epochs(self) -> int:
        epochs = self.max_epochs
        while self.earliest_germination + self.lifecycle.epochs_to_probation(epochs) >= epochs:
            epochs += 1
        return epochs
