"""The governor: what it calls a failure, and what a rollback restores."""

import copy
from math import inf, isfinite, log, nan

import pytest
import torch
from conftest import make_fast_task

from esper_ray.episode.governor import Failure, Governor
from esper_ray.episode.host_run import HostRun
from esper_ray.lifecycle import SeedStage
from esper_ray.tasks import GovernorSettings, load_task_data

UNIFORM = log(10)


def judged(losses: list[float]) -> list[Failure | None]:
    governor = Governor(GovernorSettings(), UNIFORM)
    return [governor.judge(loss, loss) for loss in losses]


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_non_finite_loss_fails_at_once(bad: float) -> None:
    assert judged([2.0, bad]) == [None, Failure.NON_FINITE]
    governor = Governor(GovernorSettings(), UNIFORM)
    assert governor.judge(bad, 1.0) == Failure.NON_FINITE


def test_an_explosion_must_last_three_epochs() -> None:
    calm = [2.0] * 10
    assert judged([*calm, 50.0, 50.0, 50.0])[-3:] == [None, None, Failure.EXPLOSION]
    assert judged([*calm, 50.0, 50.0, 2.0, 50.0])[-4:] == [None] * 4


def test_an_explosion_needs_ten_known_losses_and_all_three_marks() -> None:
    assert judged([2.0] * 9 + [50.0] * 3)[-3:] == [None] * 3
    assert judged([2.0] * 10 + [11.9] * 3)[-3:] == [None] * 3
    assert judged([6.0] * 10 + [17.0] * 3)[-3:] == [None] * 3
    assert judged([1.0, 9.0] * 5 + [14.0] * 3)[-3:] == [None] * 3


def test_falling_back_to_guessing_fails_only_a_host_that_had_learned() -> None:
    assert judged([UNIFORM, UNIFORM]) == [None, None]
    assert judged([2.0, 1.5, UNIFORM]) == [None, None, None]
    assert judged([2.0, 1.3, 1.05 * UNIFORM]) == [None, None, Failure.COLLAPSE]
    assert judged([2.0, 1.3, 0.9 * UNIFORM]) == [None, None, None]


def grown_run(epochs: int) -> HostRun:
    task = make_fast_task(max_epochs=20)
    run = HostRun(task, load_task_data(task), "cpu", episode_seed=4)
    for epoch in range(epochs):
        if epoch == 3:
            run.decide(run.actions.germinate("conv_light"))
        run.train_epoch()
    return run


def state_of(run: HostRun) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    tensors = {name: tensor.clone() for name, tensor in run.model.host.state_dict().items() if "slots" not in name}
    return tensors, copy.deepcopy(run._host_optimizer.state_dict())


def poison(run: HostRun) -> None:
    with torch.no_grad():
        run.model.get_host_parameters()[0].fill_(nan)


def test_a_rollback_restores_host_and_optimizer_of_the_last_snapshot_and_discards_a_live_seed() -> None:
    run = grown_run(5)
    tensors, optimizer = state_of(run)
    assert run.model.has_active_seed
    poison(run)
    report = run.train_epoch()
    assert report.failure == Failure.NON_FINITE
    assert run.model.seed_slot.stage in (SeedStage.CULLED, SeedStage.EMBARGOED)
    after, optimizer_after = state_of(run)
    assert all(torch.equal(tensors[name], after[name]) for name in tensors)
    before_state, after_state = optimizer["state"], optimizer_after["state"]
    assert isinstance(before_state, dict)
    assert isinstance(after_state, dict)
    for index, state in before_state.items():
        assert torch.equal(state["momentum_buffer"], after_state[index]["momentum_buffer"])


def test_the_episode_goes_on_after_a_rollback_with_finite_numbers() -> None:
    run = grown_run(5)
    poison(run)
    assert run.train_epoch().failure == Failure.NON_FINITE
    while not run.is_over:
        report = run.train_epoch()
        assert report.failure is None
        assert isfinite(report.outcome.val_loss)


def test_a_rollback_keeps_a_fossilized_seed_as_it_was() -> None:
    run = grown_run(9)
    state = run.model.seed_state
    assert state is not None
    state.stage, state.contribution, state.gradient_health = SeedStage.PROBATIONARY, 1.0, 1.0
    run.decide(run.actions.fossilize)
    kept = [p.detach().clone() for p in run.model.get_seed_parameters()]
    poison(run)
    assert run.train_epoch().failure == Failure.NON_FINITE
    assert run.model.seed_slot.stage == SeedStage.FOSSILIZED
    for expected, found in zip(kept, run.model.get_seed_parameters(), strict=True):
        assert torch.equal(expected, found)
    assert len(run._host_optimizer.param_groups) == 2
    assert run.train_epoch().failure is None
