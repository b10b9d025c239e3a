"""Several models of one structure as one network: the hosts lie side by side in the channels.

Small networks are bound by the cost of launching operations, so one network of K·C channels is far cheaper than K
networks of C. Convolutions and norms take K times their groups, linear layers one product for each host; nothing mixes
the hosts.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from esper_ray.models.incubation import straight_through
from esper_ray.models.morphogenetic import MorphogeneticModel
from esper_ray.models.slot import SeedSlot, to_memory_format
from esper_ray.seeding import seeded

_OF_EACH = "_of_each"
_GROUPED = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)


class CannotJoinError(Exception):
    """A network has a part that cannot be joined with others of its kind."""


@dataclass(frozen=True)
class Part:
    """A joined tensor and, in the order in which they lie in it, those of the models."""

    whole: Tensor
    each: list[Tensor]
    models: range

    def load(self) -> None:
        """Copies the models' values into the joined tensor."""
        self.whole.copy_(joined(self.each))
        if isinstance(self.whole, nn.Parameter):
            self.whole.requires_grad_(self.each[0].requires_grad)

    def unstacked(self, whole: Tensor | None = None) -> list[Tensor]:
        """Returns the part of each model, of the joined tensor or of one like it; views."""
        return unstacked(self.whole if whole is None else whole, self.each)


def can_be_joined(model: MorphogeneticModel, shape: Sequence[int]) -> bool:
    """Returns whether models like this one, with seeds like its, come to the same as one network as one by one.

    It is tried out: a network from elsewhere may mix its channels, or draw at random, in ways that its layers do not
    tell. On the CPU, because a GPU may round products to TF32 or not, depending on their shapes.

    Args:
        shape: of an input, (channels, height, width).
    """
    with seeded(0), torch.no_grad():
        try:
            return _gives_same_results(copy.deepcopy(model).cpu(), torch.randn(4, 2, *shape))
        except Exception:  # whatever a network raises that is wider than it was made
            return False


def _gives_same_results(model: MorphogeneticModel, inputs: Tensor) -> bool:
    """Returns whether two such models, of other weights, are one network; inputs (N, 2, …)."""
    together = JoinedModel(model, 2)
    seeds = [JoinedSeeds(model.seed_slot, 2)] if model.seed_slot.seed is not None else []
    models = [copy.deepcopy(model) for _ in range(2)]
    for parameter in (parameter for each in models for parameter in each.parameters()):
        parameter.add_(0.1 * torch.randn_like(parameter))
    with ExitStack() as stack:
        for each in models if seeds else ():
            stack.enter_context(each.seed_slot.force_alpha(0.5))
        for each in models:
            each.eval()
        together.attach(models, seeds)
        with together.slot.paired_output(bool(seeds)):
            found = together(inputs.flatten(1, 2))
        ways = [each.forward_with_counterfactual(inputs[:, place]) for place, each in enumerate(models)]
        expected = [torch.stack(way, dim=1) for way in zip(*ways, strict=True)]
        if not _is_close(found, torch.cat(expected[: 1 + bool(seeds)])):
            return False
        for each in models:
            each.train()
        together.attach(models, seeds)
        state = torch.get_rng_state()
        found = together(inputs.flatten(1, 2))
        learned = torch.stack([each(inputs[:, place]) for place, each in enumerate(models)], dim=1)
        draws = not torch.equal(state, torch.get_rng_state())
    return _is_close(found, learned) and not draws


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


class JoinedModel(nn.Module):
    """K models of one structure as one network. Their seeds may differ, see `attach`.

    Args:
        model: one of the models.
        hosts: K.

    Shape:
        inputs (N, K·channels, H, W), host after host; result (N, K, classes).

    Raises:
        CannotJoinError: the host is no network of images, or has a part that is not known to be joinable.
    """

    def __init__(self, model: MorphogeneticModel, hosts: int) -> None:
        super().__init__()
        if model.seed_slot.topology != "cnn":
            raise CannotJoinError(f"hosts of topology {model.seed_slot.topology} are no networks of images")
        self.hosts = hosts
        self.slot = JoinedSlot(model.seed_slot.width)
        self.host: nn.Module = copy.deepcopy(model.host, {id(model.seed_slot): self.slot})
        _widen(self.host, hosts, None)
        self._memory_format = model.seed_slot.memory_format
        to_memory_format(self.host, self._memory_format)
        self.parts: list[Part] = []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.host(inputs.contiguous(memory_format=self._memory_format))
        each: Tensor = outputs.unflatten(1, (self.hosts, -1))
        return each

    @torch.no_grad()
    def attach(self, models: Sequence[MorphogeneticModel], seeds: Sequence["JoinedSeeds"]) -> None:
        """Loads weights, buffers and slots of the models, and their training mode.

        Args:
            models: those with seeds of one kind side by side.
            seeds: the joined seeds of each kind, in that order.
        """
        of_slot = {id(tensor) for model in models for tensor in tensors_of(model.seed_slot)}
        own = [[tensor for tensor in tensors_of(model.host) if id(tensor) not in of_slot] for model in models]
        self.parts = _parts(tensors_of(self.host), own, 0)
        begin = 0
        for kind in seeds:
            while models[begin].seed_slot.seed is None:
                begin += 1
            slots = [model.seed_slot for model in models[begin : begin + kind.hosts]]
            kind.attach(slots, begin)
            self.parts += _parts(tensors_of(kind.seed), [tensors_of(slot.seed) for slot in slots], begin)
            begin += kind.hosts
        self.slot.seeds = list(seeds)
        for part in self.parts:
            part.load()
        self.train(models[0].training)

    @torch.no_grad()
    def detach(self) -> None:
        """Gives each model its weights and buffers, and its slot the gradients for the isolation check."""
        torch._foreach_copy_(
            [tensor for part in self.parts for tensor in part.each],
            [tensor.detach() for part in self.parts for tensor in part.unstacked()],
        )
        for kind in self.slot.seeds:
            kind.detach()

    def release(self) -> None:
        """Drops the references to the models, and the gradients."""
        for part in self.parts:
            part.whole.grad = None
        for kind in self.slot.seeds:
            kind.release()
        self.parts, self.slot.seeds = [], []


