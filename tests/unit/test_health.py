"""The learner's figures, and what is said when learning has stopped."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from esper_ray.orchestration.learner.health import UpdateWatch, explained_variance, value_targets, warnings_of
from esper_ray.orchestration.learner.policy_network import initial_state, rllib_model_config
from esper_ray.orchestration.learner.rl_module import MaskedPPOTorchRLModule

RNG = np.random.default_rng(0)
SPACE = gym.spaces.Dict({"observations": gym.spaces.Box(-1, 1, (5,)), "action_mask": gym.spaces.MultiBinary(4)})
GAMMA, LAMBDA, CLIP = 0.9, 0.8, 0.2
MASKS = [[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


@pytest.fixture(params=["mlp", "lstm"])
def module(request: pytest.FixtureRequest) -> MaskedPPOTorchRLModule:
    torch.manual_seed(0)
    return MaskedPPOTorchRLModule(
        observation_space=SPACE,
        action_space=gym.spaces.Discrete(4),
        model_config=rllib_model_config(request.param, hidden=(8,), lstm_width=6, steps=20),
    )


def rollout(
    masks: list[list[int]], rewards: list[float] | None = None, terminated: bool = True, truncated: bool = False
) -> SingleAgentEpisode:
    """An episode with these masks that takes the last legal action each time."""
    observations = [
        {"observations": RNG.uniform(-1, 1, 5).astype(np.float32), "action_mask": np.array(mask, dtype=np.int8)}
        for mask in [*masks, [1, 0, 0, 0]]
    ]
    return SingleAgentEpisode(
        observations=observations,
        observation_space=SPACE,
        action_space=gym.spaces.Discrete(4),
        actions=[int(np.flatnonzero(mask)[-1]) for mask in masks],
        rewards=rewards or RNG.normal(size=len(masks)).tolist(),
        terminated=terminated,
        truncated=truncated,
        len_lookback_buffer=0,
    ).to_numpy()


def watch(module: MaskedPPOTorchRLModule, *rollouts: SingleAgentEpisode) -> UpdateWatch:
    return UpdateWatch(module, rollouts, GAMMA, LAMBDA, CLIP)


def forward(module: MaskedPPOTorchRLModule, episode: SingleAgentEpisode) -> tuple[torch.Tensor, np.ndarray]:
    """The probabilities (T, A) and the values (T,) of an episode's steps, as the module gives them."""
    observations = episode.get_observations(slice(0, len(episode)))
    steps = {name: torch.from_numpy(np.array(value)) for name, value in observations.items()}
    with torch.no_grad():
        if not module.is_stateful():
            batch: dict[str, Any] = {"obs": steps}
            return module.forward_train(batch)["action_dist_inputs"].softmax(dim=1), module.compute_values(
                batch
            ).numpy()
        probabilities, values, state = [], [], initial_state(module, 1)
        for t in range(len(episode)):  # as an actor plays it, step by step
            batch = {"obs": {name: value[None, t : t + 1] for name, value in steps.items()}, "state_in": state}
            outputs = module.forward_train(batch)
            probabilities.append(outputs["action_dist_inputs"][0].softmax(dim=1))
            values.append(module.compute_values(batch)[0].numpy())
            state = outputs["state_out"]
        return torch.cat(probabilities), np.concatenate(values)


