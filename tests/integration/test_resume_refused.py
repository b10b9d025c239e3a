"""Runs that cannot be resumed: each is refused in one line that names the cause."""

import json
import shutil
from pathlib import Path

import pytest
from driver import ITERATIONS, refused


def drop_line(file: Path, number: int) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:number] + lines[number + 1 :]))


def test_a_run_that_is_over_cannot_go_on(undisturbed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "--resume", undisturbed_run)
    assert f"is over, after all {ITERATIONS} iterations" in said


def test_what_is_no_training_run_cannot_be_resumed(killed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run: config.json cannot be read" in refused(capsys, "train", "--resume", killed_run / "hosts")
    assert "holds no run" in refused(capsys, "train", "--resume", killed_run / "nowhere")
    config = json.loads((killed_run / "config.json").read_text())
    for name in ("heuristic", None):
        content = {**config, "command": {**config["command"], "name": name}}
        (killed_run / "config.json").write_text(json.dumps(content))
        assert "is no training run: only those can be resumed" in refused(capsys, "train", "--resume", killed_run)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"command": "train", "device": "cpu"}', '{"command": {"name": "train"}, "device": "cpu"}'],
)
def test_a_damaged_configuration_cannot_be_resumed(
    killed_run: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (killed_run / "config.json").write_text(content)
    refused(capsys, "train", "--resume", killed_run)


def test_a_run_goes_on_with_the_settings_that_it_has(killed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (["--seed", "3"], ["--runners", "2"], ["--ppo.clip", "0.1"], ["--set", "reward.rent=2"]):
        assert "with --resume: a run goes on with the settings that it has" in refused(
            capsys, "train", "--resume", killed_run, *flag
        )


@pytest.mark.parametrize("file", ["metrics.jsonl", "episodes.jsonl"])
def test_a_run_that_lacks_a_row_cannot_go_on(killed_run: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    drop_line(killed_run / file, 7)
    assert f"{file} lacks rows before iteration {ITERATIONS}" in refused(capsys, "train", "--resume", killed_run)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_without_a_word(
    killed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(killed_run / "checkpoints")
    assert "iterations that are over, and no checkpoint" in refused(capsys, "train", "--resume", killed_run)