class JoinedSlot(nn.Module):
    """The slots of all models.

    Attributes:
        seeds: the joined seeds of each kind; models that none of them has are without a seed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.seeds: list[JoinedSeeds] = []  # not as submodules: they come and go
        self._paired = False

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode, of the seeds as well."""
        for kind in self.seeds:
            kind.train(mode)
        return super().train(mode)

    @contextmanager
    def paired_output(self, wanted: bool) -> Iterator[None]:
        """Appends, inside the context, the hosts' own features along the batch, as `SeedSlot.paired_output`."""
        self._paired = wanted
        try:
            yield
        finally:
            self._paired = False

    def forward(self, features: Tensor) -> Tensor:
        changed, done = [], 0
        for kind in self.seeds:
            begin = kind.begin * self.width
            end = begin + kind.hosts * self.width
            changed += [features[:, done:begin], kind(features[:, begin:end])]
            done = end
        blended = features
        if changed:
            parts = [part for part in (*changed, features[:, done:]) if part.shape[1]]
            blended = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return torch.cat([blended, features]) if self._paired else blended


class JoinedSeeds(nn.Module):
    """Seeds of one blueprint as one module, each with a stage and an alpha of its own.

    Attributes:
        begin: index of the first model that has one.

    Args:
        slot: holds one of the seeds.
        hosts: number of seeds.

    Raises:
        CannotJoinError: the seed has a part that is not known to be joinable.
    """

    def __init__(self, slot: SeedSlot, hosts: int) -> None:
        super().__init__()
        assert slot.seed is not None
        self.hosts, self.begin = hosts, 0
        self.seed = nn.Sequential(copy.deepcopy(slot.seed))  # so that a seed of a single layer can be replaced as well
        _widen(self.seed, hosts, slot.width)
        self._memory_format = slot.memory_format
        to_memory_format(self.seed, self._memory_format)
        self._slots: list[SeedSlot] = []
        self._probe: dict[str, Tensor] = {}

    def attach(self, slots: Sequence[SeedSlot], begin: int) -> None:
        """Loads stage and alpha of each seed."""
        self._slots, self.begin = list(slots), begin
        self.alphas = [slot.alpha for slot in slots]
        self._incubating = [slot.is_incubating for slot in slots]
        width, device = slots[0].width, next(self.seed.parameters()).device
        self._alpha = torch.tensor(self.alphas, device=device).repeat_interleave(width).view(1, -1, 1, 1)
        self._apart = torch.tensor(self._incubating, device=device).repeat_interleave(width).view(1, -1, 1, 1)

    def detach(self) -> None:
        """Gives each incubating slot the gradients that its isolation check reads."""
        if self._probe:
            chunks = {name: gradient.chunk(self.hosts, dim=1) for name, gradient in self._probe.items()}
            for place, slot in enumerate(self._slots):
                if self._incubating[place]:
                    slot.take_probe({name: parts[place] for name, parts in chunks.items()})

    def release(self) -> None:
        """Drops the references to the slots, and the gradients for their isolation checks."""
        self._probe.clear()
        self._slots = []

    def forward(self, features: Tensor) -> Tensor:
        if not self.training and not any(self.alphas):
            return features
        features = features.contiguous(memory_format=self._memory_format)
        if self.training and any(self._incubating):
            return self._incubate(features)
        grown: Tensor = self.seed(features)
        return grown if all(alpha == 1.0 for alpha in self.alphas) else torch.lerp(features, grown, self._alpha)

    def _incubate(self, features: Tensor) -> Tensor:
        entering = features.view_as(features)
        if all(self._incubating):
            leaving = straight_through(entering, self.seed(entering.detach().requires_grad_()))
        else:
            grown = self.seed(_DetachedSome.apply(entering, self._apart))  # type: ignore[no-untyped-call]
            leaving = _BlendedSome.apply(entering, grown, self._alpha, self._apart)  # type: ignore[no-untyped-call]
        if entering.requires_grad:
            entering.register_hook(lambda gradient: self._probe.update(entering=gradient))
            leaving.register_hook(lambda gradient: self._probe.update(leaving=gradient))
        return leaving


