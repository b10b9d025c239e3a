"""Commands that are printed can be pasted: quoted, and relative to where the user is."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esper_ray.cli.train import summary
from esper_ray.cli.tune import _resume_command
from esper_ray.errors import ConfigurationError
from esper_ray.orchestration.config import TrainConfig, TuneConfig
from esper_ray.orchestration.config_files import load_config
from esper_ray.orchestration.run.run_result import RunResult, RunTally
from esper_ray.report.shell_command import shell_command
from esper_ray.shell import pasteable


def test_paths_are_quoted_and_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pasteable("esper-ray", "report", tmp_path / "mein Lauf ü") == "esper-ray report 'mein Lauf ü'"
    assert pasteable("report", tmp_path) == "report ."
    assert pasteable("report", tmp_path.parent / "o'clock") == f"""report '{tmp_path.parent}/o'"'"'clock'"""
    assert pasteable("report", Path("-x")) == "report ./-x", "no flag"


def test_the_commands_after_a_training_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "mein Lauf ü"
    config = TrainConfig(data_dir=tmp_path / "meine Daten")
    plan: Any = SimpleNamespace(out=out, iterations=1, config=config)
    result = RunResult(plan, RunTally(trained=[50.0, 60.0]), out / "checkpoints" / "iteration_000001", 1)
    commands = [shlex.split(line[len("Next: ") :]) for line in summary(result) if line.startswith("Next: ")]
    assert commands == [
        ["tensorboard", "--logdir", "mein Lauf ü"],
        ["esper-ray", "compare", "mein Lauf ü/checkpoints/iteration_000001", "--data-dir", "meine Daten"],
        ["esper-ray", "export", "mein Lauf ü", "--best"],
    ]


def test_the_command_that_resumes_a_search_keeps_where_it_ran_and_who_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TuneConfig(file=tmp_path / "meine Suche.yaml", address="head:6379", logger=("wandb", "mlflow"))
    plan: Any = SimpleNamespace(config=config, folder=tmp_path / "mein Ort ü")
    assert _resume_command(plan) == (
        "Next: esper-ray tune 'meine Suche.yaml' --out 'mein Ort ü' --resume --address head:6379 --logger wandb mlflow"
    )


def test_a_search_given_to_train_is_answered_with_its_command(tmp_path: Path) -> None:
    file = tmp_path / "my search.yaml"
    file.write_text("space: {}")
    with pytest.raises(ConfigurationError, match=r"describes a search: esper-ray tune '.*my search\.yaml'"):
        load_config(file)


def test_lists_of_a_recorded_command_stand_behind_one_flag() -> None:
    recorded = {"name": "train", "plugin": ["a", "b"], "set": ["x=[1, 2]", "y=3"], "logger": []}
    assert shell_command(recorded) == "esper-ray train --plugin a b --set 'x=[1, 2]' y=3"
