"""A session: owns Ray, survives interrupts, returns frames; and the notebooks, executed by a real kernel."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from esper_ray import Session
from esper_ray.errors import ConfigurationError, PlacementError
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.run.run_folder import RunFolder, checkpoints_of
from esper_ray.orchestration.run.train import train
from esper_ray.orchestration.tuning.trial import QuietObserver
from esper_ray.policies.network import read_policy

SMALL: dict[str, Any] = {
    **{"task": "digits", "iterations": 4, "episodes_per_iteration": 6, "max_epochs": 12, "runners": 2},
    **{"wait_only_episodes": 2, "set": ["data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"]},
}
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_SECONDS = 1200
"""For a cell, on a machine that is ten times slower for a while."""


def numbers(folder: Path) -> list[Any]:
    """What was measured, without what the clock says."""
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["episode"], row["episode_seed"], row["stages"], row["per_epoch"]) for row in rows]


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_training_that_was_interrupted_and_went_on_comes_to_the_same_as_one_that_was_not(tmp_path: Path) -> None:
    with Session(num_cpus=4, folder=tmp_path) as session:
        whole = session.train(**SMALL, seed=5).run()
        assert whole.is_over
        assert not whole.interrupted
        expected = whole.close()

        stopped = session.train(**SMALL, seed=5)
        interrupts = 0
        for delay in (0.05, 0.4, 0.9, 1.3):  # at the start, and at whatever comes then
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with contextlib.suppress(KeyboardInterrupt):  # it may come just after the end of `run`
                stopped.run()
                timer.cancel()
                timer.join()
                time.sleep(0.1)
            interrupts += stopped.interrupted
            if stopped.is_over:
                break
        assert interrupts
        assert stopped.run().is_over
        result = stopped.close()
    assert numbers(stopped.folder) == numbers(whole.folder)
    assert result.tally.wait_only == expected.tally.wait_only
    assert result.tally.trained == expected.tally.trained
    assert not result.interrupted
    learners = [
        [json.loads(line)["learner"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, stopped)
    ]
    assert learners[0] == learners[1]


@pytest.mark.usefixtures("nothing_left_behind")
def test_an_interrupt_at_the_end_lets_it_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_summary = RunFolder.write_summary

    def interrupted(self: RunFolder, summary: Mapping[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write_summary(self, summary)

    def assert_whole(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["complete"] and not summary["interrupted"]
        assert [checkpoint.name for checkpoint in checkpoints_of(folder)] == ["iteration_000001"]

    monkeypatch.setattr(RunFolder, "write_summary", interrupted)
    settings = {**SMALL, "iterations": 1, "runners": 1, "wait_only_episodes": 0}
    with Session(num_cpus=1, folder=tmp_path) as session:
        training = session.train(**settings)
        with pytest.raises(KeyboardInterrupt):
            training.run()
        assert training.close().iterations == 1
    assert_whole(training.folder)
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(**settings, out=tmp_path / "from the command line"), QuietObserver())
    assert_whole(tmp_path / "from the command line")


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_session_gives_frames_and_leaves_nothing(tmp_path: Path) -> None:
    session = Session(num_cpus=2, folder=tmp_path)
    with pytest.raises(ConfigurationError, match="the session is closed"):
        session.train(**SMALL)
    with session:
        with pytest.raises(ConfigurationError, match="unknown key 'taks': did you mean 'task'"):
            session.train(taks="digits")
        with pytest.raises(ConfigurationError, match="iterations: Input should be greater"):
            session.train(iterations=0)
        with pytest.raises(ConfigurationError, match="resume is for the command line: esper-ray train --resume"):
            session.train(resume="runs/other")
        training = session.train(**SMALL).run(1)
        assert not training.is_over
        assert list(training.iterations.index) == [1]
        assert training.iterations.loc[1, "episodes"] == 6
        assert training.iterations["learner.learning_rate"].notna().all()
        training.run()
        assert list(training.iterations.index) == [1, 2, 3, 4]
        assert len(training.episodes) == 24
        assert training.episodes["kept_val_accuracy"].between(0, 100).all()
        epochs = training.epochs(24)
        assert list(epochs.index) == list(range(1, 13))
        assert epochs["reward"].sum() == pytest.approx(training.episodes.loc[24, "return"], abs=1e-5)
        parts = epochs[[name for name in epochs if name.startswith("reward.")]].sum().sum()
        assert parts == pytest.approx(epochs["reward"].sum(), abs=1e-5)
        with pytest.raises(ConfigurationError, match="has no episode 25: expected 1 to 24"):
            training.epochs(25)
        compared = session.compare(training.checkpoint, controls="wait", episodes=10)
        assert set(compared.policies["policy"]) == {"sampled", "median", "wait"}
        assert (compared.differences["low"] <= compared.differences["difference"]).all()
        assert "n 10 held-out hosts" in compared.verdict
        assert (
            len(session.heuristic(**{k: v for k, v in SMALL.items() if k in ("task", "set", "max_epochs")}, episodes=3))
            == 3
        )
        assert training.report().stat().st_size > 100_000
        open_training = session.train(**SMALL, from_checkpoint=training.checkpoint)
        learned, begun = (read_policy(run.checkpoint)[1] for run in (training, open_training))
        assert all(torch.equal(learned[name], weight) for name, weight in begun.items())
        with pytest.raises(PlacementError, match="others leave room for 0; first end what holds them"):
            session.train(**SMALL)
    assert training.checkpoint.name == "iteration_000004"
    assert json.loads((open_training.folder / "summary.json").read_text())["interrupted"]
    with pytest.raises(ConfigurationError, match="the training is closed"):
        open_training.run()
    assert not ray.is_initialized()


@pytest.mark.timeout(2 * _SECONDS)
@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom_without_noise(path: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    noise = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not noise
    data = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in entry or "learning curve" in entry.get("text/html", "") for entry in data)
    assert any("<table" in entry.get("text/html", "") for entry in data)
    if copies := os.environ.get("ESPER_RAY_KEEP_NOTEBOOKS"):  # to look at them
        nbformat.write(notebook, Path(copies) / path.name)


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_stop_button_of_a_notebook_ends_what_runs_and_not_the_session(tmp_path: Path) -> None:
    """A kernel is interrupted as the button does it: by SIGINT to the kernel's process."""
    from jupyter_client.manager import start_new_kernel

    setup = f"""
from esper_ray import Session
session = Session(num_cpus=2, folder={str(tmp_path)!r}).open()
training = session.train(**{ {**SMALL, "iterations": 200}!r})
"""
    manager, client = start_new_kernel(kernel_name="python3")

    def press_stop() -> None:
        while not any(path.read_text() for path in tmp_path.glob("*/metrics.jsonl")):
            time.sleep(0.1)
        manager.interrupt_kernel()

    try:
        client.execute_interactive(setup, timeout=120, output_hook=lambda _message: None)
        threading.Thread(target=press_stop, daemon=True).start()
        reply = client.execute_interactive("training.run(); done = training.iterations.index.max()", timeout=120)
        assert reply["content"]["status"] == "ok"
        reply = client.execute_interactive(
            "assert training.interrupted and 0 < done < 200; training.run(1); "
            "assert list(training.iterations.index) == list(range(1, done + 2)); session.close()",
            timeout=120,
        )
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
