"""The environment: contract, mask, observation, reproducibility, record."""

import json
from math import isfinite
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from fast_tasks import make_fast_task
from gymnasium.utils.env_checker import check_env

from esper_ray.episode import MorphogenesisEnv, ObservationTable, run_ppo_episode
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import ConfigurationError, IllegalActionError
from esper_ray.policies import RandomPolicy, SchedulePolicy, WaitPolicy
from esper_ray.tasks import TaskSpec, get_task_spec


@pytest.fixture
def env(fast_task: TaskSpec) -> MorphogenesisEnv:
    return MorphogenesisEnv(fast_task)


def schedule(env: MorphogenesisEnv, blueprint_id: str = "conv_heavy") -> SchedulePolicy:
    return SchedulePolicy(env.action_table, blueprint_id, germinate_at=3)


def test_it_passes_gymnasium_s_checker(env: MorphogenesisEnv) -> None:
    check_env(env, skip_render_check=True)


def test_an_episode_is_the_budget_of_epochs_and_then_terminates(env: MorphogenesisEnv) -> None:
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(env.task.max_epochs)]
    assert ends == [(False, False)] * 11 + [(True, False)]


def test_epochs_of_beginnings_and_of_twins_are_progress_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that trained them in silence would be taken for hung."""
    monkeypatch.setenv("ESPER_RAY_CACHE", str(tmp_path))
    epochs: list[object] = []
    monkeypatch.setattr(MorphogenesisEnv, "_on_epoch", lambda env: epochs.append(env))
    env = MorphogenesisEnv(make_fast_task(reward__mode="paired"), share_beginnings=True)
    env.reset(seed=0)
    counts = [len(epochs)]
    while not env.step(0)[2]:
        counts.append(len(epochs))
    before_choice, budget = 3, env.task.max_epochs
    assert counts == list(range(before_choice + budget, before_choice + 2 * budget))


def test_truncation_instead_of_termination_on_request(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task, truncate=True)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(12)][-1] == (False, True)


def test_a_masked_action_raises_and_names_what_is_legal(env: MorphogenesisEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(IllegalActionError, match="FOSSILIZE is not legal after epoch 0: expected one of WAIT"):
        env.step(env.action_table.fossilize)
    with pytest.raises(IllegalActionError, match="99 is not legal"):
        env.step(99)
    assert env.run.epoch == 0


def test_every_action_that_the_mask_forbids_raises_and_every_other_is_taken(env: MorphogenesisEnv) -> None:
    policy = RandomPolicy()
    policy.start_episode(1)
    observation, _ = env.reset(seed=1)
    for _ in range(env.task.max_epochs):
        for action in np.flatnonzero(observation["action_mask"] == 0):
            with pytest.raises(IllegalActionError):
                env.step(action)
        observation, *_ = env.step(policy.act(observation))


def test_the_mask_follows_the_thresholds_of_the_task(env: MorphogenesisEnv) -> None:
    actions = env.action_table
    assert actions.names[0] == "WAIT"
    assert actions.names[1:6] == (
        "GERMINATE_NORM",
        "GERMINATE_ATTENTION",
        "GERMINATE_DEPTHWISE",
        "GERMINATE_CONV_LIGHT",
        "GERMINATE_CONV_HEAVY",
    )
    assert actions.names[6:] == ("FOSSILIZE", "CULL")
    observation, _ = env.reset(seed=0)
    legal = []
    for action in [0, 0, 0, actions.germinate("conv_light"), 0, 0, 0]:
        legal.append([actions.names[i] for i in np.flatnonzero(observation["action_mask"])])
        observation, *_ = env.step(action)
    germinations = list(actions.names[1:6])
    assert legal == [["WAIT"]] * 3 + [["WAIT", *germinations], ["WAIT"], ["WAIT"], ["WAIT", "CULL"]]


def test_plateau_and_latch_hold_germination_back() -> None:
    task = make_fast_task(decisions__min_plateau=3, decisions__require_stabilised=True, max_epochs=20)
    env = MorphogenesisEnv(task)
    observation, _ = env.reset(seed=0)
    for _ in range(task.max_epochs):
        view = env.run.view()
        may = view.signals.plateau_count >= 3 and view.signals.stabilised and view.epoch >= 3
        assert bool(observation["action_mask"][1]) is may
        observation, *_ = env.step(0)


def test_sampling_the_action_space_respects_the_mask(env: MorphogenesisEnv) -> None:
    env.reset(seed=0)
    assert {int(env.action_space.sample()) for _ in range(30)} == {0}
    for _ in range(3):
        env.step(0)
    assert {int(env.action_space.sample()) for _ in range(300)} == set(range(6))


def test_the_observation_has_the_forty_five_values_of_the_specification_first() -> None:
    env = MorphogenesisEnv(make_fast_task())
    names = env.observation_table.names
    assert len(set(names)) == len(names)
    assert names.index("blueprint_norm") == 30
    assert names.index("seed_gradient_norm") == 35
    assert names.index("stage_is_dormant") == 45
    assert names[-2:] == ("embargo_left", "last_decision")
    assert env.observation_space["observations"].shape == (len(names),)


def test_observations_stay_in_their_bounds_and_are_never_nan(env: MorphogenesisEnv) -> None:
    space = env.observation_space["observations"]
    for seed in range(3):
        policy = RandomPolicy()
        policy.start_episode(seed)
        observation, _ = env.reset(seed=seed)
        for _ in range(env.task.max_epochs):
            assert space.contains(observation["observations"])
            observation, *_ = env.step(policy.act(observation))


def test_the_observation_reads_what_happened(env: MorphogenesisEnv) -> None:
    def value(name: str) -> float:
        return float(observation["observations"][env.observation_table.names.index(name)])

    observation, _ = env.reset(seed=0)
    assert not observation["observations"][env.observation_table.names.index("epoch")]
    assert value("stage_is_dormant") == 1.0
    policy = schedule(env)
    policy.start_episode(0)
    for _ in range(11):
        observation, _, _, _, info = env.step(policy.act(observation))
        assert value("epoch") == pytest.approx(info["epoch"] / 12)
        assert value("val_accuracy") == pytest.approx(info["val_accuracy"] / 100)
        assert value(f"stage_is_{info['stage'].lower()}") == 1.0
    assert value("blueprint_conv_heavy") == 1.0
    assert value("last_decision") == 1.0


def test_missing_values_are_zero_even_if_a_measurement_is_not_finite() -> None:
    table = ObservationTable(["norm"])
    env = MorphogenesisEnv(make_fast_task())
    env.reset(seed=0)
    observed = table.observe(env.run.view())
    nonzero = {name for name, value in zip(table.names, observed, strict=True) if value != 0.0}
    assert nonzero == {"stage", "free_slots", "stage_is_dormant"}
    env.step(0)
    assert env.run.outcome is not None
    object.__setattr__(env.run.outcome, "train_loss", float("nan"))
    assert np.isfinite(table.observe(env.run.view())).all()


def test_an_episode_is_a_function_of_its_seed_and_decisions(fast_task: TaskSpec) -> None:
    def numbers(seed: int) -> dict[str, object]:
        row = run_ppo_episode(RandomPolicy(), fast_task, episode_seed=seed).record.as_row()
        row.pop("seconds")
        return row

    torch.manual_seed(1)
    first = numbers(5)
    torch.manual_seed(2)
    torch.rand(17)
    assert numbers(5) == first
    assert numbers(6) != first


def test_playing_leaves_the_global_random_state_alone(fast_task: TaskSpec) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run_ppo_episode(RandomPolicy(), fast_task, episode_seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_germination_leaves_the_host_s_own_learning_untouched() -> None:
    """Up to the end of incubation the host is the one that only waited, to the last bit."""
    env = MorphogenesisEnv(get_task_spec("digits"))
    waiting = play_episode(env, WaitPolicy(), 3)
    growing = play_episode(env, schedule(env, "conv_light"), 3)
    incubated = [e.epoch for e in growing.epochs if e.alpha == 0.0 and e.epoch < 9]
    assert incubated == [1, 2, 3, 4, 5]
    for epoch in incubated:
        assert growing.epochs[epoch - 1].train_loss == waiting.epochs[epoch - 1].train_loss
    assert growing.epochs[8].train_loss != waiting.epochs[8].train_loss


def test_the_result_of_an_episode_is_complete(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task)
    result = run_ppo_episode(schedule(env), fast_task, episode_seed=2)
    assert len(result.rewards) == fast_task.max_epochs
    assert sum(result.action_counts.values()) == fast_task.max_epochs
    assert result.action_counts["GERMINATE_CONV_HEAVY"] == 1
    assert result.final_val_accuracy == result.record.epochs[-1].val_accuracy


def test_the_row_of_an_episode_is_strict_json_and_its_parts_add_up(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task)
    row = play_episode(env, schedule(env), 2).as_row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert sum(row["reward_components"].values()) == pytest.approx(row["return"], rel=1e-5)
    assert sum(row["per_epoch"]["reward"]) == pytest.approx(row["return"], rel=1e-5)
    assert len(row["stages"]) == fast_task.max_epochs
    assert row["stages"][3:5] == ["GERMINATED", "TRAINING"]
    gradient_epochs = [i for i, norm in enumerate(row["per_epoch"]["gradient_norm"]) if norm is not None]
    assert gradient_epochs == [i for i, stage in enumerate(row["stages"]) if stage not in ("DORMANT", "FOSSILIZED")]


def test_kept_accuracy_counts_only_a_fossilized_seed() -> None:
    env = MorphogenesisEnv(get_task_spec("digits"))
    kept = play_episode(env, SchedulePolicy(env.action_table, "conv_heavy", 3, fossilize_at=20), 0)
    dropped = play_episode(env, SchedulePolicy(env.action_table, "conv_heavy", 3, fossilize_at=99), 0)
    assert kept.final_stage == "FOSSILIZED"
    assert kept.kept_val_accuracy == kept.final_val_accuracy
    assert kept.added_parameters == 1184
    assert dropped.final_stage == "PROBATIONARY"
    assert dropped.added_parameters == 0
    last = dropped.epochs[-1]
    assert last.contribution is not None
    assert dropped.kept_val_accuracy == pytest.approx(last.val_accuracy - last.contribution)
    assert dropped.kept_val_accuracy < dropped.final_val_accuracy - 10


def test_a_grown_host_beats_the_one_that_waited_on_real_digits() -> None:
    env = MorphogenesisEnv(get_task_spec("digits"))
    waited = play_episode(env, WaitPolicy(), 1).kept_val_accuracy
    grown = play_episode(env, schedule(env), 1).kept_val_accuracy
    assert grown > waited + 10


def test_the_probe_is_logged_in_training_only(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task)
    record = play_episode(env, schedule(env), 2)
    probed = [epoch.epoch for epoch in record.epochs if epoch.probe_loss_change is not None]
    assert probed == [4, 5]
    assert all(isfinite(epoch.probe_loss_change) for epoch in record.epochs if epoch.probe_loss_change is not None)


def test_contribution_is_measured_exactly_where_alpha_is_above_zero(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task)
    record = play_episode(env, schedule(env), 2)
    assert all((epoch.contribution is not None) == (epoch.alpha > 0) for epoch in record.epochs)
    assert any(epoch.alpha > 0 for epoch in record.epochs)


def test_the_learning_rate_falls_over_the_last_epochs(env: MorphogenesisEnv) -> None:
    env.reset(seed=0)
    rates = []
    for _ in range(12):
        env.step(0)
        rates.append(env.run._host_optimizer.param_groups[0]["lr"] / 0.02)
    assert rates[:7] == [1.0] * 7
    assert rates[7:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_an_episode_too_short_for_any_seed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no seed can reach PROBATIONARY.*--max-epochs 10"):
        MorphogenesisEnv(make_fast_task(max_epochs=9))
    env = MorphogenesisEnv(make_fast_task(max_epochs=10))
    record = play_episode(env, schedule(env), 0)
    assert record.epochs[-1].stage in ("PROBATIONARY", "FOSSILIZED")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lifecycle.blending_step", 3, "did you mean 'lifecycle.blending_steps'"),
        ("lifecycle", 3, "unknown task setting 'lifecycle'"),
        ("name", "mine", "unknown task setting 'name'"),
        ("lifecycle.blending_steps", 0, "greater than or equal to 1"),
        ("seed_optimizer.kind", "adamw", "must be of one kind"),
        ("reward.mode", "fame", "Input should be 'contribution', 'gain', 'loss', 'sparse' or 'paired'"),
    ],
)
def test_a_wrong_task_setting_is_refused_in_one_line(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        get_task_spec("digits", {key: value})
    assert "\n" not in str(caught.value)


def test_it_is_a_gymnasium_environment(env: MorphogenesisEnv) -> None:
    assert isinstance(env, gym.Env)
    first, info = env.reset(seed=7)
    again, _ = env.reset(seed=7)
    assert info["episode_seed"] == 7
    assert np.array_equal(first["observations"], again["observations"])
    assert env.reset()[1]["episode_seed"] != env.reset()[1]["episode_seed"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"reward.mode": "loss", "reward.target_loss": 5.0},
            r"target_loss=5 must be below .* 2.30 nats for 10 classes",
        ),
        ({"data.sequence_length": 3}, "data.sequence_length is for texts"),
        ({"host.base_chanels": 3}, "did you mean 'host.base_channels'"),
        ({"data.batch_size": 0}, "data.batch_size=0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        get_task_spec("digits", overrides)


def test_settings_of_images_are_refused_for_a_text() -> None:
    with pytest.raises(ConfigurationError, match="augmentation=crop_and_flip is for images"):
        get_task_spec("pydoc", {"data.augmentation": "crop_and_flip"})
    with pytest.raises(ConfigurationError, match=r"data.batch_size=0"):
        get_task_spec("pydoc", {"data.batch_size": 0})
    with pytest.raises(ConfigurationError, match=r"needs data.sequence_length"):
        get_task_spec("pydoc", {"data.sequence_length": None})
