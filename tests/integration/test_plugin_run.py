"""A user's own task from the command line, with a Ray of its own that is given the source."""

import json
import shutil
from pathlib import Path

import pytest

from esper_ray.cli.main import run

EXAMPLE = Path(__file__).parents[2] / "examples"


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_user_s_own_host_blueprint_and_data_run_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "examples")
    plugin = ["--plugin", "examples.photo_mixer"]
    assert run(["tasks", "photos", *plugin]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("GERMINATE_WIDENING_MLP", "block2_post", "gate 4", "host.patch", "present"))
    out = tmp_path / "run"
    arguments = ["train", *plugin, "--task", "photos", "--iterations", "1", "--runners", "2", "--slot", "block2_post"]
    assert run([*arguments, "--wait-only-episodes", "2", "--out", str(out)]) == 0
    assert "Done after 1 of 1 iterations: 8 episodes" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["actions"] == ["WAIT", "GERMINATE_GATE", "GERMINATE_WIDENING_MLP", "FOSSILIZE", "CULL"]
    assert config["task"]["host"]["slot"] == "block2_post"
    (row,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert set(row["actions"]) == set(config["actions"])
    assert row["kept_val_accuracy"] > 60
    assert run(["export", str(out)]) == 0
    assert "MixerHost of 286 parameters" in capsys.readouterr().out
