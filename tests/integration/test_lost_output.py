"""A run goes on to its end when nobody reads what it says, and its folder is whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from driver import whole_rows

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

TRAIN = (
    "train --runners 0 --iterations 3 --episodes-per-iteration 2 --wait-only-episodes 1 --max-epochs 12 "
    "--set data.train_samples=64 data.validation_samples=50 host.base_channels=2 --out run"
)


@pytest.mark.parametrize("redirection", ["| head -1", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_training_ends_whatever_happens_to_its_output(redirection: str, tmp_path: Path) -> None:
    command = f'"$0" -m esper_ray {TRAIN} {redirection}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "run"
    assert len(whole_rows(run / "episodes.jsonl")) == 6
    assert len(whole_rows(run / "metrics.jsonl")) == 3
    assert (run / "summary.json").exists()
    assert (run / "checkpoints" / "iteration_000003").is_dir()
