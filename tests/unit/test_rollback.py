"""Rollbacks on real hosts: what provokes them, what they restore, what they cost, and where they are counted."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from math import inf, isfinite, nan
from typing import Any

import pytest
import torch
from fast_tasks import make_fast_task, make_fast_text_task

from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.governor import Failure
from esper_ray.episode.host_run import HostRun
from esper_ray.episode.rewards import REWARD_MODES
from esper_ray.orchestration.run.metrics import episode_metrics
from esper_ray.report.aggregate import rollbacks
from esper_ray.tasks import TaskSpec

pytestmark = pytest.mark.faults

Provoke = Callable[[HostRun], None]

EPISODE_SEED = 4
SNAPSHOT = 10
"""Epoch of the last snapshot that is due before the failure."""
FAILS_AFTER = 13
"""So that the next snapshot is due in the middle of three epochs that explode."""
LEARNS: dict[str, Any] = {
    **{"data__train_samples": 400, "data__batch_size": 16, "host__base_channels": 8, "host_optimizer__lr": 0.1},
    "max_epochs": 30,
}
"""A host that has learned something, and of whose losses enough are known, before it fails."""
WAYS = ("run_one", "live", "fossil")
"""What the slot holds when the host fails."""


# --- what goes wrong: done once to a real host, in the middle of its episode --------------------------------------


def poison_a_weight(run: HostRun) -> None:
    with torch.no_grad():
        run.model.get_host_parameters()[0].fill_(nan)


def poison_a_buffer(run: HostRun) -> None:
    """Training uses the statistics of the batch and stays finite; validation does not."""
    buffers = dict(run.model.host.named_buffers())
    buffers["norms.0.running_var"].fill_(inf)
    buffers["norms.0.running_mean"].fill_(inf)


def let_the_learning_rate_run_away(run: HostRun) -> None:
    for group in run._host_optimizer.param_groups:
        group["initial_lr"] = 1e30


def blow_up_the_head(run: HostRun) -> None:
    """Leaves the host with large logits and no learning rate to come back with."""
    with torch.no_grad():
        dict(run.model.host.named_parameters())["head.weight"].mul_(-100.0)
    for group in run._host_optimizer.param_groups:
        group["initial_lr"] = 1e-9


def forget_everything(run: HostRun) -> None:
    with torch.no_grad():
        for parameter in run.model.get_host_parameters():
            parameter.zero_()


CAUSES: dict[str, tuple[Provoke, Failure, int]] = {
    "nan weight": (poison_a_weight, Failure.NON_FINITE, 1),
    "infinite buffer": (poison_a_buffer, Failure.NON_FINITE, 1),
    "runaway learning rate": (let_the_learning_rate_run_away, Failure.NON_FINITE, 1),
    "blown-up head": (blow_up_the_head, Failure.EXPLOSION, 3),
    "forgotten weights": (forget_everything, Failure.COLLAPSE, 1),
}
"""What is done → how the failure is called, after how many such epochs."""


# --- an episode up to its failure ---------------------------------------------------------------------------------


State = tuple[dict[str, torch.Tensor], dict[str, Any]]


def kept_state(run: HostRun) -> State:
    """Weights and buffers of the host and of a fossil; momentum and learning rates of their optimizer."""
    return run.model.kept_weights(), copy.deepcopy(run._host_optimizer.state_dict())


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def start(task: TaskSpec | None = None) -> MorphogenesisEnv:
    env = MorphogenesisEnv(task or make_fast_task(**LEARNS))
    env.reset(seed=EPISODE_SEED)
    return env


def pass_fossil_gate(run: HostRun) -> None:
    """Makes a PROBATIONARY seed one that may be fossilized, whatever it measured on this machine."""
    assert run.model.seed_state is not None
    run.model.seed_state.contribution, run.model.seed_state.gradient_health = 1.0, 1.0


def grow(env: MorphogenesisEnv, way: str, blueprint_id: str = "conv_light") -> State:
    """Plays up to the epoch before the failure; returns the state that a rollback must bring back."""
    run, actions = env.run, env.action_table
    while run.epoch < FAILS_AFTER:
        if way != "run_one" and run.epoch == 3:
            env.step(actions.germinate(blueprint_id))
        elif way == "fossil" and run.epoch == FAILS_AFTER - 1:
            pass_fossil_gate(run)
            run.decide(actions.fossilize)
            good = kept_state(run)  # as the decision leaves it, before the epoch that follows
            env.step(0)
        else:
            env.step(0)
        if run.epoch == SNAPSHOT:
            good = kept_state(run)
    assert run.model.has_active_seed is (way == "live")
    assert (run.kept_blueprint == blueprint_id) is (way == "fossil")
    return good


def play_on(env: MorphogenesisEnv, first: int = 0) -> EpisodeRecord:
    """Plays to the end, with `first` and then WAIT; every observation must be within its bounds."""
    action = first
    while True:
        observation, reward, terminated, _, info = env.step(action)
        assert env.observation_space["observations"].contains(observation["observations"])
        assert isfinite(reward)
        action = 0
        if terminated:
            record: EpisodeRecord = info["record"]
            return record


def play(env: MorphogenesisEnv) -> EpisodeRecord:
    """Plays an episode that only waits."""
    env.reset(seed=EPISODE_SEED)
    return play_on(env)


def assert_finite(record: EpisodeRecord) -> None:
    for epoch in record.epochs:
        values = [value for value in asdict(epoch).values() if isinstance(value, float)]
        assert all(map(isfinite, [*values, *epoch.reward_components.values()])), epoch
    assert all(isfinite(value) for value in vars(record).values() if isinstance(value, float))


# --- what a rollback restores, and that the episode goes on -------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "way"),
    [
        *[("nan weight", "run_one"), ("infinite buffer", "live"), ("runaway learning rate", "fossil")],
        *[("blown-up head", "live"), ("forgotten weights", "fossil")],
    ],
)
def test_a_failed_host_is_put_back_and_its_episode_goes_on(cause: str, way: str) -> None:
    provoke, failure, epochs = CAUSES[cause]
    env = start()
    run = env.run
    good = grow(env, way)
    provoke(run)
    for _ in range(epochs):
        assert not any(epoch.rolled_back for epoch in env.epochs)
        assert not any(map(same, good, kept_state(run))), "weights and optimizer must have something to go back from"
        _, reward, *_ = env.step(0)

    epoch = env.epochs[-1]
    assert epoch.rolled_back == failure.value
    assert same(kept_state(run), good)
    assert run._seed_optimizer is None
    assert not run.model.has_active_seed
    groups = [[id(parameter) for parameter in group["params"]] for group in run._host_optimizer.param_groups]
    of_host = [id(parameter) for parameter in run.model.get_host_parameters()]
    of_seed = [id(parameter) for parameter in run.model.get_seed_parameters()]
    assert groups == ([of_host, of_seed] if way == "fossil" else [of_host])
    assert reward == sum(epoch.reward_components.values())
    assert epoch.reward_components["governor"] == -10.0 * env.task.reward.factor

    record = play_on(env)
    assert_finite(record)
    assert len(record.epochs) == env.task.max_epochs
    assert [e.epoch for e in record.epochs if e.rolled_back] == [FAILS_AFTER + epochs]
    assert record.reward_components["governor"] == -10.0 * env.task.reward.factor
    assert record.as_row()["per_epoch"]["rolled_back"][FAILS_AFTER + epochs - 1] == failure.value
    assert record.final_stage == ("FOSSILIZED" if way == "fossil" else "DORMANT")


@pytest.mark.parametrize("cause", CAUSES)
def test_the_epoch_of_a_rollback_measures_the_host_as_it_was(cause: str) -> None:
    provoke, _, epochs = CAUSES[cause]
    env = start()
    grow(env, "run_one")
    provoke(env.run)
    for _ in range(epochs):
        env.step(0)
    was, failed = env.epochs[SNAPSHOT - 1], env.epochs[-1]
    assert (failed.val_loss, failed.val_accuracy) == (was.val_loss, was.val_accuracy)


@pytest.mark.parametrize("cause", ["nan weight", "blown-up head"])
def test_a_live_seed_goes_with_its_optimizer_and_the_next_one_starts_anew(cause: str) -> None:
    provoke, failure, epochs = CAUSES[cause]
    env = start()
    run, germinate = env.run, env.action_table.germinate("norm")
    grow(env, "live")
    gone = run.model.get_seed_parameters()
    provoke(run)
    for _ in range(epochs):
        assert run.model.has_active_seed
        env.step(0)
    assert env.epochs[-1].rolled_back == failure.value
    assert env.epochs[-1].stage_at_end == "EMBARGOED"
    assert run.model.seed_slot.seed is None
    assert run.model.seed_state is not None and run.model.seed_state.cull_reason == "rolled back by the governor"
    while not run.legal_actions()[germinate]:
        env.step(0)
    env.step(germinate)
    assert run._seed_optimizer is not None
    (group,) = run._seed_optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(p) for p in run.model.get_seed_parameters()]
    assert not {id(parameter) for parameter in gone} & {id(parameter) for parameter in run._seed_optimizer.state}
    assert_finite(play_on(env))


@pytest.mark.parametrize("way", WAYS)
def test_a_text_host_and_its_adamw_are_put_back(way: str) -> None:
    env = start(make_fast_text_task(max_epochs=20))
    good = grow(env, way, "mlp")
    poison_a_weight(env.run)
    env.step(0)
    assert env.epochs[-1].rolled_back == Failure.NON_FINITE.value
    assert same(kept_state(env.run), good)
    assert {"step", "exp_avg", "exp_avg_sq"} == set(good[1]["state"][0])
    assert_finite(play_on(env))


def test_a_fossil_that_is_kept_fixed_is_put_back_too() -> None:
    env = start(make_fast_task(**LEARNS, lifecycle__freeze_fossilized=True))
    weights, _ = grow(env, "fossil")
    with torch.no_grad():
        for parameter in env.run.model.get_seed_parameters():
            parameter.fill_(nan)
    env.step(0)
    assert env.epochs[-1].rolled_back == Failure.NON_FINITE.value
    assert same(env.run.model.kept_weights(), weights)
    assert not any(parameter.requires_grad for parameter in env.run.model.get_seed_parameters())


def test_before_the_first_snapshot_is_due_the_host_starts_over() -> None:
    env = start()
    fresh = kept_state(env.run)
    assert fresh[1]["state"] == {}
    for _ in range(3):
        env.step(0)
    assert not same(fresh, kept_state(env.run))
    poison_a_weight(env.run)
    env.step(0)
    assert same(fresh, kept_state(env.run))
    assert_finite(play_on(env))


def test_a_seed_that_breaks_down_takes_nothing_along_while_it_incubates_and_is_discarded_when_it_blends() -> None:
    for epochs, stage, failure in ((1, "TRAINING", None), (4, "BLENDING", Failure.NON_FINITE.value)):
        env, twin = start(), start()
        for _ in range(3):
            env.step(0)
            twin.step(0)
        env.step(env.action_table.germinate("conv_light"))
        twin.step(0)
        for _ in range(epochs - 1):
            env.step(0)
            twin.step(0)
        assert env.run.model.seed_slot.stage.name == stage
        with torch.no_grad():
            env.run.model.get_seed_parameters()[0].fill_(nan)
        env.step(0)
        twin.step(0)
        assert env.epochs[-1].rolled_back == failure
        assert env.run.model.has_active_seed is (failure is None)
        if failure is None:
            assert env.epochs[-1].val_loss == twin.epochs[-1].val_loss
        metrics = episode_metrics([play_on(env)], env.action_table.names)
        assert all(isfinite(value) for value in metrics["gradients"].values())


# --- what must not go wrong afterwards ----------------------------------------------------------------------------


def test_a_host_that_is_put_back_to_before_it_had_learned_may_learn_again() -> None:
    """It guesses, as it did then. That is no second collapse, else it would be put back in every epoch to come."""
    env = start(make_fast_task(**LEARNS, governor__snapshot_every=40))
    guess, settings = env.task.uniform_loss, env.task.governor
    for _ in range(FAILS_AFTER):
        env.step(0)
    assert min(epoch.val_loss for epoch in env.epochs) < settings.learned_share * guess
    poison_a_weight(env.run)
    record = play_on(env)
    assert [epoch.epoch for epoch in record.epochs if epoch.rolled_back] == [FAILS_AFTER + 1]
    again = [epoch.val_loss for epoch in record.epochs[FAILS_AFTER:]]
    assert abs(again[0] - guess) <= settings.guessing_margin * guess
    assert abs(again[1] - guess) <= settings.guessing_margin * guess
    assert min(again) < settings.learned_share * guess


def test_a_host_that_had_learned_before_it_was_put_back_can_still_collapse() -> None:
    env = start()
    good = grow(env, "run_one")
    poison_a_weight(env.run)
    env.step(0)
    forget_everything(env.run)
    env.step(0)
    assert same(kept_state(env.run), good)
    assert [epoch.rolled_back for epoch in env.epochs[-2:]] == [Failure.NON_FINITE.value, Failure.COLLAPSE.value]
    assert env.epochs[-1].val_loss == env.epochs[SNAPSHOT - 1].val_loss


def test_a_seed_that_is_fossilized_while_losses_explode_does_not_make_the_bad_host_the_good_one() -> None:
    env = start()
    run = env.run
    weights, optimizer = grow(env, "live")
    blow_up_the_head(run)
    env.step(0)
    assert env.epochs[-1].val_loss > 12
    pass_fossil_gate(run)
    run.decide(env.action_table.fossilize)
    fossilized = kept_state(run)
    for _ in range(2):
        env.step(0)
    assert env.epochs[-1].rolled_back == Failure.EXPLOSION.value
    after, optimizer_after = kept_state(run)
    of_fossil = after.keys() - weights.keys()
    assert of_fossil
    assert same({name: after[name] for name in weights}, weights)
    assert same({name: after[name] for name in of_fossil}, {name: fossilized[0][name] for name in of_fossil})
    of_host, group = len(optimizer["state"]), optimizer_after["param_groups"][0]
    assert same({i: optimizer_after["state"][i] for i in range(of_host)}, optimizer["state"])
    assert same(group, optimizer["param_groups"][0])
    assert same(optimizer_after["param_groups"][1], fossilized[1]["param_groups"][1])
    seed_state = {i: state for i, state in fossilized[1]["state"].items() if i >= of_host}
    assert seed_state
    assert same({i: state for i, state in optimizer_after["state"].items() if i >= of_host}, seed_state)
    assert_finite(play_on(env))


# --- what it costs, and where it is counted -----------------------------------------------------------------------

NEVER_LEARNS: dict[str, Any] = {"host_optimizer__lr": 1e30, "data__train_samples": 200}
"""Every epoch of such a host ends with a loss that is not finite."""


@pytest.mark.parametrize("skip_forced_waits", [False, True])
@pytest.mark.parametrize("mode", REWARD_MODES)
def test_the_penalty_is_in_the_reward_of_the_step_in_every_mode(mode: str, skip_forced_waits: bool) -> None:
    for penalty in (10.0, 4.0):
        task = make_fast_task(reward__mode=mode, reward__rollback_penalty=penalty, **NEVER_LEARNS)
        env = MorphogenesisEnv(task, skip_forced_waits=skip_forced_waits)
        env.reset(seed=EPISODE_SEED)
        rewards, terminated, info = [], False, {}
        while not terminated:
            _, reward, terminated, _, info = env.step(0)
            rewards.append(reward)
        record = info["record"]
        assert [epoch.rolled_back for epoch in record.epochs] == [Failure.NON_FINITE.value] * task.max_epochs
        assert {epoch.reward_components["governor"] for epoch in record.epochs} == {-penalty * task.reward.factor}
        assert len(rewards) == (9 if skip_forced_waits else 12)
        assert sum(rewards) == pytest.approx(record.episode_return)
        others = sum(value for name, value in record.reward_components.items() if name != "governor")
        assert sum(rewards) - others == pytest.approx(-penalty * task.reward.factor * task.max_epochs)


def test_an_iteration_counts_its_rollbacks_by_cause() -> None:
    records = [play(MorphogenesisEnv(make_fast_task(**NEVER_LEARNS)))]
    for provoke, _, _ in (CAUSES["blown-up head"], CAUSES["forgotten weights"]):
        env = start()
        grow(env, "run_one")
        provoke(env.run)
        records.append(play_on(env))
    metrics = episode_metrics(records, ["WAIT"])
    assert metrics["rollbacks"] == 14
    assert metrics["rollbacks_by_cause"] == {"non_finite": 12, "explosion": 1, "collapse": 1}
    rows = [record.as_row() for record in records]
    causes = {"non-finite loss": 12, "exploding loss": 1, "collapse to guessing": 1}
    assert rollbacks(rows) == {"epochs": 14, "episodes": 3, "causes": causes}
    assert rollbacks([]) == {"epochs": 0, "episodes": 0, "causes": {}}
