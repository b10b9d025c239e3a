"""The benchmarks run and account for what they played; how fast it went, nobody asserts."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_orchestration_benchmark_accounts_for_every_episode(tmp_path: Path) -> None:
    """Of real and of light actors; and an earlier figure of one shows as the ratio to it."""
    old, out = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({"rows": [{"name": "3 light, 0.002 s epochs", "driver_ms_per_episode": 1.0}]}))
    size = ("--actors", "3,1", "--real-up-to", "1", "--episodes", "2", "--iterations", "2", "--epoch-seconds", "0.002")
    command = [sys.executable, BENCHMARKS / "orchestration.py", *size, "--json", out, "--compare", old]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = json.loads(out.read_text())["rows"]
    played = [(row["actors"], row["kind"], row["episodes"], row["actors_lost"]) for row in rows]
    assert played == [(1, "real", 4, 0), (1, "light", 4, 0), (3, "light", 12, 0)]
    for row in rows:
        assert row["episodes_per_second"] * row["wall_seconds"] == pytest.approx(row["episodes"])
        assert row["driver_ms_per_episode"] > 0
        per_episode = 1000 * row["learner_seconds_per_iteration"] * row["iterations"] / row["episodes"]
        assert 0 < row["learner_ms_per_episode"] == pytest.approx(per_episode)
        assert row["learner_seconds_per_iteration"] * row["iterations"] < row["wall_seconds"]
        assert 0 < row["idle_share"] < 1
    assert f"(×{rows[2]['driver_ms_per_episode']:.2f})" in ended.stdout
    assert ended.stdout.count("×") == 1


def figures_of_digits(benchmark: str, folder: Path, episodes: int) -> list[dict[str, Any]]:
    """Runs a benchmark on a few episodes of each host of `digits` and returns the rows that it writes."""
    out = folder / "new.json"
    command = [sys.executable, BENCHMARKS / benchmark, "digits", "--episodes", str(episodes), "--json", out]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_benchmark_of_host_epochs_shares_out_all_of_the_time(tmp_path: Path) -> None:
    rows = figures_of_digits("host_epochs.py", tmp_path, episodes=1)
    assert [row["name"] for row in rows] == ["digits", "digits, 32 hosts"]
    for row in rows:
        assert sum(row["phases"].values()) == pytest.approx(1.0)
        assert all(0 <= share < 1 for share in row["phases"].values())
        assert row["phases"]["train"] > 0.1
        assert 0 < row["share_of_limit"] < 1
        assert row["memory_beyond_imports"] > 0


@pytest.mark.usefixtures("nothing_left_behind")
def test_an_actor_s_memory_is_its_own_and_the_data_is_shared(tmp_path: Path) -> None:
    """The goal for `digits`: 60 MB beyond what the imports take; nothing of the data set is copied."""
    rows = figures_of_digits("actor_memory.py", tmp_path, episodes=2)
    (row,) = rows
    assert row["episodes"]["uss"] - row["baseline"]["uss"] <= 60
    assert row["episodes"]["data"] > 0
    assert row["episodes"]["data_own"] == 0


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--actors", "4,0", "0: expected 1 at least"),
        ("--actors", "4,", "expected a whole number"),
        ("--real-up-to", "-1", "expected"),
        ("--episodes", "0", "expected 1 at least"),
        ("--iterations", "1.5", "expected a whole number"),
        ("--epoch-seconds", "nan", "expected seconds above 0"),
        ("--epoch-seconds", "0", "expected seconds above 0"),
        ("--json", "missing/new.json", "expected a file in a folder that is there"),
        ("--compare", "missing.json", "no figures of a benchmark"),
    ],
)
def test_the_orchestration_benchmark_refuses_what_it_cannot_measure(
    option: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["orchestration.py", option, value])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(BENCHMARKS / "orchestration.py"), run_name="__main__")
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}" in error and reason in error


@pytest.mark.parametrize(
    ("benchmark", "arguments", "reason"),
    [
        ("host_epochs.py", ["digit"], "digit: expected one of digits,"),
        ("host_epochs.py", ["--episodes", "0"], "0: expected 1 at least"),
        ("actor_memory.py", ["digit"], "unknown task 'digit'"),
        ("actor_memory.py", ["--set", "epochs=3"], "epochs"),
    ],
)
def test_the_other_benchmarks_refuse_what_they_cannot_measure(
    benchmark: str, arguments: list[str], reason: str, tmp_path: Path
) -> None:
    """Each in a process of its own: one of them registers a task that no other test should see."""
    command = [sys.executable, BENCHMARKS / benchmark, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert ended.returncode == 2
    assert reason in ended.stderr.splitlines()[-1]
