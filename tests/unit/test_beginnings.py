"""Beginnings and twins, computed once; forced waits, left out: the same numbers every way."""

import threading
import time
from dataclasses import asdict
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from fast_tasks import make_fast_task, make_fast_text_task
from torch import nn

from esper_ray.data.cache import cache_folder
from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.host_cache import HostCache
from esper_ray.episode.host_run import Beginning, HostRun
from esper_ray.episode.rollout import play_episode
from esper_ray.orchestration.fleet.tickets import assign, held_out_seeds, spread
from esper_ray.policies import ReplayPolicy, SchedulePolicy, WaitPolicy
from esper_ray.tasks import TaskSpec, load_task_data, load_test_data, prepare_data
from esper_ray.training import evaluate

SEED = 2
WORTHWHILE = {"data__train_samples": 400, "host__base_channels": 4}
LONG = {"min_germination_epoch": 6, "min_plateau": 2, "require_stabilised": True, "learned_share": 2.0}
CASES: dict[str, dict[str, Any]] = {
    "fossilized": WORTHWHILE,
    "culled": {},
    "long_beginning": {"max_epochs": 30, **{f"decisions__{name}": value for name, value in LONG.items()}},
    "no_choice": {"decisions__require_stabilised": True, "decisions__learned_share": 1e-6},
    "rolled_back": {"governor__learned_share": 10.0, "governor__guessing_margin": 10.0},
    "text": {},
}
CULLED = [*["WAIT"] * 3, "GERMINATE_CONV_LIGHT", *["WAIT"] * 3, "CULL", *["WAIT"] * 2, "GERMINATE_NORM", "WAIT"]


def make_task(case: str, **overrides: Any) -> TaskSpec:
    return (make_fast_text_task if case == "text" else make_fast_task)(**CASES[case], **overrides)


def make_task_that_learns(case: str, **overrides: Any) -> TaskSpec:
    """The task of a case with more batches an epoch, so that its loss falls from the first epoch on."""
    quick = {"data__batch_size": 16, "data__train_samples": 400, "host__base_channels": 8}
    return make_fast_task(**{**CASES[case], **quick, **overrides})


def play(case: str, env: MorphogenesisEnv, seed: int = SEED) -> EpisodeRecord:
    largest = env.action_table.blueprint_ids[-1]
    grow = SchedulePolicy(env.action_table, largest)
    return play_episode(env, ReplayPolicy(env.action_table, CULLED) if case == "culled" else grow, seed)


def numbers(record: EpisodeRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in ("seconds", "taken_over")}


def host_cache(kind: str, task: TaskSpec) -> HostCache:
    return HostCache(kind, task, prepare_data(task).folder, torch.device("cpu"))


@pytest.fixture(autouse=True)
def kept() -> Any:
    """The folder of what is kept of hosts, empty at first."""
    rmtree(cache_folder() / "hosts", ignore_errors=True)
    return cache_folder() / "hosts"


@pytest.mark.parametrize(
    ("case", "forced", "seen"),
    [
        ("fossilized", 3, "FOSSILIZED"),
        ("culled", 3, "CULLED"),
        ("long_beginning", None, "GERMINATED"),
        ("no_choice", 12, "DORMANT"),
        ("rolled_back", 3, "EMBARGOED"),
        ("text", 3, "BLENDING"),
    ],
)
def test_a_beginning_taken_over_gives_the_numbers_of_one_that_was_trained(
    case: str, forced: int | None, seen: str
) -> None:
    alone = play(case, MorphogenesisEnv(make_task(case)))
    sharing, other = (MorphogenesisEnv(make_task(case), share_beginnings=True) for _ in range(2))
    first, second, elsewhere = play(case, sharing), play(case, sharing), play(case, other)
    assert numbers(first) == numbers(second) == numbers(elsewhere) == numbers(alone)
    assert (alone.taken_over, first.taken_over, elsewhere.taken_over) == (0, 0, second.taken_over)
    assert second.taken_over == forced if forced else 6 <= second.taken_over < 24
    assert seen in alone.stages_reached
    assert any(epoch.rolled_back for epoch in alone.epochs[:3]) is (case == "rolled_back")
    assert numbers(play(case, sharing, SEED + 1)) != numbers(alone)


@pytest.mark.parametrize(("case", "discount"), [("fossilized", 1.0), *((case, 0.9) for case in CASES)])
def test_steps_without_a_choice_can_be_left_out_and_no_number_changes(case: str, discount: float) -> None:
    task = make_task(case, reward__discount=discount)
    record = play(case, MorphogenesisEnv(task))
    for shares in (False, True, True):
        env = MorphogenesisEnv(task, skip_forced_waits=True, share_beginnings=shares)
        observation, _ = env.reset(seed=SEED)
        rewards, legal, terminated, info = [], [], False, {}
        while not terminated:
            legal.append(int(observation["action_mask"].sum()))
            action = env.action_table.names.index(record.epochs[env.run.epoch].decision)
            observation, reward, terminated, _, info = env.step(action)
            rewards.append(reward)
        assert numbers(info["record"]) == numbers(record)
        assert len(record.epochs) == task.max_epochs > len(rewards)
        assert sum(rewards) == pytest.approx(sum(discount**t * epoch.reward for t, epoch in enumerate(record.epochs)))
        assert legal == [1] if case == "no_choice" else min(legal) > 1


