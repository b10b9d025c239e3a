"""Policies meet an environment: names are checked before an episode begins, and messages are one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fast_tasks import make_fast_task

import esper_ray
from esper_ray.episode import ActionTable, MorphogenesisEnv, Policy, require_fitting, run_ppo_episode
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.rollout import play_episode, play_episodes
from esper_ray.errors import CheckpointError, ConfigurationError
from esper_ray.policies import HeuristicPolicy, LearnedPolicy, ReplayPolicy, SchedulePolicy, WaitPolicy
from esper_ray.policies.manifest import PolicyManifest, write_manifest
from esper_ray.policies.network import NetworkSpec, PolicyNetwork, write_policy
from esper_ray.tasks import TaskSpec

OTHER = ActionTable(["norm", "conv_tiny"])


def write_checkpoint(folder: Path, env: MorphogenesisEnv) -> Path:
    """Writes what of a checkpoint belongs to the policy: random weights for the environment's spaces."""
    names = {"actions": env.action_table.names, "observation": env.observation_table.names}
    sizes = {"observations": len(names["observation"]), "actions": len(names["actions"]), "steps": env.task.max_epochs}
    spec = NetworkSpec(kind="lstm", hidden=(4,), lstm_width=3, **sizes)
    torch.manual_seed(0)
    folder.mkdir()
    write_policy(folder, spec, PolicyNetwork(spec).state_dict())
    versions = {"esper_ray": esper_ray.__version__}
    write_manifest(
        folder, PolicyManifest(versions=versions, task=env.task.model_dump(mode="json"), plugins=(), **names)
    )
    return folder


@pytest.fixture
def env(fast_task: TaskSpec) -> MorphogenesisEnv:
    return MorphogenesisEnv(fast_task)


@pytest.fixture
def narrower() -> MorphogenesisEnv:
    """An environment whose task has fewer blueprints."""
    task = make_fast_task()
    decisions = task.decisions.model_copy(update={"blueprints": ("norm", "conv_heavy")})
    return MorphogenesisEnv(task.model_copy(update={"decisions": decisions}))


def test_a_checkpoint_s_policy_plays_its_own_task(env: MorphogenesisEnv, tmp_path: Path) -> None:
    policy = LearnedPolicy.from_checkpoint(write_checkpoint(tmp_path / "checkpoint", env))
    first, again = (play_episode(env, policy, 3).as_row() | {"seconds": 0.0} for _ in range(2))
    assert first == again
    assert len(first["action_counts"]) > 1


def test_a_checkpoint_s_policy_refuses_another_task(
    env: MorphogenesisEnv, narrower: MorphogenesisEnv, tmp_path: Path
) -> None:
    policy = LearnedPolicy.from_checkpoint(write_checkpoint(tmp_path / "checkpoint", env))
    with pytest.raises(ConfigurationError) as refusal:
        run_ppo_episode(policy, narrower.task)
    assert str(refusal.value) == (
        "the actions that the policy was made for are not those of task digits: it has GERMINATE_ATTENTION, "
        "GERMINATE_DEPTHWISE, GERMINATE_CONV_LIGHT; use the task that it was made for"
    )
    observation, _ = narrower.reset(seed=0)
    with pytest.raises(ConfigurationError, match=r"the policy expects \d+ observations and 8 actions, got \d+ and 5"):
        policy.act(observation)


def test_other_columns_of_the_same_number_are_refused(env: MorphogenesisEnv, tmp_path: Path) -> None:
    policy = LearnedPolicy.from_checkpoint(write_checkpoint(tmp_path / "checkpoint", env))
    policy.observation_names = ("pulse", *policy.observation_names[1:])
    with pytest.raises(ConfigurationError, match=r"the observations that .* it has pulse; here there is epoch"):
        require_fitting(policy, env)
    policy.observation_names = env.observation_table.names[::-1]
    with pytest.raises(ConfigurationError, match="they have another order"):
        require_fitting(policy, env)


@pytest.mark.parametrize(
    "make",
    [
        lambda env: SchedulePolicy(OTHER, "norm"),
        lambda env: ReplayPolicy(OTHER, ["WAIT"] * env.task.max_epochs),
        lambda env: HeuristicPolicy(env.task, OTHER, ["norm"]),
    ],
    ids=["schedule", "replay", "heuristic"],
)
def test_controls_refuse_an_environment_with_other_actions(
    env: MorphogenesisEnv, make: Callable[[MorphogenesisEnv], Policy]
) -> None:
    with pytest.raises(ConfigurationError, match="it has GERMINATE_CONV_TINY; here there is GERMINATE_ATTENTION"):
        play_episode(env, make(env), 0)
    with pytest.raises(ConfigurationError, match="it has GERMINATE_CONV_TINY"):
        play_episodes(LockstepEnvs([env]), [make(env)], [0])


def test_a_policy_of_one_s_own_needs_no_names(env: MorphogenesisEnv) -> None:
    require_fitting(WaitPolicy(), env)


def test_a_replay_that_is_too_short_says_so(env: MorphogenesisEnv) -> None:
    with pytest.raises(ConfigurationError, match="1 decisions are recorded, expected one for each epoch"):
        play_episode(env, ReplayPolicy(env.action_table, ["WAIT"]), 0)


def test_another_version_s_checkpoint_is_refused(env: MorphogenesisEnv, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", env)
    file = folder / "esper_ray.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"versions": {"esper_ray": "0.0.1"}}))
    with pytest.raises(CheckpointError, match=r"was written with esper_ray 0\.0\.1, this is"):
        LearnedPolicy.from_checkpoint(folder)


def test_a_damaged_checkpoint_is_refused(env: MorphogenesisEnv, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", env)
    with (folder / "policy.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors is not as it was written"):
        LearnedPolicy.from_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "unknown device 'gpu': expected cpu or cuda"),
        ("meta", "unknown device 'meta': expected cpu or cuda"),
        ("cuda:9", "device 'cuda:9': torch finds no GPU here; use cpu"),
        ("cuda", "device 'cuda': torch finds no GPU here; use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(fast_task: TaskSpec, device: str, message: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigurationError) as refusal:
        run_ppo_episode(WaitPolicy(), fast_task, device=device)
    assert str(refusal.value) == message


def test_an_unknown_option_of_reset_is_refused(env: MorphogenesisEnv) -> None:
    with pytest.raises(ConfigurationError, match="unknown option of reset 'growm': did you mean 'grown'"):
        env.reset(options={"growm": "norm"})


def test_policies_need_no_ray() -> None:
    code = "import sys, esper_ray.policies; print('ray' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
