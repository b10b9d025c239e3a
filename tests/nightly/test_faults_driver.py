"""The driver is killed, interrupted or told to end at any moment: the run goes on, and comes to the same."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from driver import ITERATIONS, SETTINGS, begun, ended, half_written, refused, results, wait_until, whole_rows

from esper_ray.orchestration.learner.learner_state import read_learner_state
from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.run_folder import RunFolder, checkpoints_of, iteration_of, read_config
from esper_ray.orchestration.run.run_result import read_tally

pytestmark = pytest.mark.faults

KILLS = ["start", "wait-only", "wait-only", *["start", "iteration", "writing"] * 5, "iteration", "writing"]
"""When the driver is killed, twenty times over."""


def kill(driver: subprocess.Popen[Any]) -> None:
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL


def wait_for_moment(
    moment: str, out: Path, driver: subprocess.Popen[Any], draw: random.Random, per_iteration: float
) -> None:
    """Waits for a moment at which a run is to die: where it starts up after 0.5 to 4 s, else somewhere in the event."""
    checkpoints, played = out / "checkpoints", len(whole_rows(out / "metrics.jsonl"))
    if moment == "start":
        time.sleep(draw.uniform(0.5, 4))
    elif moment == "wait-only":
        wait_until((out / "config.json").exists, driver)
        time.sleep(draw.uniform(0, per_iteration))
    elif moment == "iteration":
        wait_until(lambda: len(whole_rows(out / "metrics.jsonl")) > played, driver)
        time.sleep(draw.uniform(0, per_iteration))
    else:
        wait_until(lambda: any(checkpoints.glob(".writing-*")) if checkpoints.exists() else False, driver)
        time.sleep(draw.uniform(0, 0.02))


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_driver_that_is_killed_twenty_times_loses_an_iteration_at_most_each_time(
    undisturbed_run: Path, tmp_path: Path
) -> None:
    """An iteration is lost if it had its row, and is played again: with n rows there, the run goes on from n − 1."""
    out, draw = tmp_path / "run", random.Random(20)
    per_iteration = whole_rows(undisturbed_run / "metrics.jsonl")[-1]["seconds"] / ITERATIONS
    times_resumed = rows_before = 0
    for moment in KILLS:
        has_begun = (out / "config.json").exists()
        driver = begun("train", "--resume", out) if has_begun else begun("train", "--out", out, *SETTINGS)
        wait_for_moment(moment, out, driver, draw, per_iteration)
        kill(driver)

        resumed = read_config(out).get("went_on", []) if (out / "config.json").exists() else []
        if len(resumed) > times_resumed:
            assert resumed[-1]["iteration"] >= rows_before - 1
        there = [iteration_of(checkpoint) for checkpoint in checkpoints_of(out)]
        rows_before, times_resumed = len(whole_rows(out / "metrics.jsonl")), len(resumed)
        assert max(there, default=0) >= rows_before - 1
        for checkpoint in checkpoints_of(out):
            iteration = iteration_of(checkpoint)
            assert read_manifest(checkpoint).iteration == read_learner_state(checkpoint).iteration == iteration
            assert len(read_tally(checkpoint).trained) == 2 * iteration
    assert times_resumed >= 10
    assert 3 <= rows_before < ITERATIONS

    last = ended("train", "--resume", out)
    assert (last.returncode, last.stderr) == (0, "")
    assert results(out) == results(undisturbed_run)
    assert half_written(out) == []


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nothing_left_behind")
def test_killed_before_its_first_checkpoint_then_interrupted_then_terminated_a_run_comes_to_the_same(
    undisturbed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    driver = begun("train", "--out", out, *SETTINGS)
    wait_until((out / "config.json").exists, driver)
    kill(driver)
    assert checkpoints_of(out) == []

    for end, rows in ((signal.SIGINT, 3), (signal.SIGTERM, 6)):
        driver = begun("train", "--resume", out)
        wait_until(lambda rows=rows: len(whole_rows(out / "metrics.jsonl")) >= rows, driver)  # type: ignore[misc]
        assert "goes on in another process; end that first" in refused(capsys, "train", "--resume", out)
        driver.send_signal(end)
        assert driver.wait(timeout=60) == 130
        played = whole_rows(out / "metrics.jsonl")
        assert iteration_of(checkpoints_of(out)[-1]) == len(played)
        assert len(whole_rows(out / "episodes.jsonl")) == 2 * len(played)
        assert not json.loads((out / "summary.json").read_text())["complete"]

    last = ended("train", "--resume", out)
    assert (last.returncode, last.stderr) == (0, "")
    assert results(out) == results(undisturbed_run)
    assert read_config(out)["went_on"][0]["iteration"] == 0


PARTS = 40


def write_checkpoints(run: Path) -> None:
    """Goes on with a run and writes one checkpoint after another, of many files, without end."""
    last = max(map(iteration_of, checkpoints_of(run)), default=0)

    def save(folder: Path) -> None:
        for number in range(PARTS):
            (folder / str(number)).write_text("whole")

    with RunFolder(run, {}, keep_iterations=last or None) as folder:
        for iteration in itertools.count(last + 1):
            folder.save_checkpoint(iteration, save, keep_every=10**6)


def test_whoever_dies_while_checkpoints_come_and_go_leaves_whole_ones(tmp_path: Path) -> None:
    draw, run = random.Random(7), tmp_path / "run"
    seen: set[str] = set()
    for _ in range(40):
        writer = multiprocessing.get_context("fork").Process(target=write_checkpoints, args=(run,))
        writer.start()
        time.sleep(draw.uniform(0.02, 0.2))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        seen |= {name[: name.index("ing-")] for name in half_written(run) if "ing-" in name}
        for checkpoint in checkpoints_of(run):
            assert [path.read_text() for path in checkpoint.iterdir()] == ["whole"] * PARTS
    assert seen == {".writ", ".remov"}, "the moments were badly chosen"
    with RunFolder(run, {}, keep_iterations=iteration_of(checkpoints_of(run)[-1])):
        assert half_written(run) == []
