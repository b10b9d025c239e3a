"""Configurations and notebooks in the repository do what they say."""

import json
from pathlib import Path

import pytest

from esper_ray.orchestration.config import TrainConfig, load_config
from esper_ray.tasks import get_task_spec

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "tune_configs").glob("*.yaml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_configurations_and_notebooks() -> None:
    assert CONFIGS
    assert NOTEBOOKS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    get_task_spec(config.task, config.task_overrides()).require_reachable_probation()


def test_the_digits_configuration_is_the_default_job() -> None:
    config = load_config(ROOT / "tune_configs" / "digits.yaml")
    default = TrainConfig()
    assert config.ppo == default.ppo
    assert config.iterations == default.iterations
    task = get_task_spec("digits")
    assert config.episodes_per_iteration == task.episodes_per_iteration
    assert get_task_spec(config.task, config.task_overrides()) == task


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_runs_from_top_to_bottom(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), str(path), "exec"), names)
    assert "grown" in capsys.readouterr().out
