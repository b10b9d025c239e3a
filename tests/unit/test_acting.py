"""Acting deterministically: at the median of the policy's own waiting time."""

import copy
from math import log
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.rollout import play_episode, play_episodes
from esper_ray.errors import ConfigurationError
from esper_ray.orchestration.config import EvaluateConfig
from esper_ray.orchestration.fleet.env_runner import ChosenActions
from esper_ray.orchestration.learner.policy_network import initial_state, network_spec, rllib_model_config
from esper_ray.orchestration.learner.rl_module import MaskedAPPOTorchRLModule, MaskedPPOTorchRLModule
from esper_ray.policies import Acting, LearnedPolicy
from esper_ray.policies.acting import median_action
from esper_ray.policies.network import NetworkSpec, PolicyNetwork
from esper_ray.tasks import TaskSpec

WAIT, GERMINATE, FOSSILIZE, CULL = range(4)
HOST_THAT_FOSSILIZES = 2


def actions(steps: list[list[float]]) -> list[int]:
    """Returns what the rule does with the probabilities of each step of an episode."""
    chosen, still_waiting = [], 1.0
    for probabilities in steps:
        action, still_waiting = median_action(probabilities, still_waiting)
        chosen.append(action)
    return chosen


def test_a_tenth_at_each_step_is_taken_at_the_seventh() -> None:
    assert actions([[0.9, 0.0, 0.1, 0.0]] * 8) == [WAIT] * 6 + [FOSSILIZE, WAIT]


def test_steps_without_a_choice_change_nothing() -> None:
    steps = [[0.9, 0.0, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0]] * 7
    assert actions(steps)[::2] == [WAIT] * 6 + [FOSSILIZE]
    assert set(actions(steps)[1::2]) == {WAIT}


def test_the_product_begins_anew_after_every_other_action() -> None:
    steps = [[0.6, 0.4, 0.0, 0.0]] * 2 + [[0.6, 0.0, 0.3, 0.1]] * 2
    assert actions(steps) == [WAIT, GERMINATE, WAIT, FOSSILIZE]


def test_one_half_is_not_below_one_half() -> None:
    assert actions([[0.5, 0.5, 0.0, 0.0]] * 2) == [WAIT, GERMINATE]


def test_the_likeliest_other_action_is_taken_even_where_waiting_is_likelier() -> None:
    assert actions([[0.45, 0.1, 0.15, 0.3]]) == [CULL]


def hesitant(env: MorphogenesisEnv, acting: Acting) -> LearnedPolicy:
    """Returns a policy that germinates at once and fossilizes with probability 0.3 whenever it may."""
    spec = NetworkSpec(
        kind="mlp",
        hidden=(2,),
        lstm_width=1,
        observations=len(env.observation_table),
        actions=len(env.action_table),
        steps=env.task.max_epochs,
    )
    network = PolicyNetwork(spec)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    biases = torch.full((spec.actions,), -30.0)
    biases[0], biases[env.action_table.fossilize] = 0.0, log(0.3 / 0.7)
    biases[env.action_table.germinate("conv_heavy")] = 3.0
    network.pi.net.mlp[0].bias.data = biases
    return LearnedPolicy(network, env.action_table.names, env.observation_table.names, acting)


def test_a_policy_whose_likeliest_action_never_fossilizes_does_so_at_its_median(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task)
    likeliest, median = (
        play_episode(env, hesitant(env, acting), HOST_THAT_FOSSILIZES) for acting in ("likeliest", "median")
    )
    assert (likeliest.final_stage, likeliest.kept_blueprint) == ("PROBATIONARY", None)
    assert median.kept_blueprint == "conv_heavy"
    decided, waited = ([epoch.decision for epoch in record.epochs] for record in (median, likeliest))
    at = decided.index("FOSSILIZE")
    assert decided[:at] == waited[:at]
    assert [epoch.stage_at_end for epoch in likeliest.epochs].index("PROBATIONARY") == at - 2  # the second chance


def test_each_host_in_lockstep_waits_by_itself(fast_task: TaskSpec) -> None:
    """Three episodes side by side, the third one with a policy that has just played another."""
    env = MorphogenesisEnv(fast_task)
    agent = hesitant(env, "median")
    seeds = [HOST_THAT_FOSSILIZES, 1, HOST_THAT_FOSSILIZES]
    expected = [play_episode(env, agent, seed) for seed in seeds]
    envs = LockstepEnvs([MorphogenesisEnv(fast_task, data=env.data) for _ in seeds])
    found = play_episodes(envs, [copy.deepcopy(agent) for _ in seeds], seeds)
    decided = [[[epoch.decision for epoch in record.epochs] for record in records] for records in (expected, found)]  # type: ignore[union-attr]
    assert decided[0] == decided[1]
    assert decided[0][0] != decided[0][1]


