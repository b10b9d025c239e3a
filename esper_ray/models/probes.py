"""Tests of a network by perturbing its input and comparing the outputs. They draw no random numbers.

A network is run in evaluation mode, with the same operations on the same shapes, so that outputs which do not depend on
the perturbation are the same to the last bit.
"""

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from esper_ray.seeding import seeded

_Module = TypeVar("_Module", bound=nn.Module)
_NOISE = 0.05


class _Recorder(nn.Module):
    """Keeps the features that it last let through."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.features = features
        return features


def disturbed(module: _Module) -> _Module:
    """Returns a copy in evaluation mode with noise on every weight, so that none is 0 as it may be at the start."""
    other = copy.deepcopy(module).eval()
    _disturb(other)
    return other


@torch.no_grad()
def _disturb(module: nn.Module) -> None:
    with seeded(0):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.add_(_NOISE * torch.randn_like(parameter, device="cpu").to(parameter.device))


@torch.no_grad()
def is_causal(host: nn.Module, input_shape: tuple[int, ...], tokens: int | None) -> bool:
    """Returns whether no position of a sequence depends on a later one in a host.

    With an output at each position, that is asked of the outputs. Else it is asked of the features (N, T, width) at
    the injection points: the host is causal if what comes first reaches the later half of the positions, and what comes
    last does not reach the earlier half. So a host in which no position depends on another one before its last slot
    counts as bidirectional.

    Args:
        host: a host for this purpose, on the CPU: its weights and slots are changed.
        input_shape: of one sample.
        tokens: size of the vocabulary of a host that reads texts and returns logits (N, T, tokens); else None.
    """
    _disturb(host.eval())
    recorders = [_Recorder() for _ in cast("dict[str, int]", host.injection_points)]
    for slot_id, recorder in zip(cast("dict[str, int]", host.injection_points), recorders, strict=True):
        with suppress(Exception):  # a point that takes no module shows nothing
            host.register_slot(slot_id, recorder)  # type: ignore[operator]

    def positions(inputs: Tensor) -> list[Tensor]:
        with seeded(0):
            outputs = host(inputs)
        found = [outputs] if tokens else [recorder.features for recorder in recorders]
        return [part for part in found if isinstance(part, Tensor) and part.dim() == 3 and part.shape[1] > 1]

    for plain, first, last in _samples(input_shape, tokens):
        try:
            before, late = positions(plain), positions(last)
            early = [] if tokens else positions(first)
        except Exception:  # whatever a host raises over inputs of a type that it does not read
            continue
        if tokens:
            return not any(_changed(a, b)[:-1].any() for a, b in zip(before, late, strict=True))
        back = any(_changed(a, b)[: a.shape[1] // 2].any() for a, b in zip(before, late, strict=True))
        forth = any(_changed(a, b)[-(a.shape[1] // 2) :].any() for a, b in zip(before, early, strict=True))
        return forth and not back
    return tokens is not None


def mixes_samples(module: nn.Module, inputs: Tensor, other: Tensor) -> bool:
    """Returns whether a module, in evaluation mode, makes something else of a sample beside another one.

    Args:
        inputs, other: two different samples (1, …).
    """
    alone, beside = torch.cat([inputs, inputs]), torch.cat([inputs, other])
    with torch.no_grad(), seeded(0):
        expected = module(alone)
    with torch.no_grad(), seeded(0):
        found = module(beside)
    return not torch.equal(expected[0].nan_to_num(), found[0].nan_to_num())


def sees_later_positions(module: nn.Module, features: Tensor) -> bool:
    """Returns whether a module lets a position of features (N, T, width) depend on a later one."""
    later = features.clone()
    with seeded(0):  # noise: a layer norm would take a constant away
        later[:, -1] += torch.randn_like(later[:, -1], device="cpu").to(later.device)
    with torch.no_grad(), seeded(0):
        before = module(features)
    with torch.no_grad(), seeded(0):
        after = module(later)
    return bool(_changed(before, after)[:-1].any())


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Returns for each position of (N, T, …) whether it changed; non-finite values are ignored."""
    differs = (before != after) & before.isfinite() & after.isfinite()
    return differs.flatten(2).any(dim=2).any(dim=0)


def _samples(shape: tuple[int, ...], tokens: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields a sample (1, …), the same with another first value, and with another last one, of each type in turn."""
    with seeded(0):
        numbers = torch.randn(1, *shape)
        text = torch.randint(tokens or 2, (1, *shape))
    if tokens:
        kinds = [(text, (text + 1) % tokens)]
    else:
        ids = torch.full((1, *shape), 2)
        kinds = [(numbers, numbers + 1), (ids, ids - 1), (ids - 1, ids - 2)]
    for plain, other in kinds:
        first, last = plain.flatten().clone(), plain.flatten().clone()
        first[0], last[-1] = other.flatten()[0], other.flatten()[-1]
        yield plain, first.view_as(plain), last.view_as(plain)
