"""The unified loop against six plainly written ones, one per stage case: same seeds, same parameters, bit for bit.

The six are written out on purpose: they are what one call replaces.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from esper_ray import SeedStage, create_model, get_task_spec
from esper_ray.models import MorphogeneticModel
from esper_ray.training import GradientStats, _train_one_epoch, adopt_seed, build_optimizer, collect_seed_gradients

S = SeedStage
Batches = list[tuple[Tensor, Tensor]]
TASK = get_task_spec("digits")


def batches() -> Batches:
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(5)
    ]


def model_in(stage: SeedStage | None) -> tuple[MorphogeneticModel, Optimizer]:
    """A model whose seed is in `stage`, and its host optimizer (which a fossilized seed has joined)."""
    torch.manual_seed(3)
    model = create_model(TASK)
    host_optimizer = build_optimizer(model.get_host_parameters(), TASK.host_optimizer)
    if stage is None:
        return model, host_optimizer
    state = model.germinate_seed("conv_light", "s")
    for target in (S.TRAINING, S.BLENDING, S.SHADOWING, S.PROBATIONARY, S.FOSSILIZED):
        if state.stage == stage:
            break
        state.epochs_in_stage, state.gradient_ratio, state.contribution = 9, 1.0, 1.0
        state.alpha = 1.0 if target == S.SHADOWING else state.alpha
        assert model.seed_slot.advance_stage(target).passed
    if stage == S.FOSSILIZED:
        adopt_seed(host_optimizer, build_optimizer(model.get_seed_parameters(), TASK.seed_optimizer))
    return model, host_optimizer


def seed_optimizer_of(model: MorphogeneticModel) -> Optimizer:
    return SGD(model.get_seed_parameters(), lr=0.05, momentum=0.9)


def without_seed(model: MorphogeneticModel, host: Optimizer, data: Batches) -> GradientStats | None:
    model.train()
    for inputs, targets in data:
        host.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        host.step()
    return None


def germinated(model: MorphogeneticModel, host: Optimizer, data: Batches) -> GradientStats | None:
    assert model.seed_slot.advance_stage(S.TRAINING).passed
    seed = seed_optimizer_of(model)
    model.train()
    stats = None
    for inputs, targets in data:
        host.zero_grad()
        seed.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        stats = collect_seed_gradients(model.get_seed_parameters())
        host.step()
        seed.step()
    return stats


def training(model: MorphogeneticModel, host: Optimizer, data: Batches) -> GradientStats | None:
    seed = seed_optimizer_of(model)
    model.train()
    stats = None
    for inputs, targets in data:
        host.zero_grad()
        seed.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        stats = collect_seed_gradients(model.get_seed_parameters())
        host.step()
        seed.step()
    return stats


def blending(model: MorphogeneticModel, host: Optimizer, data: Batches) -> GradientStats | None:
    seed = seed_optimizer_of(model)
    model.train()
    stats = None
    for inputs, targets in data:
        host.zero_grad()
        seed.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        stats = collect_seed_gradients(model.get_seed_parameters())
        host.step()
        seed.step()
    return stats


def shadowing_or_probationary(model: MorphogeneticModel, host: Optimizer, data: Batches) -> GradientStats | None:
    seed = seed_optimizer_of(model)
    model.train()
    stats = None
    for inputs, targets in data:
        host.zero_grad()
        seed.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        stats = collect_seed_gradients(model.get_seed_parameters())
        host.step()
        seed.step()
    return stats


def fossilized(model: MorphogeneticModel, host: Optimizer, data: Batches) -> GradientStats | None:
    model.train()
    for inputs, targets in data:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        host.step()
    return None


@pytest.mark.parametrize(
    ("stage", "plain_loop"),
    [
        (None, without_seed),
        (S.GERMINATED, germinated),
        (S.TRAINING, training),
        (S.BLENDING, blending),
        (S.SHADOWING, shadowing_or_probationary),
        (S.PROBATIONARY, shadowing_or_probationary),
        (S.FOSSILIZED, fossilized),
    ],
)
def test_the_unified_loop_equals_the_plain_one(
    stage: SeedStage | None, plain_loop: Callable[[MorphogeneticModel, Optimizer, Batches], GradientStats | None]
) -> None:
    plain_model, plain_host = model_in(stage)
    plain_stats = plain_loop(plain_model, plain_host, batches())

    model, host_optimizer = model_in(stage)
    if stage == S.GERMINATED:
        assert model.seed_slot.advance_stage(S.TRAINING).passed
    live = model.has_active_seed
    seed_optimizer = seed_optimizer_of(model) if live else None
    before = [p.detach().clone() for p in model.parameters()]
    *_, stats = _train_one_epoch(
        model, batches(), nn.CrossEntropyLoss(), host_optimizer, seed_optimizer, "cpu", "classification", live
    )

    expected, found = plain_model.state_dict(), model.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert (stats is None) == (plain_stats is None)
    if stats is not None and plain_stats is not None:
        assert {name: stats[name] for name in plain_stats} == plain_stats


def test_a_fossilized_seed_carries_learning_rate_and_momentum_over() -> None:
    model, host_optimizer = model_in(S.PROBATIONARY)
    seed_optimizer = build_optimizer(model.get_seed_parameters(), TASK.seed_optimizer)
    _train_one_epoch(model, batches(), nn.CrossEntropyLoss(), host_optimizer, seed_optimizer, "cpu", "classification")
    momenta = [seed_optimizer.state[p]["momentum_buffer"].clone() for p in model.get_seed_parameters()]
    host_momenta = [host_optimizer.state[p]["momentum_buffer"].clone() for p in model.get_host_parameters()]
    assert model.seed_state is not None
    model.seed_state.contribution = 1.0
    assert model.seed_slot.advance_stage(S.FOSSILIZED).passed
    adopt_seed(host_optimizer, seed_optimizer)
    group = host_optimizer.param_groups[-1]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, 0.9, 0.0)
    for parameter, momentum in zip(model.get_seed_parameters(), momenta, strict=True):
        assert torch.equal(host_optimizer.state[parameter]["momentum_buffer"], momentum)
    for parameter, momentum in zip(model.get_host_parameters(), host_momenta, strict=True):
        assert torch.equal(host_optimizer.state[parameter]["momentum_buffer"], momentum)
