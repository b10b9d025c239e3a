"""The files of tune_configs are valid, and say what they do."""

from pathlib import Path

import pytest
import yaml

from esper_ray import __version__
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.config_files import load_config
from esper_ray.orchestration.tuning.search_file import load_search
from esper_ray.tasks import get_task_spec, require_sound

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tune_configs").glob("*.yaml"))
SEARCHES = [path for path in FILES if "space" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in FILES if path not in SEARCHES]


def test_there_are_configurations_and_searches() -> None:
    assert {path.stem for path in CONFIGS} >= {"digits", "varied", "fashion_mnist", "pydoc"}
    expected = {"quick", "ppo_asha", "ppo_pbt", "reward_ab", "host_search", "optuna"}
    assert {path.stem for path in SEARCHES} == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    get_task_spec(config.task, config.task_overrides()).require_reachable_probation()


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_a_shipped_search_is_valid_whatever_is_drawn(path: Path) -> None:
    search = load_search(path)
    for setting in search.example_settings():
        config = search.trial_config(setting, search.seeds[0])
        task = get_task_spec(config.task, config.task_overrides())
        task.require_reachable_probation()
        require_sound(task)


def test_the_digits_configuration_is_the_default_job() -> None:
    config = load_config(ROOT / "tune_configs" / "digits.yaml")
    default = TrainConfig()
    assert config.ppo == default.ppo
    assert config.iterations == default.iterations
    task = get_task_spec("digits")
    assert config.episodes_per_iteration == task.episodes_per_iteration
    assert get_task_spec(config.task, config.task_overrides()) == task


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__
    assert citation["license"] == "MIT"
