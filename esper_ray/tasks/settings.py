"""The parts of a task. Every default stands here once; `shipped.py` says where a task departs from it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from esper_ray.models import host_options


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HostSettings(_Settings):
    """The host network. Beside the fields here it has the options of its kind, each with its default.

    Raises:
        ConfigurationError: the kind or an option is unknown, or a value is not valid.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: str = "cnn"
    """Name of a registered host."""
    slot: str | None = None
    """Injection point of the slot. Unset: the host's default."""
    channels_last: bool = True
    """Memory layout of images and of the weights that meet them."""

    @model_validator(mode="before")
    @classmethod
    def _with_options_of_the_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        own = {name: value for name, value in given.items() if name in cls.model_fields}
        options = {name: value for name, value in given.items() if name not in cls.model_fields}
        return own | host_options(str(given.get("kind", cls.model_fields["kind"].default)), options)

    @property
    def options(self) -> dict[str, Any]:
        """Returns the options of the kind."""
        return dict(self.model_extra or {})


class DataSettings(_Settings):
    """The data set and how much of it is used."""

    source: str
    """Name of a registered data source."""
    train_samples: int | None = Field(None, ge=1)
    """Training samples of an epoch: of images always the first ones, of a text sequences from all over. Unset: all."""
    validation_samples: int | None = Field(None, ge=1)
    """Validation samples used. Unset: all."""
    batch_size: int = Field(64, ge=1)
    """Samples per training batch."""
    evaluation_batch_size: int = Field(1000, ge=1)
    """Samples per batch of validation and test; twice as many pass through the layers behind a blended seed."""
    augmentation: Literal["none", "crop_and_flip"] = "none"
    """Augmentation of training images. crop_and_flip: shift by up to 4 pixels, mirror every second one."""
    standardise: bool = True
    """Bring each channel of bytes (uint8) or floating-point inputs to mean 0 and deviation 1. Other integers, such as
    token ids, stay as they are; false: all inputs do, and bytes are integers as well."""
    mean: tuple[float, ...] | None = Field(None, min_length=1)
    """Mean to standardise with instead of the training split's, as for pretrained weights: one per channel or one for
    all, in the units of the stored values (of bytes 0 to 255). Integers are then standardised as well."""
    deviation: tuple[float, ...] | None = Field(None, min_length=1)
    """Standard deviation to go with `mean`."""
    sequence_length: int | None = Field(None, ge=1)
    """Tokens per sample of a text."""
    tokenizer: Literal["bytes", "gpt2", "auto"] = "bytes"
    """Tokenizer of a text. auto: GPT-2's where it is on this machine, else bytes; `config.json` says which it was."""
    hub: bool = False
    """Fetch the data set from the Hugging Face hub; needs the extra [hub]."""
    train_share: float = Field(1.0, gt=0, le=1)
    """Share of the training samples that a host sees; which ones follows from its seed."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Share of those samples that carry a wrong label, drawn from the host's seed."""

    @model_validator(mode="after")
    def _mean_and_deviation_agree(self) -> "DataSettings":
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("data.mean and data.deviation go together: give both, or neither")
        if self.mean is not None and not self.standardise:
            raise ValueError("data.mean is for standardising, which data.standardise=false turns off: leave one out")
        if min(self.deviation or [1.0]) <= 0:
            raise ValueError(f"data.deviation must be above 0, got {list(self.deviation or [])}")
        return self


class VarietySettings(_Settings):
    """Hosts that differ: each episode draws its own. Ranges are (lowest, highest)."""

    enabled: bool = False
    """Draw a host for each episode; as `--host-variety`. The fields below say from what."""
    hosts: tuple[dict[str, Any], ...] = ()
    """Options of the host that belong together, such as {blocks: 1, base_channels: 8}: one of these sets is drawn, all
    equally likely."""
    options: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Options of the host and the values that each is drawn from, all equally likely; they win over `hosts`."""
    any_slot: bool = True
    """Draw the injection point as well, all equally likely; else the task's."""
    lr_factor: tuple[float, float] = (0.5, 2.0)
    """Factor on the host's learning rate; its logarithm is uniform."""
    train_share: tuple[float, float] = (0.25, 1.0)
    """Factor on `data.train_share`, uniform."""
    label_noise: tuple[float, float] = (0.0, 0.2)
    """Addition to `data.label_noise`, uniform."""

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> "VarietySettings":
        limits = {"lr_factor": (1e-6, 1e6), "train_share": (1e-6, 1.0), "label_noise": (0.0, 0.999)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"variety.{name} must be (lowest, highest) within {least:g} to {most:g}, got {low, high}"
                )
        for option, values in self.options.items():
            if not values:
                raise ValueError(f"variety.options.{option} names no value to draw from")
        return self

    @property
    def drawn_options(self) -> tuple[str, ...]:
        """The options of the host that are drawn."""
        return tuple(dict.fromkeys([*(name for together in self.hosts for name in together), *self.options]))


