"""Libraries and folders of the user that need not be there, or are there by half."""

import logging
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from esper_ray.data.cache import cache_folder
from esper_ray.data.tokenizers import find_gpt2_tokenizer
from esper_ray.errors import ConfigurationError
from esper_ray.optional import needs, optional
from esper_ray.orchestration.learner.policy_network import rllib_model_config
from esper_ray.orchestration.learner.rl_module import MaskedPPOTorchRLModule
from esper_ray.orchestration.run.loggers import require_loggers


def half_installed(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a library of that name, of which a part is missing, where Python finds it first."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"from {name}.nowhere import something\n")
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(folder)


def test_a_half_installed_hub_is_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_installed(tmp_path, "huggingface_hub", monkeypatch)
    assert find_gpt2_tokenizer(None, hub=False) is None


def test_a_half_installed_logger_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_installed(tmp_path, "mlflow", monkeypatch)
    broken = r"--logger mlflow needs the library mlflow, which is installed but does not import: ModuleNotFoundError"
    with pytest.raises(ConfigurationError, match=broken):
        require_loggers(["mlflow"])


def test_a_folder_that_happens_to_have_the_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert optional("left_behind", "anything") is None
    assert optional("not_there_at_all") is None
    assert optional("json", "dumps") is not None
    for library in ("left_behind", "not_there_at_all"):
        assert needs(library, "it (the extra [x])") == f"needs the library {library}: pip install it (the extra [x])"


@pytest.mark.parametrize("given", ["", "relative/cache"])
def test_an_empty_or_relative_xdg_cache_home_counts_for_nothing(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPER_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder() == Path.home() / ".cache" / "esper_ray"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/esper_ray")


def test_a_policy_network_is_built_without_a_warning_of_rllib() -> None:
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    deprecations = logging.getLogger("ray._common.deprecation")
    level = deprecations.level
    deprecations.setLevel(logging.WARNING)
    deprecations.addHandler(handler)
    try:
        spaces = {"observations": gym.spaces.Box(-1, 1, (3,)), "action_mask": gym.spaces.MultiBinary(2)}
        MaskedPPOTorchRLModule(
            observation_space=gym.spaces.Dict(spaces),
            action_space=gym.spaces.Discrete(2),
            model_config=rllib_model_config("mlp", hidden=(4,), lstm_width=4, steps=5),
        )
        deprecations.warning("`RLModule(config=[RLModuleConfig object])` has been deprecated.")
        deprecations.warning("something else is")
    finally:
        deprecations.removeHandler(handler)
        deprecations.setLevel(level)
    assert seen == ["something else is"]
