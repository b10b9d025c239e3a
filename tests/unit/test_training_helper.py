"""`_train_one_epoch` and `collect_seed_gradients`."""

from math import isfinite, sqrt

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper_ray import SeedStage, create_model, get_task_spec
from esper_ray.errors import ConfigurationError
from esper_ray.training import _train_one_epoch, collect_seed_gradients


@pytest.fixture
def simple_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


@pytest.fixture
def simple_dataloader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 3, 2, 2, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.randint(0, 5, (10,), generator=generator)), batch_size=4)


def test_returns_correct_tuple_types(simple_model: nn.Module, simple_dataloader: DataLoader) -> None:
    """The reference document's own test, step 4."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(simple_model.parameters(), lr=0.01)
    result = _train_one_epoch(
        model=simple_model,
        trainloader=simple_dataloader,
        criterion=criterion,
        host_optimizer=optimizer,
        seed_optimizer=None,
        device="cpu",
        task_type="classification",
    )
    assert isinstance(result, tuple)
    assert len(result) == 4
    running_loss, correct, total, grad_stats = result
    assert isinstance(running_loss, float)
    assert isinstance(correct, float)
    assert isinstance(total, int)
    assert grad_stats is None


def test_gradient_collection() -> None:
    """The reference document's own test, step 5."""
    task_spec = get_task_spec("cifar10")
    model = create_model(task=task_spec, device="cpu")
    model.germinate_seed("conv_light", "test_seed")
    model.seed_slot.advance_stage(SeedStage.TRAINING)

    X = torch.randn(8, 3, 32, 32)  # noqa: N806
    y = torch.randint(0, 10, (8,))
    dataloader = DataLoader(TensorDataset(X, y), batch_size=4)

    criterion = nn.CrossEntropyLoss()
    host_optimizer = torch.optim.SGD(model.get_host_parameters(), lr=0.01)
    seed_optimizer = torch.optim.SGD(model.get_seed_parameters(), lr=0.01)

    _running_loss, _correct, _total, grad_stats = _train_one_epoch(
        model=model,
        trainloader=dataloader,
        criterion=criterion,
        host_optimizer=host_optimizer,
        seed_optimizer=seed_optimizer,
        device="cpu",
        task_type="classification",
        collect_gradients=True,
    )

    assert grad_stats is not None
    assert "gradient_norm" in grad_stats
    assert "gradient_health" in grad_stats


def test_sums_are_over_batches_and_samples(simple_model: nn.Module, simple_dataloader: DataLoader) -> None:
    frozen = torch.optim.SGD(simple_model.parameters(), lr=0.0)
    loss, correct, total, _ = _train_one_epoch(
        simple_model, simple_dataloader, nn.CrossEntropyLoss(), frozen, None, "cpu", "classification"
    )
    with torch.no_grad():
        batches = [(simple_model(x), y) for x, y in simple_dataloader]
    assert loss == pytest.approx(sum(nn.functional.cross_entropy(out, y).item() for out, y in batches))
    assert correct == sum((out.argmax(1) == y).sum().item() for out, y in batches)
    assert total == 10
    assert simple_model.training


def test_language_models_count_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(7, 7)
    tokens = torch.randint(0, 7, (6, 9))
    loader = DataLoader(TensorDataset(tokens, tokens), batch_size=4)
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    loss, correct, total, _ = _train_one_epoch(model, loader, nn.CrossEntropyLoss(), frozen, None, "cpu", "lm")
    assert total == 54
    assert correct == (model(tokens).argmax(-1) == tokens).sum().item()
    parts = [nn.functional.cross_entropy(model(t).flatten(0, 1), t.flatten()).item() for t in (tokens[:4], tokens[4:])]
    assert loss == pytest.approx(sum(parts))


def test_an_empty_loader_gives_zeros(simple_model: nn.Module) -> None:
    optimizer = torch.optim.SGD(simple_model.parameters(), lr=0.01)
    result = _train_one_epoch(simple_model, [], nn.CrossEntropyLoss(), optimizer, None, "cpu", "classification", True)
    assert result == (0.0, 0.0, 0, None)


