"""The parts of a task. Every default stands here once; `registry.py` says where a task departs from it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HostSettings(_Settings):
    """The host network."""

    kind: Literal["cnn"] = "cnn"
    base_channels: int = Field(8, ge=1)
    """Channels of the first block; each further block doubles them."""
    blocks: int = Field(3, ge=1)
    """Blocks of convolution and pooling."""
    slot: str | None = None
    """Injection point of the slot. Unset: the host's default."""
    channels_last: bool = True
    """Memory layout of images and weights."""


class DataSettings(_Settings):
    """The data set and how much of it is used."""

    source: str
    """Name of the data source."""
    train_samples: int | None = Field(None, ge=1)
    """Training samples used. Unset: all."""
    validation_samples: int | None = Field(None, ge=1)
    """Validation samples used. Unset: all."""
    batch_size: int = Field(64, ge=1)
    """Samples per training batch."""


class DecisionSettings(_Settings):
    """When the action mask allows what. Epochs are completed epochs."""

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


class GovernorSettings(_Settings):
    """When training has failed and is rolled back. Shares are of the loss of a uniform guess."""

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


class RewardSettings(_Settings):
    """The reward."""

    mode: Literal["gain"] = "gain"
    """`gain`: pays each change of the accuracy that is attributed to the seed."""
    scale: float = Field(0.05, gt=0)
    """Factor on every component; brings returns to order 1 to 10."""
    gain_weight: float = Field(3.0, ge=0)
    """Reward per attributed percentage point."""
    kept_accuracy_weight: float = Field(0.05, ge=0)
    """Reward per percentage point of kept accuracy at the end."""
    rent: float = Field(1.0, ge=0)
    """ρ: percentage points that a doubling of the host's parameters must earn."""
    potential_weight: float = Field(0.3, ge=0)
    """Weight of the stage potential, which telescopes to 0 over an episode."""
    germinate_cost: float = Field(0.02, ge=0)
    fossilize_cost: float = Field(0.01, ge=0)
    cull_cost: float = Field(0.005, ge=0)
    rollback_penalty: float = Field(10.0, ge=0)
    """Reward lost when the governor rolls an epoch back."""
    discount: float = Field(1.0, gt=0, le=1)
    """γ of the episode's return; 1, because the episode is finite."""
