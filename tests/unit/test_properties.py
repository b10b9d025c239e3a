"""What holds for every legal sequence of decisions, on both kinds of host."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from fast_tasks import make_fast_task, make_fast_text_task
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_ray.episode.host_run import HostRun
from esper_ray.errors import IllegalActionError
from esper_ray.lifecycle import ACTIVE_STAGES, SeedStage, is_legal_transition
from esper_ray.models import MorphogeneticModel
from esper_ray.tasks import TaskData, TaskSpec, load_task_data

S = SeedStage
QUICK = {
    "decisions__min_germination_epoch": 1,
    "decisions__min_cull_age": 1,
    "lifecycle__training_dwell": 2,
    "lifecycle__blending_steps": 2,
    "lifecycle__min_blending_epochs": 1,
    "lifecycle__embargo_epochs": 2,
    "lifecycle__min_gradient_ratio": 0.0,
}
TASKS: dict[str, Callable[[], TaskSpec]] = {
    "cnn": lambda: make_fast_task(**QUICK),
    "transformer": lambda: make_fast_text_task(host__dropout=0.1, **QUICK),
}
EPISODE_SEED = 16


@cache
def prepared(kind: str) -> tuple[TaskSpec, TaskData]:
    task = TASKS[kind]()
    return task, load_task_data(task)


@cache
def waiting_host(kind: str) -> list[list[Tensor]]:
    """The host's parameters after each epoch of an episode in which nothing ever grows."""
    task, data = prepared(kind)
    run = HostRun(task, data, "cpu", EPISODE_SEED)
    trajectory = []
    while not run.is_over:
        run.train_epoch()
        trajectory.append(copies(run.model))
    return trajectory


def copies(model: MorphogeneticModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.get_host_parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def momenta(run: HostRun) -> list[Tensor]:
    """What the host's optimizer remembers of each host parameter."""
    state = run._host_optimizer.state
    return [
        value.clone()
        for parameter in run.model.get_host_parameters()
        for value in state.get(parameter, {}).values()
        if isinstance(value, Tensor)
    ]


def outputs_and_gradients(run: HostRun) -> tuple[Tensor, list[Tensor]]:
    """Of one batch in training mode, dropout and all; leaves no trace in the batch statistics."""
    model = run.model.train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    inputs, targets = next(iter(run._data.validation))
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    logits = model(inputs)
    torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    gradients = [p.grad.clone() for p in model.get_host_parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return logits.detach(), gradients


def assert_illegal_actions_are_refused(run: HostRun) -> None:
    stage, state = run.model.seed_slot.stage, run.model.seed_state
    for action in (*[a for a, legal in enumerate(run.legal_actions()) if not legal], -1, len(run.actions)):
        with pytest.raises(IllegalActionError):
            run.decide(action)
        assert (run.model.seed_slot.stage, run.model.seed_state) == (stage, state)


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(choices=st.lists(st.one_of(st.just(0), st.integers(0, 999)), min_size=12, max_size=12))
@example(choices=[0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])  # these two reach FOSSILIZED
@example(choices=[0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
def test_any_legal_sequence_of_decisions_keeps_the_invariants(kind: str, choices: list[int]) -> None:
    task, data = prepared(kind)
    run = HostRun(task, data, "cpu", EPISODE_SEED)
    slot, host_size = run.model.seed_slot, run.host_parameters
    ever_blended, fossil = False, None
    for choice in choices:
        assert_illegal_actions_are_refused(run)
        legal = [action for action, allowed in enumerate(run.legal_actions()) if allowed]
        assert 0 in legal
        action = legal[choice % len(legal)]
        before = (copies(run.model), momenta(run))
        seen = outputs_and_gradients(run) if slot.is_empty else None
        stage = slot.stage

        run.decide(action)  # the mask allows nothing that this refuses

        assert equal(copies(run.model), before[0])
        assert equal(momenta(run), before[1])
        if slot.stage == S.GERMINATED and seen is not None:
            logits, gradients = outputs_and_gradients(run)
            assert torch.equal(logits, seen[0])
            assert equal(gradients, seen[1])
        assert slot.stage == stage or is_legal_transition(stage, slot.stage)

        alpha = run.train_epoch().alpha
        ever_blended |= alpha > 0
        if not ever_blended:
            assert equal(copies(run.model), waiting_host(kind)[run.epoch - 1])
        assert 0.0 <= alpha <= 1.0 and 0.0 <= slot.alpha <= 1.0
        assert (slot.alpha > 0) <= (slot.seed is not None)
        assert run.host_parameters == host_size
        assert sum(p.numel() for p in run.model.parameters()) == host_size + run.model.active_seed_params
        assert (slot.seed is not None) == (slot.stage in ACTIVE_STAGES or slot.stage == S.FOSSILIZED)
        trained = [p for group in run._host_optimizer.param_groups for p in group["params"]]
        kept = run.model.get_seed_parameters() if slot.stage == S.FOSSILIZED else []
        assert [id(p) for p in trained] == [id(p) for p in (*run.model.get_host_parameters(), *kept)]
        if fossil is not None:
            assert (slot.stage, slot.seed, slot.alpha) == (S.FOSSILIZED, fossil, 1.0)
            assert legal == [0]
        elif slot.stage == S.FOSSILIZED:
            fossil = slot.seed


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_the_sequences_reach_every_stage(kind: str) -> None:
    """One culls its first seed, the others wait for a fossil: so the property above is about something."""
    task, data = prepared(kind)
    stages = set()
    for episode_seed in range(EPISODE_SEED, EPISODE_SEED + 4):
        run, culls = HostRun(task, data, "cpu", episode_seed), episode_seed > EPISODE_SEED + 2
        while not run.is_over:
            mask = run.legal_actions()
            if mask[2]:
                run.decide(2)  # the second smallest seed
            elif mask[run.actions.cull] and culls:
                run.decide(run.actions.cull)
            elif mask[run.actions.fossilize]:
                run.decide(run.actions.fossilize)
            stages.add(run.model.seed_slot.stage)
            run.train_epoch()
            stages.add(run.model.seed_slot.stage)
    assert stages == set(SeedStage) - {S.UNKNOWN, S.RESETTING}