class _DetachedSome(torch.autograd.Function):
    """The features; no gradient comes back where `apart` holds."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, apart: Tensor) -> Tensor:
        ctx.save_for_backward(apart)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (apart,) = ctx.saved_tensors
        return gradients[0].masked_fill(apart, 0.0), None


class _BlendedSome(torch.autograd.Function):
    """Applies `straight_through` where `apart` holds, `lerp(features, grown, alpha)` elsewhere."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, grown: Tensor, alpha: Tensor, apart: Tensor) -> Tensor:
        ctx.save_for_backward(alpha, apart)
        return torch.where(apart, features, torch.lerp(features, grown, alpha))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (alpha, apart) = gradients, ctx.saved_tensors
        to_host = torch.where(apart, gradient, gradient * (1 - alpha))
        return to_host, torch.where(apart, gradient, gradient * alpha), None, None


class JoinedLinear(nn.Module):
    """K linear layers side by side: (N, K·in) to (N, K·out)."""

    def __init__(self, layer: nn.Linear, hosts: int) -> None:
        super().__init__()
        self.hosts = hosts
        self.weight = nn.Parameter(_repeated(layer.weight, hosts))
        self.bias = nn.Parameter(_repeated(layer.bias, hosts)) if layer.bias is not None else None

    def forward(self, inputs: Tensor) -> Tensor:
        each = inputs.unflatten(1, (self.hosts, -1)).transpose(0, 1)  # (K, N, in)
        weights = self.weight.unflatten(0, (self.hosts, -1)).transpose(1, 2)
        if self.bias is None:
            outputs = torch.bmm(each, weights)
        else:
            outputs = torch.baddbmm(self.bias.view(self.hosts, 1, -1), each, weights)
        return outputs.transpose(0, 1).flatten(1)


def joined(each: Sequence[Tensor]) -> Tensor:
    """Returns one tensor of each model's: side by side in the first dimension."""
    return torch.stack(list(each)) if each[0].dim() == 0 else torch.cat(list(each))


def unstacked(whole: Tensor, each: Sequence[Tensor]) -> list[Tensor]:
    """Splits a tensor of `joined` into views, one for each of the models' tensors `each`."""
    return list(whole.unbind()) if each[0].dim() == 0 else list(whole.chunk(len(each)))


def tensors_of(module: nn.Module | None) -> list[Tensor]:
    """Returns parameters and buffers, in the order in which the modules have them."""
    if module is None:
        return []
    found = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.numel())]
    return list(found)


def _parts(wholes: Sequence[Tensor], own: Sequence[Sequence[Tensor]], begin: int) -> list[Part]:
    models = range(begin, begin + len(own))
    return [Part(whole, list(each), models) for whole, *each in zip(wholes, *own, strict=True)]


def _repeated(tensor: Tensor, hosts: int) -> Tensor:
    return joined([tensor.detach()] * hosts)


def _widen(module: nn.Module, hosts: int, width: int | None) -> None:
    """Makes the parts of a network those of several; `width`: channels of the features that scalars apply to."""
    for name, child in list(module.named_children()):
        if isinstance(child, JoinedSlot):
            continue
        if type(child) is nn.Linear:
            setattr(module, name, JoinedLinear(child, hosts))
        else:
            _widen(child, hosts, width)
    _require_joinable(module)
    if not isinstance(module, _GROUPED) and any(True for _ in module.parameters(recurse=False)):
        _spread_scalars(module, hosts, width)
        return
    _repeat_tensors(module, hosts)
    if isinstance(module, nn.Conv2d):
        module.groups *= hosts
    elif isinstance(module, nn.GroupNorm):
        module.num_groups *= hosts


def _repeat_tensors(module: nn.Module, hosts: int) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(_repeated(parameter, hosts))
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = _repeated(buffer, hosts)


def _require_joinable(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d) and module.momentum is None:
        raise CannotJoinError("a cumulative average counts its batches")


def _spread_scalars(module: nn.Module, hosts: int, width: int | None) -> None:
    """Has a module see, in the place of its scalar parameters, one value for each channel."""
    names = list(module._parameters)
    if width is None or any(module._parameters[name] is None or module._parameters[name].dim() for name in names):  # type: ignore[union-attr]
        raise CannotJoinError(f"{type(module).__name__} has parameters of its own")
    for name in names:
        scalar = module._parameters.pop(name)
        assert scalar is not None
        module.register_parameter(name + _OF_EACH, nn.Parameter(_repeated(scalar, hosts)))

    def spread(self: nn.Module, _inputs: Any) -> None:
        for name in names:
            self.__dict__[name] = getattr(self, name + _OF_EACH).repeat_interleave(width).view(1, -1, 1, 1)

    def forget(self: nn.Module, _inputs: Any, _outputs: Any) -> None:
        for name in names:
            del self.__dict__[name]

    module.register_forward_pre_hook(spread)
    module.register_forward_hook(forget)
