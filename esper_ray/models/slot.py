"""The slot: holds at most one seed, runs it as its stage demands, and moves it through its life."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esper_ray.errors import LifecycleError
from esper_ray.lifecycle import (
    ACTIVE_STAGES,
    GateResult,
    LifecycleSettings,
    SeedStage,
    SeedState,
    blending_alpha,
    check_gate,
    is_legal_transition,
    refused,
)
from esper_ray.models.blueprints import build_seed
from esper_ray.models.incubation import straight_through
from esper_ray.models.probes import disturbed, mixes_samples, sees_later_positions
from esper_ray.seeding import forked_generators

_INCUBATING = frozenset({SeedStage.GERMINATED, SeedStage.TRAINING})
_PROBE_SIDE = 8


def to_memory_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Puts the weights of 2-D convolutions, and all else with four dimensions, into a memory layout."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=memory_format)


class SeedSlot(nn.Module):
    """A place in a host where a seed grows.

    Forward maps features (N, width, …) to features of the same shape: identity while empty; the host's features with
    a straight-through gradient for the seed while it incubates; `lerp(host, seed(host), alpha)` from BLENDING on.

    Args:
        width: feature width at the injection point (channels of a cnn, model width of a transformer).
        topology: kind of the features: "cnn", "transformer", or one of a user's own.
        settings: resolved lifecycle settings (`LifecycleSettings.resolved`).
        causal: seeds are to be causal: no position may depend on a later one.
    """

    def __init__(self, width: int, topology: str, settings: LifecycleSettings, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.width = width
        self.topology = topology
        self.settings = settings
        self.seed: nn.Module | None = None
        self.state: SeedState | None = None
        self.channels_last = False
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self._anchor: Tensor
        self._forced_alpha: float | None = None
        self._paired = False
        self._isolation_probe: dict[str, Tensor] = {}
        self._feature_shape: tuple[int, ...] | None = None

    # --- what the slot holds -------------------------------------------------------------------------------------

    @property
    def stage(self) -> SeedStage:
        """The seed's stage; DORMANT while the slot is empty."""
        return SeedStage.DORMANT if self.state is None else self.state.stage

    @property
    def is_empty(self) -> bool:
        """True if a seed may germinate: no seed, no embargo."""
        return self.stage == SeedStage.DORMANT

    @property
    def is_active(self) -> bool:
        """True while a live seed (GERMINATED to PROBATIONARY) sits in the slot."""
        return self.stage in ACTIVE_STAGES

    @property
    def alpha(self) -> float:
        """Share of the seed in the output, 0 to 1; inside `force_alpha` the forced value."""
        if self.seed is None or self.state is None:
            return 0.0
        return self.state.alpha if self._forced_alpha is None else self._forced_alpha

    @property
    def is_incubating(self) -> bool:
        """True while the seed learns on the host's gradient without a part in the output."""
        return self.seed is not None and self.stage in _INCUBATING and self._forced_alpha is None

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of the weights and features of images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def feature_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's features, as the host first brought them here; None until it has."""
        return self._feature_shape

    # --- forward -------------------------------------------------------------------------------------------------

    def forward(self, features: Tensor) -> Tensor:
        if self._feature_shape is None:
            if not features.is_floating_point():
                raise LifecycleError(
                    f"features of type {features.dtype} reach the slot, but a seed needs floating-point ones: move the "
                    "injection point, as behind an embedding"
                )
            self._feature_shape = tuple(features.shape[1:])
        if self.seed is None or self.state is None:
            return features
        if self.state.stage in _INCUBATING and self._forced_alpha is None:
            return self._incubate(features) if self.training else features
        blended = self._blend(features)
        return torch.cat([blended, features]) if self._paired else blended

    def _blend(self, features: Tensor) -> Tensor:
        assert self.seed is not None
        alpha = self.alpha
        if alpha == 0.0:
            return features
        grown: Tensor = self.seed(features)
        return grown if alpha == 1.0 else torch.lerp(features, grown, alpha)

    def _incubate(self, features: Tensor) -> Tensor:
        """Shows the host its own features, and the seed the task's gradient.

        The detached input requires a gradient because on torch 2.13.0 (CPU) the backward of GroupNorm ends the
        process when its input is channels_last and requires none. What the seed draws from the generators is put
        back, so that the host's own dropout is that of a run without the seed.
        """
        assert self.seed is not None
        entering = features.view_as(features)
        with forked_generators(features.device):
            grown = self.seed(entering.detach().requires_grad_())
        leaving = straight_through(entering, grown)
        if entering.requires_grad:
            entering.register_hook(lambda gradient: self._isolation_probe.update(entering=gradient))
            leaving.register_hook(lambda gradient: self._isolation_probe.update(leaving=gradient))
        return leaving

    def take_probe(self, gradients: dict[str, Tensor]) -> None:
        """Stores the gradients that `isolation_violated` compares, of a pass in which this slot was a part."""
        self._isolation_probe.update(gradients)

    def isolation_violated(self) -> bool:
        """Returns whether, in the last backward pass of incubation, the seed changed the host's gradient.

        The gradient that reaches the host's features must be the very one that arrived at the slot's output. (The
        gradient at the seed's detached input cannot tell: it is non-zero whenever the seed learns.) Reads the device
        once.
        """
        probe = self._isolation_probe
        if "entering" not in probe or "leaving" not in probe:
            return False
        violated = not torch.equal(probe["entering"], probe["leaving"])
        probe.clear()
        return violated

    @contextmanager
    def force_alpha(self, value: float) -> Iterator[None]:
        """Blends with alpha `value` (0 to 1) inside the context, whatever the stage; for counterfactual evaluation."""
        if not 0.0 <= value <= 1.0:
            raise LifecycleError(f"alpha must be between 0 and 1, got {value}")
        before = self._forced_alpha
        self._forced_alpha = value
        try:
            yield
        finally:
            self._forced_alpha = before

    @contextmanager
    def paired_output(self) -> Iterator[None]:
        """Appends, inside the context, the host's own features to the blended ones along the batch dimension.

        The host's later layers then see (2N, …): the first half with the seed, the second without. The layers before
        the slot run once. Only for evaluation, where no layer mixes samples.
        """
        assert not self.training, "paired output is for evaluation: batch statistics would mix the halves"
        self._paired = True
        try:
            yield
        finally:
            self._paired = False

    # --- lifecycle -----------------------------------------------------------------------------------------------

    def germinate(self, blueprint_id: str, seed_id: str) -> SeedState:
        """Builds a seed of `blueprint_id` into the empty slot.

        Raises:
            LifecycleError: the slot is occupied or embargoed, an id is empty, or the module changes the feature shape.
            ConfigurationError: the blueprint is unknown.
        """
        if not self.is_empty:
            raise LifecycleError(f"the slot is not empty: its seed is {self.stage.name}")
        state = SeedState(seed_id, blueprint_id, stage=SeedStage.DORMANT)
        gate = check_gate(SeedStage.GERMINATED, state, self.settings)
        if not gate.passed:
            raise LifecycleError(gate.message)
        seed = build_seed(blueprint_id, self.topology, self.width, self.causal)
        to_memory_format(seed.to(self._anchor), self.memory_format)
        self.require_fits(seed, blueprint_id)
        self.seed = seed.train(self.training)
        self.state = state
        state.enter(SeedStage.GERMINATED)
        return state

    def place_fossil(self, blueprint_id: str, seed_id: str) -> SeedState:
        """Builds a seed straight into its final stage, for weights that were grown elsewhere; errors of `germinate`."""
        state = self.germinate(blueprint_id, seed_id)
        state.enter(SeedStage.FOSSILIZED)
        state.alpha = 1.0
        return state

    def advance_stage(self, target: SeedStage) -> GateResult:
        """Moves the seed to `target` if the transition is legal and its gate passes; else changes nothing."""
        state = self.state
        if target == SeedStage.GERMINATED:
            return refused(target, "a seed is built by germinate(), not by a change of stage")
        if state is None or not is_legal_transition(state.stage, target):
            return refused(target, f"no transition from {self.stage.name} to {target.name}")
        gate = check_gate(target, state, self.settings)
        if not gate.passed:
            return gate
        state.enter(target)
        if target == SeedStage.BLENDING:
            self._take_blending_step()
        elif target == SeedStage.FOSSILIZED:
            state.alpha = 1.0
            if self.settings.freeze_fossilized:
                for parameter in self.parameters():
                    parameter.requires_grad_(False)
        elif target == SeedStage.CULLED:
            self._discard_seed()
            state.embargo_left = self.settings.embargo_epochs
        return gate

    def cull(self, reason: str) -> GateResult:
        """Removes a live seed and puts the slot under embargo; a fossilized seed stays and the result says so."""
        result = self.advance_stage(SeedStage.CULLED)
        if result.passed:
            assert self.state is not None
            self.state.cull_reason = reason
        return result

    def step_epoch(self) -> GateResult | None:
        """Makes the mechanical progress of one epoch; call it once per epoch, after validation.

        Returns:
            the last gate that was asked, or None if no move was due.
        """
        state = self.state
        if state is None:
            return None
        state.epochs_in_stage += 1
        if self.is_active:
            state.age += 1
        settings = self.settings
        assert settings.training_dwell is not None and settings.shadowing_dwell is not None
        match state.stage:
            case SeedStage.GERMINATED:
                return self.advance_stage(SeedStage.TRAINING)
            case SeedStage.TRAINING if state.epochs_in_stage >= settings.training_dwell:
                return self.advance_stage(SeedStage.BLENDING)
            case SeedStage.BLENDING if state.blending_step < settings.blending_steps:
                self._take_blending_step()
                return None
            case SeedStage.BLENDING:
                return self.advance_stage(SeedStage.SHADOWING)
            case SeedStage.SHADOWING if state.epochs_in_stage >= settings.shadowing_dwell:
                return self.advance_stage(SeedStage.PROBATIONARY)
            case SeedStage.CULLED | SeedStage.EMBARGOED:
                return self._step_embargo(state)
            case _:
                return None

    def _step_embargo(self, state: SeedState) -> GateResult | None:
        result: GateResult | None = None
        if state.stage == SeedStage.CULLED:
            result = self.advance_stage(SeedStage.EMBARGOED)
        state.embargo_left = max(0, state.embargo_left - 1)
        if state.embargo_left == 0:
            self.advance_stage(SeedStage.RESETTING)
            result = self.advance_stage(SeedStage.DORMANT)
        return result

    def _take_blending_step(self) -> None:
        """Raises alpha by one step. The first is taken on entering BLENDING, so no epoch is spent at alpha 0."""
        assert self.state is not None
        self.state.blending_step += 1
        self.state.alpha = blending_alpha(
            self.state.blending_step, self.settings.blending_steps, self.settings.blending_temperature
        )

    def _discard_seed(self) -> None:
        assert self.state is not None
        self.seed = None
        self.state.alpha = 0.0
        self._isolation_probe.clear()

    def require_fits(self, seed: nn.Module, blueprint_id: str) -> None:
        """Trains a copy of a new seed for one step on a probe of the slot's features, as far as their shape is known.

        Raises:
            LifecycleError: it has nothing to train, fails on such features, or changes their shape or type.
        """
        if not any(parameter.requires_grad for parameter in seed.parameters()):
            raise LifecycleError(f"blueprint '{blueprint_id}' has no trainable parameter, so it could learn nothing")
        known = self._feature_shape or self._usual_feature_shape()
        if known is None:
            return
        shape = (1, *known)
        try:
            with forked_generators(self._anchor.device), torch.enable_grad():
                probe = torch.zeros(shape, device=self._anchor.device, dtype=self._anchor.dtype, requires_grad=True)
                after = copy.deepcopy(seed).to(self._anchor).train()(probe)
                after.sum().backward()
        except Exception as error:
            raise LifecycleError(
                f"blueprint '{blueprint_id}' fails on features of shape {shape}: {type(error).__name__}: {error}"
            ) from error
        if tuple(after.shape) != shape:
            raise LifecycleError(
                f"blueprint '{blueprint_id}' must keep the feature shape: expected {shape}, got {tuple(after.shape)}"
            )
        if after.dtype != probe.dtype:
            raise LifecycleError(
                f"blueprint '{blueprint_id}' must keep the type of the features: expected {probe.dtype}, "
                f"got {after.dtype}"
            )

    def require_sound_on(self, features: Tensor, seed: nn.Module, blueprint_id: str, may_see_later: bool) -> None:
        """Tries a copy of a new seed on features that the host has brought, in their own memory layout.

        Args:
            features: (2, …), of two samples.
            may_see_later: a position may depend on a later one.

        Raises:
            LifecycleError: it fails on them, mixes samples, or lets a position depend on a later one against the rule.
        """
        trial = disturbed(seed.to(self._anchor))
        to_memory_format(trial, self.memory_format)
        try:
            with torch.enable_grad():
                trial.train()(features.detach().clone().requires_grad_()).sum().backward()
        except Exception as error:
            raise LifecycleError(
                f"blueprint '{blueprint_id}' fails on features of shape {tuple(features.shape)} and strides "
                f"{features.stride()}: {type(error).__name__}: {error}"
            ) from error
        trial.eval()
        if mixes_samples(trial, features[:1], torch.rand_like(features[:1])):
            raise LifecycleError(
                f"blueprint '{blueprint_id}' mixes the samples of a batch: what it makes of one depends on the others; "
                "the first dimension is that of the samples, as with batch_first=True"
            )
        if not may_see_later and features.dim() == 3 and sees_later_positions(trial, features):
            raise LifecycleError(
                f"blueprint '{blueprint_id}' lets a position depend on later ones, so that it would see what the "
                "host is to predict: give its factory a parameter `causal` and mask them"
            )

    def _usual_feature_shape(self) -> tuple[int, ...] | None:
        """Returns a typical feature shape of a shipped topology, for use before the host has brought any features."""
        shapes = {"cnn": (self.width, _PROBE_SIDE, _PROBE_SIDE), "transformer": (_PROBE_SIDE, self.width)}
        return shapes.get(self.topology)