def test_an_unknown_task_type_is_refused(simple_model: nn.Module, simple_dataloader: DataLoader) -> None:
    optimizer = torch.optim.SGD(simple_model.parameters(), lr=0.01)
    with pytest.raises(ConfigurationError, match="did you mean 'classification'"):
        _train_one_epoch(
            simple_model, simple_dataloader, nn.CrossEntropyLoss(), optimizer, None, "cpu", "clasification"
        )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_loss_ends_the_epoch_before_it_reaches_the_weights(simple_model: nn.Module, poison: float) -> None:
    inputs = torch.randn(12, 3, 2, 2)
    inputs[5] = poison
    loader = DataLoader(TensorDataset(inputs, torch.zeros(12, dtype=torch.long)), batch_size=4)
    optimizer = torch.optim.SGD(simple_model.parameters(), lr=0.1)
    loss, _, total, stats = _train_one_epoch(
        simple_model, loader, nn.CrossEntropyLoss(), optimizer, None, "cpu", "classification"
    )
    assert not isfinite(loss)
    assert total == 8
    assert stats is None
    assert all(p.isfinite().all() for p in simple_model.parameters())


def test_gradient_statistics_are_those_of_the_last_batch_before_its_step() -> None:
    task = get_task_spec("digits")
    torch.manual_seed(0)
    model = create_model(task)
    model.germinate_seed("conv_light", "s")
    model.seed_slot.advance_stage(SeedStage.TRAINING)
    inputs, targets = torch.randn(12, 1, 8, 8), torch.randint(0, 10, (12,))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    frozen = [torch.optim.SGD(p, lr=0.0) for p in (model.get_host_parameters(), model.get_seed_parameters())]
    *_, stats = _train_one_epoch(model, loader, nn.CrossEntropyLoss(), *frozen, "cpu", "classification", True)
    assert stats is not None

    model.zero_grad()
    nn.functional.cross_entropy(model(inputs[8:]), targets[8:]).backward()
    seed = [p.grad for p in model.get_seed_parameters() if p.grad is not None]
    host = [p.grad for p in model.get_host_parameters() if p.grad is not None]
    seed_norm, host_norm = (sqrt(sum(g.square().sum().item() for g in grads)) for grads in (seed, host))
    seed_size, host_size = (sum(g.numel() for g in grads) for grads in (seed, host))
    assert stats["gradient_norm"] == pytest.approx(seed_norm / len(seed), rel=1e-5)
    assert stats["host_gradient_norm"] == pytest.approx(host_norm / len(host), rel=1e-5)
    expected = (seed_norm / sqrt(seed_size)) / (host_norm / sqrt(host_size))
    assert stats["seed_gradient_ratio"] == pytest.approx(expected, rel=1e-5)


def _parameters_with_gradient_norms(*norms: float) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in norms]
    for parameter, norm in zip(parameters, norms, strict=True):
        parameter.grad = torch.tensor([norm])
    return parameters


@pytest.mark.parametrize(
    ("norms", "health", "vanishing", "exploding"),
    [
        ((1.0, 1.0), 1.0, False, False),
        ((1.0, 1e-8), 0.75, True, False),
        ((1.0, 101.0), 0.6, False, True),
        ((1e-8, 101.0), 0.35, True, True),
        ((101.0, 101.0), 0.2, False, True),
        ((1.0, float("nan")), 0.6, False, True),
    ],
)
def test_gradient_health_counts_vanishing_and_exploding_tensors(
    norms: tuple[float, ...], health: float, vanishing: bool, exploding: bool
) -> None:
    stats = collect_seed_gradients(_parameters_with_gradient_norms(*norms))
    assert stats["gradient_health"] == pytest.approx(health)
    assert (stats["has_vanishing"], stats["has_exploding"]) == (vanishing, exploding)


def test_gradient_norm_is_the_total_over_the_number_of_tensors() -> None:
    stats = collect_seed_gradients(_parameters_with_gradient_norms(3.0, 4.0))
    assert stats["gradient_norm"] == pytest.approx(2.5)


def test_without_gradients_the_statistics_are_neutral() -> None:
    stats = collect_seed_gradients([nn.Parameter(torch.zeros(1))])
    neutral = {"gradient_norm": 0.0, "gradient_health": 1.0, "has_vanishing": False, "has_exploding": False}
    assert {name: stats[name] for name in neutral} == neutral