# --- the network and RLlib ----------------------------------------------------------------------------------------


def observations(steps: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    masks = [np.array([1, step % 3 > 0, step % 2, 1], dtype=np.int8) for step in range(steps)]
    return [
        {"observations": generator.normal(size=5).astype(np.float32), "action_mask": mask if step else masks[0]}
        for step, mask in enumerate(masks)
    ]


@pytest.fixture(params=[(kind, policy) for kind in ("ppo", "appo") for policy in ("mlp", "lstm")], ids="-".join)
def module(request: pytest.FixtureRequest) -> RLModule:
    learner, policy = request.param
    torch.manual_seed(1)
    return {"ppo": MaskedPPOTorchRLModule, "appo": MaskedAPPOTorchRLModule}[learner](
        observation_space=gym.spaces.Dict(
            {"observations": gym.spaces.Box(-np.inf, np.inf, (5,)), "action_mask": gym.spaces.MultiBinary(4)}
        ),
        action_space=gym.spaces.Discrete(4),
        model_config=rllib_model_config(policy, hidden=(8, 6), lstm_width=6, steps=20),
    )


def network_of(module: RLModule) -> PolicyNetwork:
    network = PolicyNetwork(network_spec(module, 20))
    own = network.state_dict()
    network.load_state_dict({name: tensor for name, tensor in module.state_dict().items() if name in own})
    return network


def rllib_logits(module: RLModule, steps: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Returns the logits of each step of an episode, each (1, A), with the recurrent state carried along."""
    recurrent = bool(module.is_stateful())
    state = initial_state(module, 1) if recurrent else None
    logits = []
    for step in steps:
        index = (None, None) if recurrent else (None,)
        batch: dict[str, Any] = {Columns.OBS: {name: torch.from_numpy(value[index]) for name, value in step.items()}}
        if recurrent:
            batch[Columns.STATE_IN] = state
        with torch.no_grad():
            outputs = module.forward_inference(batch)
        state = outputs.get(Columns.STATE_OUT)
        logits.append(outputs[Columns.ACTION_DIST_INPUTS].reshape(1, -1))
    return logits


def test_the_network_has_the_logits_of_rllib_s_module_bit_for_bit(module: RLModule) -> None:
    network, state = network_of(module), None
    steps = observations(6)
    for step, expected in zip(steps, rllib_logits(module, steps), strict=True):
        with torch.no_grad():
            found, state = network(*(torch.from_numpy(step[name])[None] for name in step), state)
        legal = step["action_mask"] > 0
        assert torch.equal(found[0, legal], expected[0, legal])
        assert torch.equal(found.softmax(-1), expected.softmax(-1))


def test_an_actor_without_exploration_acts_as_the_policy_does_alone(module: RLModule) -> None:
    """Two environments side by side; the second one begins another episode half way."""
    learned = LearnedPolicy(network_of(module), tuple("wgfc"), tuple("abcde"), "median")
    series = [observations(12, seed) for seed in (1, 2)]
    starts = [{0}, {0, 6}]
    expected = []
    for steps, begins in zip(series, starts, strict=True):
        chosen = []
        for step, observation in enumerate(steps):
            if step in begins:
                learned.start_episode(0)
            chosen.append(learned.act(observation))
        expected.append(chosen)
    assert any(expected[0]) and any(expected[1])

    logits = [
        [row for part in parts for row in rllib_logits(module, part)]
        for parts in ([series[0]], [series[1][:6], series[1][6:]])
    ]
    connector, found = ChosenActions(), [[], []]  # type: ignore[var-annotated]
    episodes = [SingleAgentEpisode(), SingleAgentEpisode()]
    for step in range(12):
        if step == 6:
            episodes[1] = SingleAgentEpisode()
        batch = {Columns.ACTION_DIST_INPUTS: torch.cat([rows[step] for rows in logits])}
        chosen = connector(rl_module=module, batch=batch, episodes=episodes, explore=False)[Columns.ACTIONS]
        for place in range(2):
            found[place].append(int(chosen[place]))
    assert found == expected


# --- names --------------------------------------------------------------------------------------------------------


def test_evaluate_samples_unless_it_is_told_otherwise() -> None:
    def acting(**flags: bool) -> str:
        return EvaluateConfig(checkpoint=Path("x"), **flags).acting  # type: ignore[arg-type]

    assert (acting(), acting(greedy=True), acting(likeliest=True)) == ("sampled", "median", "likeliest")
    with pytest.raises(ValueError, match="--greedy and --likeliest exclude each other"):
        acting(greedy=True, likeliest=True)


def test_an_unknown_way_of_acting_is_refused(fast_task: TaskSpec) -> None:
    with pytest.raises(ConfigurationError, match="unknown way of acting 'greedy': expected one of"):
        hesitant(MorphogenesisEnv(fast_task), "greedy")  # type: ignore[arg-type]
