"""Hosts and blueprints."""

import copy

import pytest
import torch
from torch import nn

from esper_ray.errors import ConfigurationError
from esper_ray.models import CNNHost, build_seed, list_blueprints
from esper_ray.tasks import create_model, get_task_spec

BLUEPRINTS = [b.blueprint_id for b in list_blueprints("cnn", 8)]


@pytest.mark.parametrize(
    ("blocks", "channels", "parameters"),
    [(1, 4, 94), (1, 8, 178), (1, 16, 346), (2, 2, 152), (2, 4, 438), (2, 8, 1442), (2, 16, 5178), (3, 2, 496)],
)
def test_hosts_have_the_parameter_counts_of_the_specification(blocks: int, channels: int, parameters: int) -> None:
    host = CNNHost((1, 8, 8), 10, base_channels=channels, blocks=blocks)
    assert sum(p.numel() for p in host.parameters()) == parameters


def test_injection_points_lie_behind_every_block() -> None:
    host = CNNHost((3, 32, 32), 10, base_channels=8, blocks=3)
    assert host.injection_points == {"block1_post": 8, "block2_post": 16, "block3_post": 32}
    assert host.default_slot == "block2_post"
    assert CNNHost((1, 8, 8), 10, blocks=1).default_slot == "block1_post"


def test_blueprints_are_listed_by_parameter_count() -> None:
    listed = list_blueprints("cnn", 8)
    assert [b.blueprint_id for b in listed] == ["norm", "attention", "depthwise", "conv_light", "conv_heavy"]
    assert [b.parameter_count for b in listed] == [17, 42, 152, 592, 1184]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8, 18, 64])
@pytest.mark.parametrize("blueprint_id", BLUEPRINTS)
def test_a_seed_keeps_the_shape_and_starts_near_the_identity(blueprint_id: str, width: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(4, width, 4, 4)
    change = build_seed(blueprint_id, "cnn", width)(features) - features
    assert change.shape == features.shape
    assert change.square().mean().sqrt() <= 0.15
    exact = {"norm", "attention"}
    assert blueprint_id not in exact or torch.equal(change, torch.zeros_like(change))


@pytest.mark.parametrize("blueprint_id", BLUEPRINTS)
def test_a_seed_can_learn_from_its_first_step(blueprint_id: str) -> None:
    torch.manual_seed(0)
    seed = build_seed(blueprint_id, "cnn", 8)
    features = torch.randn(4, 8, 4, 4)
    (seed(features) * torch.randn(4, 8, 4, 4)).sum().backward()
    assert sum(p.grad.abs().sum() for p in seed.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("blueprint_id", BLUEPRINTS)
def test_a_seed_carries_no_running_statistics(blueprint_id: str) -> None:
    assert list(build_seed(blueprint_id, "cnn", 8).buffers()) == []


def test_every_registered_task_builds_its_model_without_data() -> None:
    for name in ("digits", "fashion_mnist", "cifar10"):
        task = get_task_spec(name)
        logits = create_model(task=task, device="cpu")(torch.zeros(2, *task.input_shape))
        assert logits.shape == (2, task.classes)


def test_an_image_too_small_for_the_blocks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 16×16; the image has 8×8"):
        create_model(get_task_spec("digits", {"host.blocks": 4}))


def test_a_cnn_learns_in_ways_of_its_own_what_it_learns_in_double_precision() -> None:
    """In double precision, norms, pooling and convolutions are torch's own."""
    torch.manual_seed(0)
    host = CNNHost((3, 32, 32), 10).to(memory_format=torch.channels_last)
    twin, images = copy.deepcopy(host).double(), torch.randn(128, 3, 32, 32)
    images, targets = images.contiguous(memory_format=torch.channels_last), torch.arange(128) % 10
    nn.functional.cross_entropy(host(images), targets).backward()
    nn.functional.cross_entropy(twin(images.double()), targets).backward()
    for (name, mine), other in zip(host.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        assert (mine.grad - other.grad).norm() <= 1e-4 * other.grad.norm(), name
