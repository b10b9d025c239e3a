"""A host and its slot, joined into one model."""

from numbers import Integral

import torch
from torch import Tensor, nn

from esper_ray.errors import ConfigurationError, EsperError, unknown_name
from esper_ray.lifecycle import GateResult, LifecycleSettings, SeedStage, SeedState
from esper_ray.models.blueprints import build_seed, list_blueprints, registered_blueprints, topologies
from esper_ray.models.probes import mixes_samples
from esper_ray.models.slot import SeedSlot, to_memory_format
from esper_ray.seeding import seeded


def injection_points(host: nn.Module) -> dict[str, int]:
    """Returns the injection points of a host, slot id → feature width.

    Raises:
        ConfigurationError: it has none, or cannot take a slot.
    """
    name, points = type(host).__name__, getattr(host, "injection_points", None)
    if not points:
        raise ConfigurationError(
            f"host {name} has no injection points; give it `injection_points`, a dict of slot id → feature width"
        )
    if not isinstance(points, dict) or not all(isinstance(w, Integral) and int(w) > 0 for w in points.values()):
        raise ConfigurationError(
            f"host {name} has wrong injection points: expected a dict of slot id → feature width, got {points!r}"
        )
    if not callable(getattr(host, "register_slot", None)):
        raise ConfigurationError(f"host {name} cannot take a slot; give it `register_slot(slot_id, module)`")
    return points


