"""A search of two settings from the command line; the many others are in tests/nightly/test_search.py."""

import json
from pathlib import Path

import pytest
import yaml

from esper_ray.cli.main import run

SEARCH = {
    "train": {
        **{"task": "digits", "iterations": 1, "episodes_per_iteration": 4, "wait_only_episodes": 0, "max_epochs": 12},
        "set": ["data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"],
    },
    "space": {"ppo.lr_start": {"grid": [0.002, 0.003]}},
    "seeds": [0],
}


@pytest.mark.usefixtures("session_ray")
def test_a_search_ranks_its_settings_and_the_best_can_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "search.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(SEARCH))
    assert run(["tune", str(file), "--out", str(out)]) == 0
    settings = json.loads((out / "ranking.json").read_text())["settings"]
    assert [entry["rank"] for entry in settings] == [1, 2]
    assert {entry["setting"]["ppo.lr_start"] for entry in settings} == {0.002, 0.003}
    assert settings[0]["mean"] >= settings[1]["mean"]
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert best["ppo"]["lr_start"] == settings[0]["setting"]["ppo.lr_start"]
    for entry in settings:
        (trial,) = entry["trials"]
        config = json.loads((out / "trials" / trial / "config.json").read_text())
        assert config["setting"] == entry["setting"]
        assert config["command"]["ppo"]["lr_start"] == entry["setting"]["ppo.lr_start"]
        assert len((out / "trials" / trial / "episodes.jsonl").read_text().splitlines()) == 4
    capsys.readouterr()
    again = ["train", "--config", str(out / "best.yaml"), "--runners", "0", "--out", str(tmp_path / "best")]
    assert run(again) == 0
    assert "Done after 1 of 1 iterations: 4 episodes" in capsys.readouterr().out