def test_another_task_has_beginnings_of_its_own_and_another_reward_the_same(kept: Any) -> None:
    def taken_over(**overrides: Any) -> int:
        return play("", MorphogenesisEnv(make_fast_task(**overrides), share_beginnings=True)).taken_over

    assert [taken_over(), taken_over(reward__mode="sparse"), len(list(kept.iterdir()))] == [0, 3, 1]
    assert [taken_over(host_optimizer__lr=0.03), len(list(kept.iterdir()))] == [0, 2]


@pytest.mark.parametrize(("case", "typical"), [("fossilized", 0.002), ("long_beginning", 0.5)])
def test_a_beginning_that_an_episode_of_another_reward_left_changes_no_reward(
    case: str, typical: float, kept: Any
) -> None:
    """The loss that a reward follows moves by its own typical change, not by the one of whoever trained first."""
    task = make_task_that_learns(case, reward__mode="loss", reward__typical_loss_delta=typical)
    alone = play(case, MorphogenesisEnv(task))
    left_by = make_task_that_learns(case, reward__mode="gain", reward__typical_loss_delta=0.03)
    assert play(case, MorphogenesisEnv(left_by, share_beginnings=True)).taken_over == 0
    shared = play(case, MorphogenesisEnv(task, share_beginnings=True))
    assert shared.taken_over >= 3
    assert numbers(shared) == numbers(alone)
    again = play(case, MorphogenesisEnv(left_by, share_beginnings=True))
    assert numbers(again) == numbers(play(case, MorphogenesisEnv(left_by)))
    assert len(list(kept.iterdir())) == 1
    kept_rewards = [epoch.reward for epoch in shared.epochs]
    assert kept_rewards != [epoch.reward for epoch in again.epochs]