class MorphogeneticModel(nn.Module):
    """A host that a seed can grow in.

    Any module can be the host if it has `injection_points: dict[str, int]` (slot id → feature width) and
    `register_slot(slot_id, module)`. It may have `topology` ("cnn" unless it says otherwise; features are then
    (N, width, …), of any other topology (N, …, width)) and `default_slot`.

    Args:
        host: the host network.
        slot_id: injection point of the slot; unset: the host's `default_slot`, or else its first.
        settings: resolved lifecycle settings; unset: the defaults, with dwells of one epoch.
        channels_last: keep images and weights in channels-last layout, which is faster for convolutions.
        causal: no position of the host depends on a later one, and so none may in a seed (`probes.is_causal`).

    Raises:
        ConfigurationError: the host has no injection points, or not this one, or cannot take a slot there.
    """

    def __init__(
        self,
        host: nn.Module,
        slot_id: str | None = None,
        settings: LifecycleSettings | None = None,
        channels_last: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__()
        name, points = type(host).__name__, injection_points(host)
        self.slot_id = slot_id or str(getattr(host, "default_slot", next(iter(points))))
        if self.slot_id not in points:
            raise ConfigurationError(unknown_name("injection point", self.slot_id, points))
        settings = settings or LifecycleSettings().resolved(max_epochs=1)
        self.seed_slot = SeedSlot(points[self.slot_id], str(getattr(host, "topology", "cnn")), settings, causal)
        weights = (parameter for parameter in host.parameters() if parameter.is_floating_point())
        self.seed_slot.to(next(weights, torch.empty(0)).dtype)
        self.host = host
        try:
            host.register_slot(self.slot_id, self.seed_slot)  # type: ignore[operator]
        except EsperError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"host {name} cannot take a slot at '{self.slot_id}': register_slot raises "
                f"{type(error).__name__}: {error}"
            ) from error
        if all(module is not self.seed_slot for module in host.modules()):
            raise ConfigurationError(
                f"host {name} does not hold the module of its slot as a submodule, so that its weights would be lost; "
                "keep it in an attribute or an nn.ModuleDict"
            )
        self._pairs: bool | None = None
        if channels_last:
            to_memory_format(self, torch.channels_last)
            self.seed_slot.channels_last = True  # not as a torch.memory_format, which cannot be pickled

    def require_sound(self, inputs: Tensor, output_shape: tuple[int, ...]) -> None:
        """Runs the host once, in evaluation mode, and checks it and the blueprints of its topology.

        Args:
            inputs: samples (N, …), such as the task's.
            output_shape: shape of the outputs that the host must return for them.

        Raises:
            ConfigurationError: the host fails on them, does not run its slot, brings it features of another width, or
                returns outputs of another shape, or mixes samples; or there is no blueprint for its topology, or one
                cannot be built.
            LifecycleError: a blueprint fails on the features, changes their shape, mixes samples, or is not causal in a
                causal host.
        """
        name, slot = type(self.host).__name__, self.seed_slot
        self.eval()
        try:
            with torch.no_grad():
                outputs = self(inputs)
        except EsperError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"host {name} fails on inputs of shape {tuple(inputs.shape)}: {type(error).__name__}: {error}"
            ) from error
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found != output_shape:
            raise ConfigurationError(f"host {name} must return logits of shape {output_shape}, got {found}")
        if slot.feature_shape is None:
            raise ConfigurationError(f"host {name} does not run the module that it was given for '{self.slot_id}'")
        width = slot.feature_shape[0 if slot.topology == "cnn" else -1]
        if width != slot.width:
            raise ConfigurationError(
                f"host {name} states width {slot.width} for '{self.slot_id}', but brings features {slot.feature_shape}"
            )
        if not registered_blueprints(slot.topology):
            raise ConfigurationError(
                f"no blueprint is registered for the topology '{slot.topology}' of host {name}, so nothing could grow: "
                f"{unknown_name('topology', slot.topology, topologies())}"
            )
        features = self._features_of_two(inputs)
        for blueprint in list_blueprints(slot.topology, slot.width, inputs.device):
            name = blueprint.blueprint_id
            with seeded(0):
                seed = build_seed(name, slot.topology, slot.width, slot.causal)
                slot.require_fits(seed, name)
                slot.require_sound_on(features, seed, name, may_see_later=len(output_shape) < 3 or not slot.causal)

    def _features_of_two(self, inputs: Tensor) -> Tensor:
        """Returns the features (2, …) of two samples as the host brings them to the slot, in the host's own layout.

        Raises:
            ConfigurationError: what the host makes of one sample depends on the other.
        """
        other = torch.rand_like(inputs) if inputs.is_floating_point() else inputs.flip(-1)
        if torch.equal(inputs, other):
            other = 1 - inputs.clamp(max=1)
        found: list[Tensor] = []
        handle = self.seed_slot.register_forward_hook(lambda _module, args, _output: found.append(args[0]))
        try:
            mixes = mixes_samples(self, inputs, other)
        finally:
            handle.remove()
        if mixes:
            raise ConfigurationError(
                f"host {type(self.host).__name__} mixes the samples of a batch: in evaluation mode, what it makes of "
                "one depends on the others; the first dimension is that of the samples, as with batch_first=True"
            )
        return found[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=self.seed_slot.memory_format)
        outputs: Tensor = self.host(inputs)
        return outputs

    def forward_with_counterfactual(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the outputs as they are and as they would be at alpha 0, in evaluation mode.

        The layers before the slot run once, those after it on a batch of twice the size. A host that cannot take that,
        because it adds what was before the slot to what is behind it, runs twice.

        Shape:
            inputs (N, …); both results as of `forward`.
        """
        if self.seed_slot.alpha == 0.0:
            outputs = self(inputs)
            return outputs, outputs
        if self._pairs is None:
            self._pairs = self._can_pair(torch.cat([inputs[:1], inputs[-1:]]))
        return self._paired(inputs) if self._pairs else self._one_by_one(inputs)

    def _paired(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with self.seed_slot.paired_output():
            with_seed, without_seed = self(inputs).chunk(2)
        return with_seed, without_seed

    def _one_by_one(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with_seed = self(inputs)
        with self.seed_slot.force_alpha(0.0):
            return with_seed, self(inputs)

    def _can_pair(self, inputs: Tensor) -> bool:
        """Returns whether one pass with paired output gives the outputs of two passes; inputs are two samples."""
        expected = self._one_by_one(inputs)
        try:
            found = self._paired(inputs)
        except Exception:  # whatever a host raises over a batch that is not as long as its inputs
            return False
        pairs = zip(expected, found, strict=True)
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)

    @property
    def seed_state(self) -> SeedState | None:
        """State of the present seed; None before the first germination."""
        return self.seed_slot.state

    @property
    def has_active_seed(self) -> bool:
        """True while a live seed, GERMINATED to PROBATIONARY, sits in the slot."""
        return self.seed_slot.is_active

    @property
    def active_seed_params(self) -> int:
        """Number of parameters of the module in the slot, live or fossilized; 0 while it is empty."""
        return sum(parameter.numel() for parameter in self.get_seed_parameters())

    def germinate_seed(self, blueprint_id: str, seed_id: str) -> SeedState:
        """Builds a seed in the slot; see `SeedSlot.germinate` for the errors."""
        return self.seed_slot.germinate(blueprint_id, seed_id)

    def cull_seed(self, reason: str = "culled") -> GateResult:
        """Removes a live seed; see `SeedSlot.cull`."""
        return self.seed_slot.cull(reason)

    def kept_weights(self) -> dict[str, Tensor]:
        """Returns copies, on the CPU, of the kept network's weights and buffers: the host and a FOSSILIZED seed."""
        fossilized = self.seed_slot.stage == SeedStage.FOSSILIZED
        of_slot = {id(tensor) for tensor in self.seed_slot.state_dict(keep_vars=True).values()}
        everything = self.host.state_dict(keep_vars=True)
        kept = {name: tensor for name, tensor in everything.items() if fossilized or id(tensor) not in of_slot}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in kept.items()}

    def load_kept_weights(self, weights: dict[str, Tensor], blueprint_id: str | None) -> None:
        """Loads weights of `kept_weights`, with a fossilized seed of `blueprint_id` in the empty slot.

        Raises:
            ConfigurationError: the weights are another host's, or the blueprint is unknown.
        """
        if blueprint_id is not None:
            self.seed_slot.place_fossil(blueprint_id, "kept")
        try:
            self.host.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(f"these weights do not fit host {type(self.host).__name__}: {reason}") from error

    def get_seed_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the module in the slot."""
        return list(self.seed_slot.parameters())

    def get_host_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the host without the slot's."""
        of_slot = {id(parameter) for parameter in self.seed_slot.parameters()}
        return [parameter for parameter in self.host.parameters() if id(parameter) not in of_slot]
