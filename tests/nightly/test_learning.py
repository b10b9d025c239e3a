"""Hosts and policies learn on the shipped tasks."""

import json
from pathlib import Path

import pytest

from esper_ray.cli.main import run
from esper_ray.episode import run_ppo_episode
from esper_ray.lifecycle import SeedStage
from esper_ray.policies import WaitPolicy
from esper_ray.tasks import get_task_spec


@pytest.mark.usefixtures("nothing_left_behind")
def test_growing_pays_on_real_digits(tmp_path: Path) -> None:
    """Even early on, the default task leaves wait-only hosts behind, and seeds travel the whole lifecycle."""
    out = tmp_path / "run"
    few = ["--episodes-per-iteration", "16", "--wait-only-episodes", "8"]
    assert run(["train", "--iterations", "6", *few, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    difference, error = summary["difference"]
    assert difference > 3 * error
    journey = [stage.name for stage in SeedStage if SeedStage.GERMINATED <= stage <= SeedStage.CULLED]
    stages = {
        stage for line in (out / "episodes.jsonl").read_text().splitlines() for stage in json.loads(line)["stages"]
    }
    assert stages >= set(journey)


def test_the_default_host_learns_english_below_two_nats_per_byte() -> None:
    """In 14 epochs here; in the 25 of an episode all the more."""
    result = run_ppo_episode(WaitPolicy(), get_task_spec("pydoc", {"max_epochs": 14}))
    losses = [epoch.val_loss for epoch in result.record.epochs]
    assert losses[0] > 2.4
    assert result.record.kept_val_loss == losses[-1] < 2.0
