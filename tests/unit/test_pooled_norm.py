"""Batch norm, ReLU and pooling in one, against torch's own operations."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_ray.models import pooled_norm
from esper_ray.models.pooled_norm import norm_relu_pool

SHAPES = [(128, 8, 32, 32), (130, 8, 28, 28), (128, 16, 16, 16), (128, 32, 16, 8), (700, 1, 34, 32), (700, 3, 14, 18)]


def norm_of(channels: int, gain: float = 0.5) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(gain, gain + 1.0)
        norm.bias.uniform_(-1.0, 1.0)
        norm.running_mean.uniform_(-1.0, 1.0)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return norm


def images_of(shape: tuple[int, ...]) -> Tensor:
    return (3 * torch.randn(shape) + 1).contiguous(memory_format=torch.channels_last)


def plain(features: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.max_pool2d(F.relu(norm(features)), kernel_size=2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_training_step_comes_to_what_torch_s_operations_come_to(shape: tuple[int, ...]) -> None:
    """In double precision, so that what torch itself rounds away does not count."""
    norm = norm_of(shape[1])
    exact, features = copy.deepcopy(norm).double(), images_of(shape)
    twin = features.double().requires_grad_()
    features.requires_grad_()
    assert pooled_norm._is_quick(features, norm)
    outputs, expected = norm_relu_pool(features, norm), plain(twin, exact)
    weights = torch.randn_like(outputs)
    (outputs * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = [(features.grad, twin.grad)]
    pairs += [(mine.grad, other.grad) for mine, other in zip(norm.parameters(), exact.parameters(), strict=True)]
    pairs += [(norm.running_mean, exact.running_mean), (norm.running_var, exact.running_var)]
    for found, other in pairs:
        assert found is not None and other is not None
        assert (found - other).norm() <= 1e-5 * other.norm()
    assert norm.num_batches_tracked == exact.num_batches_tracked == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_validation_comes_to_the_same_to_the_last_bit(shape: tuple[int, ...]) -> None:
    pooled_norm._kernels()
    norm, features = norm_of(shape[1]).eval(), images_of(shape)
    with torch.inference_mode():
        assert pooled_norm._is_quick(features, norm)
        assert torch.equal(norm_relu_pool(features, norm), plain(features, norm))


def test_few_digits_are_lost_where_the_mean_is_far_from_zero() -> None:
    norm, features = norm_of(8), 100 + 0.1 * images_of(SHAPES[0])
    exact = copy.deepcopy(norm).double()
    torch.testing.assert_close(
        norm_relu_pool(features, norm).double(), plain(features.double(), exact), rtol=1e-3, atol=1e-3
    )
    assert norm.running_var is not None and exact.running_var is not None
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=0.0)


def test_of_equal_values_one_gets_the_gradient() -> None:
    images = np.random.default_rng(0).integers(0, 2, (4, 8, 6, 3)).astype(np.float32)
    one, none = np.ones(3, np.float32), np.zeros(3, np.float32)
    given = np.arange(1, 4 * 4 * 3 * 3 + 1, dtype=np.float32).reshape(4, 4, 3, 3)
    found = pooled_norm._kernels()._backward_of_pool(given, images, one, none, none)
    fours = found.reshape(4, 4, 2, 3, 2, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
    values = images.reshape(4, 4, 2, 3, 2, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
    assert ((fours != 0).sum(1) == 1).all()
    assert (fours.max(1) == given.reshape(-1)).all()
    assert (values[fours != 0] == values.max(1)).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", range(4))
def test_what_is_no_number_shows_where_it_does_in_torch(training: bool, value: float, place: int) -> None:
    pooled_norm._kernels()
    norm, features = norm_of(8).train(training), images_of(SHAPES[0])
    features[3, 2, 10 + place // 2, 20 + place % 2] = value
    twin = copy.deepcopy(norm)
    with torch.no_grad():
        assert pooled_norm._is_quick(features, norm)
        found, expected = norm_relu_pool(features, norm), plain(features, twin)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)  # torch rounds more


def test_a_frozen_norm_lets_the_gradient_through() -> None:
    norm = norm_of(8).requires_grad_(False)
    exact, features = copy.deepcopy(norm).double(), images_of(SHAPES[0])
    twin = features.double().requires_grad_()
    norm_relu_pool(features.requires_grad_(), norm).square().sum().backward()
    plain(twin, exact).square().sum().backward()
    assert norm.weight.grad is None and features.grad is not None and twin.grad is not None
    assert (features.grad - twin.grad).norm() <= 1e-5 * twin.grad.norm()


COMPILER_FREE = """
import sys, torch
from esper_ray import get_task_spec
from esper_ray.tasks import create_model, load_task_data
from esper_ray.training import _train_one_epoch, build_optimizer, evaluate

task = get_task_spec("digits")
data, model = load_task_data(task), create_model(task)
criterion = torch.nn.CrossEntropyLoss()
evaluate(model, data.validation, criterion, "cpu", task.task_type)
assert "numba" not in sys.modules
_train_one_epoch(
    model, data.train, criterion, build_optimizer(model.parameters(), task.host_optimizer), None, "cpu", task.task_type
)
evaluate(model, data.validation, criterion, "cpu", task.task_type)
print("numba" in sys.modules)
"""


def test_who_trains_on_small_batches_loads_no_compiler() -> None:
    answer = subprocess.run([sys.executable, "-c", COMPILER_FREE], capture_output=True, text=True)
    assert answer.stdout.strip() == "False", answer.stderr


@pytest.mark.parametrize(
    ("shape", "gain"),
    [
        *[((128, 8, 32, 32), -0.5), ((128, 8, 33, 32), 0.5), ((128, 8, 31, 31), 0.5), ((2, 8, 8, 8), 0.5)],
        *[((64, 32, 8, 8), 0.5), ((128, 48, 16, 16), 0.5)],
    ],
    ids=["negative gains", "odd height", "odd", "small", "small in lockstep", "many channels"],
)
def test_what_it_is_not_made_for_is_left_to_torch(shape: tuple[int, ...], gain: float) -> None:
    norm, features = norm_of(shape[1], gain), images_of(shape)
    twin = copy.deepcopy(norm)
    assert not pooled_norm._is_quick(features, norm)
    assert torch.equal(norm_relu_pool(features, norm), plain(features, twin))
