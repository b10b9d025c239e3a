"""A host that hangs whenever it is played ends the run, with the cause."""

import time
from typing import Any

import pytest
import ray
from fakes import FakeHostEnv
from learners import build

from esper_ray.errors import EpisodeFailedError
from esper_ray.orchestration.fleet.progress import start_board

pytestmark = pytest.mark.faults


class HangingEnv(FakeHostEnv):
    """An environment that hangs in the middle of every episode."""

    def step_steps(self, action: Any) -> Any:
        if self.run.epoch == 5:
            time.sleep(600)
        return (yield from super().step_steps(action))


@pytest.mark.usefixtures("session_ray")
def test_a_host_that_always_hangs_ends_the_run_with_its_cause() -> None:
    board = start_board("hanging-host")
    algorithm = build(1, 1, env=HangingEnv, board="hanging-host")
    try:
        assert algorithm.dispatcher is not None
        algorithm.dispatcher.timeout_s = 3.0
        with pytest.raises(EpisodeFailedError, match=r"failed 3 times; .* hung: it finished no epoch for 3 s"):
            algorithm.train()
        assert algorithm.losses["hung"] == 3
    finally:
        algorithm.stop()
        ray.kill(board)
