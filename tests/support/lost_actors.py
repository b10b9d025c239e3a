"""An actor of fake hosts is lost once: the run must be the one that nobody disturbed."""

import time
from pathlib import Path
from typing import Any

import psutil
from fakes import FakeHostEnv, MisbehavingEnv
from learners import assert_same_weights, build, rows, weights

from esper_ray.orchestration.fleet.tickets import assign


def assert_one_loss_changes_nothing(
    tmp_path: Path, misdeed: str, cause: str, timeout_s: float, hosts: int = 1
) -> float:
    """Plays two iterations with and without the misdeed, and returns how long the first one took with it, seconds."""
    found: list[Any] = []
    seconds = 0.0
    for env in (FakeHostEnv, MisbehavingEnv):
        algorithm = build(2, 4, env=env, hosts=hosts, misdeed=misdeed, marker=str(tmp_path / "marker"))
        assert algorithm.dispatcher is not None
        algorithm.dispatcher.timeout_s = timeout_s
        try:
            started = time.monotonic()
            algorithm.train()
            seconds = time.monotonic() - started
            first = rows(algorithm)
            algorithm.train()
            assert [episode.ticket for episode in algorithm.episodes] == assign(4, 2, 1, base_seed=3)
            assert algorithm.losses[cause] == sum(algorithm.losses.values()) == (env is MisbehavingEnv)
            found.append((first + rows(algorithm), weights(algorithm)))
        finally:
            algorithm.stop()
    (expected, expected_weights), (disturbed, disturbed_weights) = found
    assert disturbed == expected
    assert_same_weights(disturbed_weights, expected_weights)
    assert not psutil.pid_exists(int((tmp_path / "marker").read_text()))
    return seconds
