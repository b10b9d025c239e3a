"""The environment in Gymnasium's hands: wrappers, `make`, vectors, copies, and what `step` refuses."""

import copy
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.errors import ConfigurationError, IllegalActionError
from esper_ray.policies import SchedulePolicy
from esper_ray.tasks import TaskSpec

ID = "esper_ray/Morphogenesis-v0"

WRAPPERS: dict[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 5),
    "Autoreset": wrappers.Autoreset,
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "FlattenObservation": wrappers.FlattenObservation,
    "NormalizeObservation": lambda env: wrappers.NormalizeObservation(wrappers.FlattenObservation(env)),
    "FilterObservation": lambda env: wrappers.FilterObservation(env, ["observations"]),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 12), flatten=False),
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(wrappers.FlattenObservation(env), 2),
    "DelayObservation": lambda env: wrappers.DelayObservation(wrappers.FlattenObservation(env), 1),
    "DtypeObservation": lambda env: wrappers.DtypeObservation(wrappers.FlattenObservation(env), np.float64),
    "ClipReward": lambda env: wrappers.ClipReward(env, -1, 1),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward),
    "NormalizeReward": wrappers.NormalizeReward,
    "TransformObservation": lambda env: wrappers.TransformObservation(
        env, lambda observation: observation["observations"], env.observation_space["observations"]
    ),
    "TransformAction": lambda env: wrappers.TransformAction(env, int, env.action_space),
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(
        wrappers.FlattenObservation(env), (1, spaces.flatdim(env.observation_space))
    ),
}
"""Those that apply to discrete actions without pictures."""


@pytest.fixture
def env(fast_task: TaskSpec) -> MorphogenesisEnv:
    return MorphogenesisEnv(fast_task)


