"""The driver is interrupted, told to end or killed: its run can go on and comes to the same; nothing is left behind."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from driver import SETTINGS, begun, command, ended, half_written, refused, results, wait_until, whole_rows
from finished_runs import SHORT_RUN

from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.run_folder import checkpoints_of, iteration_of, read_config

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("nothing_left_behind")]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_a_checkpoint(tmp_path: Path, end: signal.Signals) -> None:
    out = tmp_path / "run"
    arguments = command("train", "--runners", "2", "--iterations", "5000", "--out", out, *SHORT_RUN)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("iteration   2"):
            break
    process.send_signal(end)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    assert "Interrupted after " in printed
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    *_, checkpoint = checkpoints_of(out)
    assert checkpoint.name == f"iteration_{rows[-1]['iteration']:06d}"
    assert read_manifest(checkpoint).iteration == rows[-1]["iteration"]
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 6 * len(rows)


def test_a_run_whose_driver_is_killed_goes_on_and_comes_to_the_same(
    undisturbed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while its actors play the fourth iteration or a later one."""
    out = tmp_path / "run"
    driver = begun("train", "--out", out, *SETTINGS)
    wait_until(lambda: len(whole_rows(out / "metrics.jsonl")) >= 3, driver)
    assert "goes on in another process; end that first" in refused(capsys, "train", "--resume", out)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    rows = len(whole_rows(out / "metrics.jsonl"))
    last = iteration_of(checkpoints_of(out)[-1])
    assert last >= rows - 1

    resumed = ended("train", "--resume", out)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert [time["iteration"] for time in read_config(out)["went_on"]] == [last]
    assert results(out) == results(undisturbed_run)
    assert half_written(out) == []
