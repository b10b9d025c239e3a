"""Episodes in progress: an actor that replaces a lost one goes on where that one was, and nobody can tell."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from learners import TASK, assert_same_weights, rows, weights
from traced import EVERY, LOST_AT, Trace

from esper_ray.errors import EpisodeFailedError
from esper_ray.orchestration.fleet.placement import Placement

pytestmark = pytest.mark.usefixtures("session_ray")

HERE = Placement(0, 1, 0.0)
ONE_ACTOR = Placement(1, 1, 0.0)
WHOLE = list(range(1, TASK.max_epochs + 1))


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("policy", ["mlp", "lstm"])
def test_an_actor_that_replaces_a_killed_one_goes_on_at_the_last_epoch_that_was_written_down(
    policy: Literal["mlp", "lstm"], trace: Trace
) -> None:
    undisturbed = trace.build(HERE, policy=policy)
    undisturbed.train()
    trace.take()
    algorithm = trace.build(ONE_ACTOR, policy=policy, checkpoints=True, lost_at=LOST_AT)
    try:
        algorithm.train()
        written_down = (LOST_AT - 1) // EVERY * EVERY
        assert [step.epoch for step in trace.take()] == [*WHOLE[: LOST_AT - 1], *WHOLE[written_down:], *WHOLE]
        assert algorithm.losses == {"died": 1, "raised": 0, "hung": 0}
        assert rows(algorithm) == rows(undisturbed)
        assert_same_weights(weights(algorithm), weights(undisturbed))
        assert trace.in_progress() == []
    finally:
        algorithm.stop()
        undisturbed.stop()


def test_a_replacement_whose_policy_decides_otherwise_plays_the_episode_from_its_start(
    trace: Trace, tmp_path: Path
) -> None:
    first = trace.build(HERE, checkpoints=True, lost_at=LOST_AT, how="raises")
    with pytest.raises(EpisodeFailedError, match="the disk is on fire"):
        first.train()
    assert len(trace.in_progress()) == 1
    other = trace.build(HERE, seed=4)
    with torch.no_grad():
        for parameter in other.policy_network.parameters():
            parameter.mul_(-30)  # so sure of itself that it does not decide alike by chance
    (tmp_path / "other").mkdir()
    other.write_checkpoint(tmp_path / "other")
    trace.take()

    found = []
    for checkpoints in (True, False):
        algorithm = trace.build(HERE, checkpoints=checkpoints)
        algorithm.warm_start(tmp_path / "other")
        algorithm.train()
        assert [step.epoch for step in trace.take()] == WHOLE * 2
        found.append(rows(algorithm))
        algorithm.stop()
    assert found[0] == found[1]
    assert trace.in_progress() == []
    first.stop()
    other.stop()