def play(env: gym.Env[Any, Any], seed: int = 0) -> dict[str, Any]:
    """Acts at random to the end of an episode and returns the last info."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    while True:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite(float(reward))
        if terminated or truncated:
            return info


@pytest.mark.parametrize("name", WRAPPERS)
def test_gymnasium_s_wrappers_work(env: MorphogenesisEnv, name: str) -> None:
    info = play(WRAPPERS[name](env))
    if name != "TimeLimit":
        assert isinstance(info["record"], EpisodeRecord)
    if name == "RecordEpisodeStatistics":
        assert info["episode"]["l"] == env.task.max_epochs
        assert info["episode"]["r"] == pytest.approx(info["record"].episode_return)


def test_stable_baselines_checker_has_nothing_to_say(env: MorphogenesisEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)


def test_make_knows_the_environment(fast_task: TaskSpec) -> None:
    made = gym.make(ID, task=fast_task)
    assert isinstance(made.unwrapped, MorphogenesisEnv)
    assert made.unwrapped.task == fast_task
    assert isinstance(play(made)["record"], EpisodeRecord)
    assert gym.spec(ID).kwargs == {"task": "digits"}


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_it_record_episodes(fast_task: TaskSpec, mode: str) -> None:
    kwargs = {"context": "fork"} if mode == "async" and "fork" in multiprocessing.get_all_start_methods() else {}
    made = gym.make_vec(ID, num_envs=2, vectorization_mode=mode, vector_kwargs=kwargs, task=fast_task)
    envs = wrappers.vector.RecordEpisodeStatistics(made)
    try:
        envs.reset(seed=[1, 2])
        for _ in range(fast_task.max_epochs):
            _, _, terminated, _, infos = envs.step(np.array([0, 0]))
    finally:
        envs.close()
    assert terminated.all() and infos["_record"].all()
    assert [record.episode_seed for record in infos["record"]] == [1, 2]
    assert infos["episode"]["r"] == pytest.approx([record.episode_return for record in infos["record"]])


def test_environments_in_lockstep_are_a_vector_for_wrappers(fast_task: TaskSpec) -> None:
    envs = wrappers.vector.RecordEpisodeStatistics(LockstepEnvs([MorphogenesisEnv(fast_task) for _ in range(2)]))
    envs.reset(seed=[1, 2])
    for _ in range(fast_task.max_epochs):
        *_, infos = envs.step(np.array([0, 0]))
    assert infos["episode"]["l"].tolist() == [fast_task.max_epochs] * 2
    assert infos["episode"]["r"] == pytest.approx([record.episode_return for record in infos["record"]])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("epochs", [0, 3, 7], ids=["at the start", "before germination", "with a live seed"])
def test_a_copy_goes_on_by_itself_and_as_the_original_does(
    env: MorphogenesisEnv, duplicate: Callable[[MorphogenesisEnv], MorphogenesisEnv], epochs: int
) -> None:
    policy = SchedulePolicy(env.action_table, "conv_heavy", 3, 8)
    observation, _ = env.reset(seed=1)
    for _ in range(epochs):
        observation = env.step(policy.act(observation))[0]
    twin, agent = duplicate(env), copy.deepcopy(policy)
    rows = []
    for each, acting in ((twin, agent), (env, policy)):
        seen, info = observation, {}
        while "record" not in info:
            seen, *_, info = each.step(acting.act(seen))
        rows.append(info["record"].as_row() | {"seconds": 0.0})
    assert rows[0] == rows[1]
    assert "GERMINATE_CONV_HEAVY" in rows[0]["per_epoch"]["decision"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_samples_legal_actions_only(
    env: MorphogenesisEnv, duplicate: Callable[[MorphogenesisEnv], MorphogenesisEnv]
) -> None:
    env.reset(seed=0)
    twin = duplicate(env)
    assert {int(twin.action_space.sample()) for _ in range(50)} == {0}
    twin.reset(seed=0)
    for _ in range(4):
        observation = twin.step(0)[0]
    assert {int(twin.action_space.sample()) for _ in range(200)} == set(np.flatnonzero(observation["action_mask"]))
    assert {int(env.action_space.sample()) for _ in range(50)} == {0}


def test_writing_into_the_mask_makes_nothing_legal(env: MorphogenesisEnv) -> None:
    observation, _ = env.reset(seed=0)
    observation["action_mask"][:] = 1
    assert {int(env.action_space.sample()) for _ in range(50)} == {0}
    with pytest.raises(IllegalActionError):
        env.step(1)


def test_a_task_may_be_given_by_its_name() -> None:
    assert MorphogenesisEnv("digits").task.name == "digits"
    with pytest.raises(ConfigurationError, match="unknown task 'digit': did you mean 'digits'"):
        MorphogenesisEnv("digit")


@pytest.mark.parametrize("action", [1.7, np.float32(0), "WAIT", None, np.array([0, 0])], ids=repr)
def test_what_is_no_integer_is_no_action(env: MorphogenesisEnv, action: Any) -> None:
    env.reset(seed=0)
    with pytest.raises(IllegalActionError, match="an action is an integer from 0 to"):
        env.step(action)
    assert env.run.epoch == 0


def test_a_number_that_is_no_integer_fails_in_lockstep_as_well(fast_task: TaskSpec) -> None:
    envs = LockstepEnvs([MorphogenesisEnv(fast_task) for _ in range(2)])
    envs.reset(seed=[0, 1])
    *_, infos = envs.step(np.array([0.0, 1.7]))
    assert [str(failure) for failure in infos["failure"]] == [
        f"an action is an integer from 0 to {envs.single_action_space.n - 1}, got np.float64({a})" for a in (0.0, 1.7)
    ]


def test_step_asks_for_a_reset_before_the_first_and_after_the_end_of_an_episode(env: MorphogenesisEnv) -> None:
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(0)
    play(env)
    with pytest.raises(gym.error.ResetNeeded, match=r"the episode is over: call reset\(\)"):
        env.step(0)
    env.reset(seed=1)
    env.step(0)
