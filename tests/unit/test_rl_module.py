"""The masked policy networks: of PPO, of APPO, and with a memory."""

import copy
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from torch import Tensor

from esper_ray.orchestration.learner.policy_network import initial_state, rllib_model_config
from esper_ray.orchestration.learner.rl_module import MaskedAPPOTorchRLModule, MaskedPPOTorchRLModule

MASK = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=np.int8)


def build(kind: type[MaskedPPOTorchRLModule], policy: Literal["mlp", "lstm"] = "mlp") -> MaskedPPOTorchRLModule:
    torch.manual_seed(0)
    return kind(
        observation_space=gym.spaces.Dict(
            {"observations": gym.spaces.Box(-1, 1, (5,)), "action_mask": gym.spaces.MultiBinary(4)}
        ),
        action_space=gym.spaces.Discrete(4),
        model_config=rllib_model_config(policy, hidden=(8,), lstm_width=6, steps=3),
    )


@pytest.fixture(params=[MaskedPPOTorchRLModule, MaskedAPPOTorchRLModule], ids=["ppo", "appo"])
def module(request: pytest.FixtureRequest) -> MaskedPPOTorchRLModule:
    return build(request.param)


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


def test_the_target_network_of_appo_is_masked_as_well(batch: dict[str, dict[str, Tensor]]) -> None:
    module = build(MaskedAPPOTorchRLModule)
    module.make_target_networks()
    logits = module.forward_target(batch)[TARGET_NETWORK_ACTION_DIST_INPUTS]
    assert torch.equal(logits, module.forward_train(batch)["action_dist_inputs"])
    assert torch.equal(torch.softmax(logits, dim=1) > 0, torch.from_numpy(MASK) == 1)


@pytest.mark.parametrize("kind", [MaskedPPOTorchRLModule, MaskedAPPOTorchRLModule], ids=["ppo", "appo"])
def test_a_network_with_a_memory_is_masked_at_every_step_and_remembers(
    kind: type[MaskedPPOTorchRLModule], batch: dict[str, dict[str, Tensor]]
) -> None:
    module = build(kind, "lstm")
    steps: dict[str, Any] = {"obs": {name: value[None] for name, value in batch["obs"].items()}}
    steps["state_in"] = initial_state(module, 1)
    logits, values = module.forward_train(steps)["action_dist_inputs"], module.compute_values(steps)
    assert logits.shape == (1, 3, 4)
    assert values.shape == (1, 3)
    assert torch.equal(torch.softmax(logits[0], dim=1) > 0, torch.from_numpy(MASK) == 1)
    last = {**steps, "obs": {name: value[:, 2:] for name, value in steps["obs"].items()}}
    assert not torch.allclose(module.forward_train(last)["action_dist_inputs"], logits[:, 2:])


def test_it_says_that_its_observations_are_the_whole_dict(module: MaskedPPOTorchRLModule) -> None:
    assert isinstance(module.observation_space, gym.spaces.Dict)