def lambda_returns(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The λ-returns as the mixture of n-step returns that they are; `values` has the one after the last step."""
    count, found = len(rewards), []
    for t in range(count):
        n_step = [
            sum(gamma**k * rewards[t + k] for k in range(n)) + gamma**n * values[t + n] for n in range(1, count - t + 1)
        ]
        mixed = sum((1 - lam) * lam**i * value for i, value in enumerate(n_step[:-1]))
        found.append(mixed + lam ** (len(n_step) - 1) * n_step[-1])
    return found


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.9, 1.0)])
def test_value_targets_are_mixtures_of_n_step_returns(gamma: float, lam: float) -> None:
    for steps in (1, 2, 7):
        rewards, values = RNG.normal(size=steps), RNG.normal(size=steps).astype(np.float32)
        expected = lambda_returns(rewards.tolist(), [*values.tolist(), 0.0], gamma, lam)
        assert value_targets(rewards, values, gamma, lam) == pytest.approx(expected)


@pytest.mark.parametrize("truncated", [True, False])
def test_an_episode_that_did_not_terminate_is_refused(module: MaskedPPOTorchRLModule, truncated: bool) -> None:
    with pytest.raises(AssertionError, match="would need its last value"):
        watch(module, rollout(MASKS), rollout(MASKS, terminated=False, truncated=truncated))


def test_explained_variance_is_one_for_the_truth_and_nothing_for_the_mean() -> None:
    targets = RNG.normal(size=50)
    assert explained_variance(targets, targets) == 1.0
    assert explained_variance(targets, np.full(50, targets.mean())) == pytest.approx(0.0)
    assert explained_variance(targets, -targets) == pytest.approx(-3.0)
    assert explained_variance(np.full(50, 0.1), targets) is None


def test_the_value_figures_are_over_the_steps_of_all_episodes(module: MaskedPPOTorchRLModule) -> None:
    rollouts = [rollout(MASKS), rollout(MASKS[:1]), rollout(MASKS * 3)]
    values = [forward(module, episode)[1] for episode in rollouts]
    targets = np.concatenate(
        [
            lambda_returns(episode.get_rewards().tolist(), [*of_episode.tolist(), 0.0], GAMMA, LAMBDA)
            for episode, of_episode in zip(rollouts, values, strict=True)
        ]
    )
    figures = watch(module, *rollouts).report()
    assert figures["value_target_mean"] == pytest.approx(targets.mean(), abs=1e-6)
    assert figures["value_target_std"] == pytest.approx(targets.std())
    left = np.var(targets - np.concatenate(values)) / np.var(targets)
    assert figures["explained_variance"] == pytest.approx(1 - left, abs=1e-5)


# --- the policy ---------------------------------------------------------------------------------------------------


def push(module: MaskedPPOTorchRLModule, by: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def flatten(module: MaskedPPOTorchRLModule) -> None:
    with torch.no_grad():
        for parameter in module.pi.parameters():
            parameter.mul_(1e-4)


def test_an_update_that_changes_nothing_has_no_divergence(module: MaskedPPOTorchRLModule) -> None:
    figures = watch(module, rollout(MASKS)).report()
    assert (figures["kl"], figures["clip_fraction"]) == (0.0, 0.0)


@pytest.mark.parametrize("mask", [[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]])
def test_a_policy_that_hardly_prefers_anything_has_its_full_entropy(
    module: MaskedPPOTorchRLModule, mask: list[int]
) -> None:
    flatten(module)
    assert watch(module, rollout([mask] * 4)).report()["entropy_share"] == pytest.approx(1.0, abs=1e-5)


def test_steps_without_a_choice_do_not_count(module: MaskedPPOTorchRLModule) -> None:
    forced = rollout([[1, 0, 0, 0]] * 20)
    chosen = rollout(MASKS)
    alone, with_forced = watch(module, chosen), watch(module, chosen, forced)
    nothing = watch(module, forced)
    push(module, 0.5)
    figures, diluted = alone.report(), with_forced.report()
    for name in ("kl", "entropy_share", "clip_fraction"):
        assert diluted[name] == pytest.approx(figures[name])
        assert nothing.report()[name] is None
    assert diluted["value_target_mean"] != figures["value_target_mean"]


def test_divergence_and_clip_fraction_are_those_of_the_update(module: MaskedPPOTorchRLModule) -> None:
    episode = rollout(MASKS * 4)
    watched, (before, _) = watch(module, episode), forward(module, episode)
    push(module, 0.5)
    after, _ = forward(module, episode)
    kls, shares, outside = [], [], []
    for row, mask in enumerate(MASKS * 4):
        legal = [action for action in range(4) if mask[action]]
        if len(legal) > 1:
            p, q = before[row, legal].double(), after[row, legal].double()
            kls.append(float((p * (p / q).log()).sum()))
            shares.append(float(-(p * p.log()).sum() / np.log(len(legal))))
            outside.append(abs(float(q[-1] / p[-1]) - 1) > CLIP)
    figures = watched.report()
    assert figures["kl"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert figures["entropy_share"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert figures["clip_fraction"] == pytest.approx(np.mean(outside))
    assert min(kls) > 0
    assert any(outside)


def test_a_finished_policy_has_finite_figures(module: MaskedPPOTorchRLModule) -> None:
    with torch.no_grad():
        for parameter in module.pi.parameters():
            parameter.mul_(1e4)
    watched = watch(module, rollout(MASKS * 3))
    push(module, 1e-3)
    figures = watched.report()
    assert figures["entropy_share"] == pytest.approx(0.0, abs=1e-3)
    assert all(np.isfinite(value) for value in figures.values() if value is not None)


# --- warnings -----------------------------------------------------------------------------------------------------

HEALTHY: dict[str, float | None] = {
    **{"explained_variance": 0.6, "entropy_share": 0.4, "kl": 0.08, "clip_fraction": 0.6},
    **{"gradient_norm": 1.5, "value_target_std": 1.0},
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gradient_norm": float("nan")}, "gradient is not finite"),
        ({"gradient_norm": float("inf")}, "gradient is not finite"),
        ({"value_target_std": 0.0, "explained_variance": None}, "every episode earned the same"),
        ({"explained_variance": -0.3}, r"explains nothing (explained variance -0.30)"),
        ({"entropy_share": 0.004}, "hardly explores any more (entropy 0.4% of its maximum)"),
        ({"kl": 0.31, "clip_fraction": 0.9}, "changed the policy very much (KL 0.31)"),
        ({"clip_fraction": 0.85}, "85% of the steps left the clip range"),
        ({"kl": 0.0}, "left the policy as it was: learning has stopped"),
    ],
)
def test_each_thing_that_goes_wrong_is_said_once_and_in_one_line(changed: dict[str, Any], message: str) -> None:
    (warning,) = warnings_of({**HEALTHY, **changed}, iteration=30, iterations=40)
    assert message in warning
    assert "\n" not in warning


def test_a_healthy_learner_is_left_in_peace() -> None:
    assert warnings_of(HEALTHY, iteration=30, iterations=40) == []
    assert warnings_of({}, iteration=30, iterations=40) == []
    assert warnings_of({**HEALTHY, "kl": None, "entropy_share": None, "clip_fraction": None}, 30, 40) == []


def test_a_value_function_may_know_nothing_at_first() -> None:
    row = {**HEALTHY, "explained_variance": 0.0}
    assert [bool(warnings_of(row, iteration, 40)) for iteration in (1, 10, 11, 40)] == [False, False, True, True]