class DecisionSettings(_Settings):
    """The actions and the conditions under which the mask allows them. Epochs are completed epochs."""

    blueprints: tuple[str, ...] | None = Field(None, min_length=1)
    """Blueprints that can germinate. Unset: all that fit the slot."""
    min_germination_epoch: int = Field(5, ge=0)
    """GERMINATE from this epoch on."""
    min_plateau: int = Field(3, ge=0)
    """GERMINATE once accuracy has gained less than 0.5 points in this many epochs in a row."""
    require_stabilised: bool = True
    """GERMINATE only once the host has stabilised (a latch, see `SignalTracker`)."""
    learned_share: float = Field(0.9, gt=0)
    """Epochs count toward stabilisation once the loss is below this share of a uniform guess."""
    min_cull_age: int = Field(10, ge=0)
    """CULL once the seed is this many epochs old."""


class HeuristicSettings(_Settings):
    """The heuristic policy. When it may germinate or cull at all is decided by the action mask."""

    cull_after: int = Field(5, ge=1)
    """CULL after this many epochs in a stage …"""
    cull_drop: float = Field(2.0, ge=0)
    """… if accuracy has fallen by more than this many points since the stage began."""
    penalty_per_cull: float = Field(2.0, ge=0)
    """Addition of a cull to the penalty of its blueprint."""
    penalty_decay: float = Field(0.5, ge=0, le=1)
    """Share of a penalty that is left after an epoch."""
    max_penalty: float = Field(3.0, gt=0)
    """A blueprint whose penalty has reached this is skipped."""


class GovernorSettings(_Settings):
    """Conditions under which training has failed and is rolled back. Shares are of the loss of a uniform guess."""

    snapshot_every: int = Field(5, ge=1)
    """Epochs between snapshots."""
    history: int = Field(20, ge=1)
    """Losses that mean and deviation are taken over."""
    min_history: int = Field(10, ge=1)
    """Losses that must be known before an explosion is called one."""
    explosion_loss: float = Field(12.0, gt=0)
    """An exploding loss is above this, …"""
    explosion_sigmas: float = Field(6.0, gt=0)
    """… above the mean by this many standard deviations, …"""
    explosion_ratio: float = Field(3.0, gt=0)
    """… and above this multiple of the mean, …"""
    explosion_patience: int = Field(3, ge=1)
    """… this many epochs in a row."""
    learned_share: float = Field(0.6, gt=0)
    """A host with a loss below this share has learned something …"""
    guessing_margin: float = Field(0.065, gt=0)
    """… and has collapsed to guessing when its loss is back within this margin of the guess."""


RewardMode = Literal["contribution", "gain", "loss", "sparse", "paired"]

_SCALES: dict[str, float] = {"contribution": 0.005, "gain": 0.05, "loss": 0.05, "sparse": 0.05, "paired": 0.1}


class RewardSettings(_Settings):
    """The reward."""

    mode: RewardMode = "gain"
    """Reward mode. `gain`: each change of the accuracy that is attributed to the seed; `loss`: each change of the loss;
    `sparse`: kept accuracy, at the end; `paired`: each change of the lead over a twin that only waits; `contribution`:
    the ancestor's, for comparison."""
    scale: float | None = Field(None, gt=0)
    """Factor on every component; brings returns to order 1 to 10. Unset: the mode's."""
    gain_weight: float = Field(3.0, ge=0)
    """`gain`, `contribution`: reward per attributed percentage point."""
    kept_accuracy_weight: float = Field(0.05, ge=0)
    """`gain`, `contribution`: reward per percentage point of accuracy at the end."""
    loss_weight: float = Field(5.0, ge=0)
    """`loss`: reward per typical change of the validation loss, and for reaching the target at the end."""
    typical_loss_delta: float = Field(0.05, gt=0)
    """`loss`: what a good epoch takes off the validation loss, nats."""
    target_loss: float = Field(0.0, ge=0)
    """`loss`: validation loss that a host of this kind could reach, nats."""
    rent: float = Field(1.0, ge=0)
    """ρ: what a doubling of the host's parameters must earn: percentage points, in the score of record as well; in
    `loss`, typical changes."""
    potential_weight: float = Field(0.3, ge=0)
    """`gain`, `loss`, `contribution`: weight of the stage potential, which telescopes to 0 over an episode."""
    germinate_cost: float = Field(0.02, ge=0)
    fossilize_cost: float = Field(0.01, ge=0)
    cull_cost: float = Field(0.005, ge=0)
    rollback_penalty: float = Field(10.0, ge=0)
    """Reward lost when the governor rolls an epoch back."""
    discount: float = Field(1.0, gt=0, le=1)
    """γ of the episode's return; 1, because the episode is finite."""

    @property
    def factor(self) -> float:
        """The factor on every component."""
        return self.scale or _SCALES[self.mode]
