"""The masked policy network."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch import Tensor

from esper_ray.orchestration.rl_module import MaskedPPOTorchRLModule

MASK = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=np.int8)


@pytest.fixture
def module() -> MaskedPPOTorchRLModule:
    torch.manual_seed(0)
    return MaskedPPOTorchRLModule(
        observation_space=gym.spaces.Dict(
            {"observations": gym.spaces.Box(-1, 1, (5,)), "action_mask": gym.spaces.MultiBinary(4)}
        ),
        action_space=gym.spaces.Discrete(4),
        model_config=DefaultModelConfig(fcnet_hiddens=[8], fcnet_activation="tanh", vf_share_layers=False),
    )


@pytest.fixture
def batch() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {"obs": {"observations": torch.rand(3, 5, generator=generator), "action_mask": torch.from_numpy(MASK)}}


@pytest.mark.parametrize("path", ["forward_inference", "forward_exploration", "forward_train"])
def test_a_forbidden_action_has_no_probability_on_any_path(
    module: MaskedPPOTorchRLModule, batch: dict[str, dict[str, Tensor]], path: str
) -> None:
    logits = getattr(module, path)(batch)["action_dist_inputs"]
    probabilities = torch.softmax(logits, dim=1)
    assert torch.equal(probabilities > 0, torch.from_numpy(MASK) == 1)
    assert torch.allclose(probabilities.sum(1), torch.ones(3))


def test_the_shared_batch_is_not_changed(module: MaskedPPOTorchRLModule, batch: dict[str, dict[str, Tensor]]) -> None:
    before = copy.deepcopy(batch)
    module.forward_train(batch)
    module.compute_values(batch)
    module.forward_exploration(batch)
    assert batch.keys() == before.keys()
    assert batch["obs"].keys() == before["obs"].keys()
    assert all(torch.equal(batch["obs"][name], before["obs"][name]) for name in before["obs"])


def test_values_do_not_depend_on_the_mask_nor_on_who_computed_the_embeddings(
    module: MaskedPPOTorchRLModule, batch: dict[str, dict[str, Tensor]]
) -> None:
    values = module.compute_values(batch)
    assert values.shape == (3,)
    embeddings = module.forward_train(batch)["embeddings"]
    assert torch.equal(module.compute_values(batch, embeddings=embeddings), values)
    open_mask = {"obs": {**batch["obs"], "action_mask": torch.ones(3, 4, dtype=torch.int8)}}
    assert torch.equal(module.compute_values(open_mask), values)


def test_entropy_divergence_and_gradients_stay_finite_under_the_mask(
    module: MaskedPPOTorchRLModule, batch: dict[str, dict[str, Tensor]]
) -> None:
    logits = module.forward_train(batch)["action_dist_inputs"]
    kind = module.get_train_action_dist_cls()
    now, before = kind.from_logits(logits), kind.from_logits(logits.detach() * torch.tensor([0.9, 1.0, 1.1, 1.0]))
    entropy = now.entropy()
    assert entropy[1] == 0.0
    assert torch.isfinite(entropy).all()
    assert torch.isfinite(before.kl(now)).all()
    (entropy.sum() + now.logp(torch.tensor([0, 0, 3])).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_it_says_that_its_observations_are_the_whole_dict(module: MaskedPPOTorchRLModule) -> None:
    assert isinstance(module.observation_space, gym.spaces.Dict)