def test_what_two_want_at_once_is_computed_once(fast_task: TaskSpec) -> None:
    together, computed, found = threading.Barrier(2), [], []

    def compute() -> int:
        time.sleep(0.2)
        computed.append(7)
        return 7

    def want(cache: HostCache) -> None:
        together.wait()
        found.append(cache.get(1, compute))

    threads = [threading.Thread(target=want, args=(host_cache("beginnings", fast_task),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(found), computed) == ([(7, False), (7, True)], [7])


def test_what_failed_is_not_kept(fast_task: TaskSpec) -> None:
    with pytest.raises(ZeroDivisionError):
        host_cache("twins", fast_task).get(1, lambda: 1 / 0)
    assert host_cache("twins", fast_task).get(1, lambda: 2) == (2, False)


def test_what_was_cut_off_is_computed_again(fast_task: TaskSpec, kept: Any) -> None:
    MorphogenesisEnv(fast_task, share_beginnings=True).reset(seed=SEED)
    cache = host_cache("beginnings", fast_task)
    (file,) = kept.glob(f"beginnings-*/{SEED}.pickle")
    whole = file.read_bytes()
    beginning: Beginning
    beginning, known = cache.get(SEED, tuple)
    assert known
    for length in [*range(0, 400, 7), *range(400, len(whole), 997), len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert cache.get(SEED, lambda: beginning) == (beginning, False), length
        assert file.read_bytes() == whole
        assert cache.get(SEED, tuple) == (beginning, True)
    file.write_bytes(whole[: len(whole) // 2])
    alone, shared = (play("", MorphogenesisEnv(fast_task, share_beginnings=shares)) for shares in (False, True))
    assert (numbers(shared), shared.taken_over) == (numbers(alone), 0)


def test_within_a_beginning_that_is_taken_over_there_is_no_state(fast_task: TaskSpec) -> None:
    env = MorphogenesisEnv(fast_task, share_beginnings=True)
    env.reset(seed=SEED)
    for _ in range(3):
        with pytest.raises(AssertionError, match="there is no host yet"):
            env.run.state()
        env.step(0)
    other = HostRun(fast_task, load_task_data(fast_task), "cpu", SEED)
    other.restore(env.run.state())
    assert (other.epoch, other.train_epoch()) == (3, env.run.train_epoch())


def test_a_run_goes_on_from_its_state_as_if_it_had_never_stopped() -> None:
    task = make_fast_task(**WORTHWHILE)
    run, other = (HostRun(task, load_task_data(task), "cpu", SEED) for _ in range(2))

    def go_on(run: HostRun) -> list[Any]:
        reports = []
        while not run.is_over:
            run.decide(run.actions.fossilize if run.legal_actions()[run.actions.fossilize] else 0)
            reports.append(run.train_epoch())
        return [*reports, run.kept_accuracy, run.kept_blueprint]

    for epoch in range(7):
        run.decide(run.actions.germinate("conv_heavy") if epoch == 3 else 0)
        run.train_epoch()
    state = run.state()
    assert run.model.seed_slot.stage.name == "BLENDING"
    uninterrupted = go_on(run)
    assert uninterrupted[-1] == "conv_heavy"
    for restored in (run, other):
        restored.restore(state)
        assert (restored.epoch, go_on(restored)) == (7, uninterrupted)


def test_the_twin_of_a_host_seed_is_its_episode_of_waiting_computed_once(kept: Any) -> None:
    task = make_task("fossilized", reward__mode="paired")
    record = play_episode(MorphogenesisEnv(task), WaitPolicy(), SEED)
    twin, known = host_cache("twins", task).get(SEED, tuple)
    assert (list(twin), known) == ([epoch.val_accuracy for epoch in record.epochs], True)
    assert [epoch.reward for epoch in record.epochs] == [0.0] * task.max_epochs
    (file,) = kept.glob(f"twins-*/{SEED}.pickle")
    before = file.stat()
    assert play("", MorphogenesisEnv(task)).episode_return != 0.0
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("shares", [False, True])
def test_a_host_can_start_with_a_seed_as_a_part_of_it(fast_task: TaskSpec, shares: bool) -> None:
    env = MorphogenesisEnv(fast_task, share_beginnings=shares)
    env.reset(seed=SEED)
    observation, _ = env.reset(seed=SEED, options={"grown": "conv_light"})
    parts, masks, info = list(env.run.model.get_seed_parameters()), [], {}
    start = [part.detach().clone() for part in parts]
    assert (env.run.model.seed_slot.stage.name, env.run.kept_blueprint) == ("FOSSILIZED", "conv_light")
    for _ in range(fast_task.max_epochs):
        masks.append(np.flatnonzero(observation["action_mask"]).tolist())
        observation, *_, info = env.step(0)
    record = info["record"]
    assert masks == [[0]] * fast_task.max_epochs
    assert not any(torch.equal(old, new) for old, new in zip(start, parts, strict=True))
    assert (record.kept_blueprint, record.added_parameters) == ("conv_light", sum(part.numel() for part in parts))
    assert (record.taken_over, record.stages) == (0, ["FOSSILIZED"] * fast_task.max_epochs)


@pytest.mark.parametrize("fossilize_at", [0, 99])
def test_the_test_accuracy_is_that_of_what_is_kept(fossilize_at: int) -> None:
    task = make_task("fossilized")
    env = MorphogenesisEnv(task)
    policy = SchedulePolicy(env.action_table, "conv_heavy", fossilize_at=fossilize_at)
    env.reset(seed=SEED)
    with pytest.raises(AssertionError, match="for finished episodes"):
        env.measure_test()
    final_stage = play_episode(env, policy, SEED).final_stage
    assert final_stage == ("PROBATIONARY" if fossilize_at else "FOSSILIZED")
    found = evaluate(env.run.model, load_test_data(task), nn.CrossEntropyLoss(), "cpu", "classification")
    assert found.accuracy != found.accuracy_without_seed
    assert env.measure_test() == (found.accuracy_without_seed if fossilize_at else found.accuracy)


def test_a_pool_draws_its_host_seeds_from_that_many_and_every_decision_seed_anew() -> None:
    alone, pooled = ([t for n in range(3) for t in assign(24, 3, n, 1, pool)] for pool in (None, 4))
    assert (len({t.episode_seed for t in pooled}), len({t.decision_seed for t in pooled})) == (4, 72)
    assert [t.decision_seed for t in alone] == [t.decision_seed for t in pooled] == [t.episode_seed for t in alone]


@pytest.mark.parametrize("runners", [1, 2, 8])
def test_given_seeds_stay_the_same_however_many_actors_share_them(runners: int) -> None:
    wanted = [(5, "norm"), (3, ""), (9, ""), (3, "norm"), (7, "attention")]
    tickets = spread([seed for seed, _ in wanted], runners, [grown for _, grown in wanted])
    assert sorted((t.episode_seed, t.grown) for t in tickets) == sorted(wanted)
    assert len({(t.runner, t.number) for t in tickets if t.decision_seed == t.episode_seed}) == 5


def test_held_out_seeds_are_the_first_of_one_series_that_no_training_draws_from() -> None:
    many = held_out_seeds(200)
    assert (held_out_seeds(30), len(set(many))) == (many[:30], 200)
    trained = {t.episode_seed for pool in (None, 8) for n in range(5) for t in assign(40, 2, n, 0, pool)}
    assert not trained & set(many)
