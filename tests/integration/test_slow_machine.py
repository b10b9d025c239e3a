"""A machine that becomes slow in the middle of a run costs time, and nothing else."""

import threading
import time
from typing import Any

import pytest
import ray
from fakes import FakeHostEnv, FakeHostRun
from learners import build

from esper_ray.episode.host_run import Beginning, HostRun
from esper_ray.orchestration.fleet.progress import start_board

pytestmark = pytest.mark.faults

TIMEOUT_S = 2.0
SLOW_EPOCH_S = 0.6


class SlowedHostRun(FakeHostRun):
    """A host whose machine becomes sixty times slower after its first epochs."""

    def _train(self) -> Any:
        time.sleep(SLOW_EPOCH_S if self.epoch > 2 else 0)
        return (yield from super()._train())


class SlowedEnv(FakeHostEnv):
    """An environment of such hosts."""

    def _new_run(self, episode_seed: int, beginning: Beginning | None = None) -> HostRun:
        data = self._data.of_host(self.task, episode_seed)
        return SlowedHostRun(self.task, data, self._device, episode_seed, self.action_table, beginning)


@pytest.mark.parametrize("board_dies", [False, True])
@pytest.mark.usefixtures("session_ray")
def test_an_actor_that_goes_on_slowly_is_not_replaced(board_dies: bool) -> None:
    """Nor is it if the board that it reports to dies meanwhile."""
    board = start_board(f"slow-machine-{board_dies}")
    algorithm = build(1, 1, env=SlowedEnv, board=f"slow-machine-{board_dies}")
    try:
        assert algorithm.dispatcher is not None
        algorithm.dispatcher.timeout_s = TIMEOUT_S
        ray.get(board.read.remote())
        if board_dies:
            threading.Timer(TIMEOUT_S / 2, ray.kill, (board,), {"no_restart": False}).start()
        started = time.monotonic()
        algorithm.train()
        assert time.monotonic() - started > 2 * TIMEOUT_S
        assert len(algorithm.episodes) == 1
        assert sum(algorithm.losses.values()) == 0
    finally:
        algorithm.stop()
        ray.kill(board)
