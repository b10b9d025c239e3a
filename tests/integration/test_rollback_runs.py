"""Rollbacks in a whole run: what the learner, the files and the report say of them."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esper_ray.cli.main import run as run_command
from esper_ray.report import render

NEVER_LEARNS = ("host_optimizer.lr=1e30", "data.train_samples=200")
"""Every epoch of such a host ends with a loss that is not finite."""


@pytest.mark.usefixtures("session_ray")
def test_a_run_shows_the_learner_what_rollbacks_cost_and_the_user_how_many_there_were(tmp_path: Path) -> None:
    means = []
    for penalty in (10, 0):
        out = tmp_path / f"penalty_{penalty}"
        arguments = ["train", "--iterations", "1", "--episodes-per-iteration", "4", "--runners", "0"]
        arguments += ["--wait-only-episodes", "0", "--max-epochs", "12", "--out", str(out)]
        assert run_command([*arguments, "--set", *NEVER_LEARNS, f"reward.rollback_penalty={penalty}"]) == 0
        (row,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert row["rollbacks"] == 48
        assert row["rollbacks_by_cause"] == {"non_finite": 48, "explosion": 0, "collapse": 0}
        assert row["reward_components"]["governor"] == pytest.approx(-penalty * 0.05 * 12)
        means.append(row["learner"]["value_target_mean"])
        events = EventAccumulator(str(out))
        events.Reload()
        counted = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if "rollbacks" in tag}
        assert counted == {
            **{"rollbacks": 48.0, "rollbacks_by_cause/non_finite": 48.0},
            **{"rollbacks_by_cause/explosion": 0.0, "rollbacks_by_cause/collapse": 0.0},
        }
        assert run_command(["replay", str(out), "--episode", "1"]) == 0
        page = render(out)
        assert "The governor rolled back 48 epochs in 4 of 4 episodes: non-finite loss 48." in page
    assert means[0] < means[1] - 1.0
