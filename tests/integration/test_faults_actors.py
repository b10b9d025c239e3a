"""Actors that raise or hang: replaced, their episodes played again, nothing counted twice."""

from pathlib import Path

import pytest
from fakes import FailingEnv
from learners import build
from lost_actors import assert_one_loss_changes_nothing

from esper_ray.errors import EpisodeFailedError

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("session_ray")]


def test_an_actor_that_raises_is_replaced(tmp_path: Path) -> None:
    assert_one_loss_changes_nothing(tmp_path, "raise", "raised", timeout_s=100)


def test_an_episode_that_fails_again_and_again_ends_the_run_with_its_cause() -> None:
    algorithm = build(1, 2, env=FailingEnv)
    try:
        with pytest.raises(EpisodeFailedError, match=r"(?s)failed 3 times; .* raised: .*disk is on fire"):
            algorithm.train()
        assert algorithm.losses == {"died": 0, "raised": 3, "hung": 0}
    finally:
        algorithm.stop()
