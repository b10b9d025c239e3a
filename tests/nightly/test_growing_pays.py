"""What a policy learns on the default task, early on."""

import json
from pathlib import Path

from esper_ray.cli.main import run
from esper_ray.lifecycle import SeedStage


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
