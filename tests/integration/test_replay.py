"""`esper-ray replay`: an episode of a run folder comes out as recorded, or the first difference is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import EPOCHS, FinishedRuns

from esper_ray.cli.main import run
from esper_ray.episode.host_run import HostRun

Row = dict[str, Any]
RUNS = ("trained", "pooled", "varied", "heuristic")


@pytest.fixture(scope="module")
def runs(finished_runs: FinishedRuns) -> Path:
    """A folder with a small run of each kind, played for real."""
    return {finished_runs.folder(name).parent for name in RUNS}.pop()


@pytest.fixture
def trained(finished_runs: FinishedRuns, tmp_path: Path) -> Path:
    """A copy of the plain training run, to be altered."""
    return finished_runs.copy("trained", tmp_path / "run", "checkpoints", "hosts")


def rows_of(folder: Path) -> dict[int, Row]:
    rows = map(json.loads, (folder / "episodes.jsonl").read_text().splitlines())
    return {row["episode"]: row for row in rows}


def alter_row(folder: Path, number: int, alter: Callable[[Row], None]) -> None:
    rows = rows_of(folder)
    alter(rows[number])
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


def alter_config(folder: Path, alter: Callable[[Row], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    alter(config)
    (folder / "config.json").write_text(json.dumps(config))


def replay(folder: Path, episode: int, *more: str) -> int:
    return run(["replay", str(folder), "--episode", str(episode), *more])


def reproduced(folder: Path, episode: int) -> str:
    row = rows_of(folder)[episode]
    accuracy = row["kept_val_accuracy"]
    return (
        f"Episode {episode} of {folder}: all {len(row['stages'])} epochs as recorded, to the last digit "
        f"(kept validation accuracy {accuracy:.1f} %).\n"
    )


# --- as recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_episode_comes_out_as_recorded(name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(runs / name)
    assert any(decision != "WAIT" for row in rows.values() for decision in row["per_epoch"]["decision"])
    for episode in list(rows)[:4]:
        assert replay(runs / name, episode) == 0
        assert capsys.readouterr().out == reproduced(runs / name, episode)


def test_the_runs_differ_in_what_a_replay_must_not_trip_over(runs: Path) -> None:
    assert any(row["taken_over"] for row in rows_of(runs / "pooled").values())
    assert any(row["twin_epochs"] for row in rows_of(runs / "varied").values())
    assert len({json.dumps(row["host"]) for row in rows_of(runs / "varied").values()}) > 1
    assert any(row["kept_blueprint"] for row in rows_of(runs / "heuristic").values())
    assert any("CULL" in row["action_counts"] for row in rows_of(runs / "trained").values())


def test_the_last_digit_of_every_measured_number_counts(runs: Path, tmp_path: Path) -> None:
    """Trained weights that are off by one part in a million are noticed, so equality is no accident of rounding."""
    with pytest.MonkeyPatch.context() as patch:
        built = HostRun.__init__

        def nudged(self: HostRun, *arguments: Any, **more: Any) -> None:
            built(self, *arguments, **more)
            with torch.no_grad():
                self.model.get_host_parameters()[0].mul_(1 + 1e-6)

        patch.setattr(HostRun, "__init__", nudged)
        assert replay(runs / "trained", 1) == 1
    assert replay(runs / "trained", 1) == 0


def test_it_plays_in_its_own_process_without_ray(runs: Path) -> None:
    program = (
        "import sys; from esper_ray.cli.main import run; code = run(sys.argv[1:]); print(code, 'ray' in sys.modules)"
    )
    arguments = ["replay", str(runs / "trained"), "--episode", "2"]
    answer = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert answer.stdout == f"{reproduced(runs / 'trained', 2)}0 False\n"


def test_what_the_episode_cost_and_where_it_stands_is_not_compared(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter_row(trained, 3, lambda row: row.update(seconds=99.0, taken_over=3, twin_epochs=7, runner=5, iteration=9))
    assert replay(trained, 3) == 0
    assert capsys.readouterr().out == reproduced(trained, 3)


# --- differences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "epoch"),
    [
        *[("val_loss", 5), ("train_loss", 1), ("val_accuracy", EPOCHS), ("alpha", 6), ("reward", 4)],
        *[("reward_components.potential", 4), ("stage", 4), ("stage_at_end", 4), ("rolled_back", 7), ("epoch", 2)],
        *[("gradient_norm", 1), ("host_gradient_norm", 1)],
    ],
)
def test_an_altered_value_of_an_epoch_is_the_first_difference(
    field: str, epoch: int, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was: list[Any] = []

    def alter(row: Row) -> None:
        column = {**row["per_epoch"], "stage": row["stages"]}
        for part in field.split("."):
            column = column[part]
        was.append(column[epoch - 1])
        column[epoch - 1] = column[epoch - 1] + 1e-6 if isinstance(column[epoch - 1], float) else "something else"
        was.append(column[epoch - 1])

    alter_row(trained, 2, alter)
    assert replay(trained, 2) == 1
    first, second, third = capsys.readouterr().out.splitlines()
    now, recorded = was[0] if was[0] is not None else "nothing", was[1]
    assert first == (
        f"Episode 2 of {trained} comes out differently, first in epoch {epoch}, {field}: {recorded} as recorded, "
        f"{now} now."
    )
    assert second.startswith(f"1 of {EPOCHS} epochs differ. Kept validation accuracy: ")
    assert third == "Versions, CPU and settings are as recorded; look for an altered row, other data or changed code."


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("kept_val_accuracy", 91.25), ("kept_val_loss", None), ("final_stage", "EMBARGOED"), ("return", 12.5)],
        *[("host_parameters", 1), ("added_parameters", 9), ("kept_blueprint", "lora"), ("rollbacks", 2)],
        *[("forced_beginning", 0), ("rent", 2.0), ("task", "chess"), ("kept_test_accuracy", 50.0)],
        *[("reward_components.rent", -3.0), ("action_counts.CULL", 40), ("host.blocks", 3), ("unknown", 1)],
    ],
)
def test_an_altered_value_of_the_whole_episode_is_named_once_every_epoch_is_the_same(
    field: str, value: Any, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def alter(row: Row) -> None:
        *outer, name = field.split(".")
        for part in outer:
            row = row[part]
        row[name] = value

    alter_row(trained, 4, alter)
    assert replay(trained, 4) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    recorded = "nothing" if value is None else value
    assert first.startswith(
        f"Episode 4 of {trained} comes out differently, every epoch is as recorded, but not {field}: {recorded} as "
        "recorded, "
    )
    assert second.startswith(f"0 of {EPOCHS} epochs differ.")


def test_another_decision_changes_every_epoch_from_there_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def germinate_last(row: Row) -> None:
        row["per_epoch"]["decision"] = [*["WAIT"] * (EPOCHS - 2), "GERMINATE_CONV_HEAVY", "WAIT"]

    alter_row(trained, 1, germinate_last)
    recorded = rows_of(trained)[1]
    acted = next(i for i, stage in enumerate(recorded["stages"], start=1) if stage != "DORMANT")
    assert replay(trained, 1) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert f"first in epoch {acted}, stage: GERMINATED as recorded, DORMANT now" in first
    assert second.startswith(f"{EPOCHS - acted + 1} of {EPOCHS} epochs differ.")


def test_a_decision_that_is_not_legal_is_a_difference_and_ends_the_replay(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter_row(trained, 1, lambda row: row["per_epoch"]["decision"].__setitem__(1, "CULL"))
    assert replay(trained, 1) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("comes out differently, first in epoch 2, decision: CULL as recorded, not legal now.")
    assert second == f"1 of {EPOCHS} epochs differ; it cannot go on, because the decision of epoch 2 is not legal."
    alter_row(trained, 1, lambda row: row["per_epoch"]["val_loss"].__setitem__(0, 0.5))
    assert replay(trained, 1) == 1
    first, second, _ = capsys.readouterr().out.splitlines()
    assert "first in epoch 1, val_loss: " in first
    assert second == f"2 of {EPOCHS} epochs differ; it cannot go on, because the decision of epoch 2 is not legal."


def test_versions_and_cpu_that_changed_are_named_as_possible_causes_of_a_difference_only(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = json.loads((trained / "config.json").read_text())
    assert now["cpu_capability"] == torch.backends.cpu.get_cpu_capability()

    def play_elsewhere(config: Row) -> None:
        config["versions"] |= {"torch": "2.6.0", "ray": "2.50.1"}
        config |= {"cpu_capability": "NEON", "git_commit": "0123456789abcdef"}
        del config["python"]

    alter_config(trained, play_elsewhere)
    assert replay(trained, 1) == 0
    assert capsys.readouterr().out == reproduced(trained, 1)
    alter_row(trained, 1, lambda row: row["per_epoch"]["val_loss"].__setitem__(3, 0.5))
    assert replay(trained, 1) == 1
    *_, causes = capsys.readouterr().out.splitlines()
    assert causes == (
        f"Possible causes: torch 2.6.0, now {now['versions']['torch']}; ray 2.50.1, now {now['versions']['ray']}; "
        f"Python not recorded, now {now['python']}; CPU capability NEON, now {now['cpu_capability']}; "
        f"git commit 0123456789ab, now {(now['git_commit'] or 'unknown')[:12]}."
    )


# --- what cannot be replayed --------------------------------------------------------------------------------------


def refused(folder: Path, episode: int, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert replay(folder, episode, *more) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_an_episode_or_a_run_that_is_not_there_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{runs / 'trained'} has no episode 9: expected 1 to 8" in refused(runs / "trained", 9, capsys)
    assert "--episode: input should be greater than or equal to 1, got 0" in refused(runs / "trained", 0, capsys)
    assert "holds no run: config.json cannot be read" in refused(tmp_path, 1, capsys)
    assert run(["replay", str(runs / "trained")]) == 2
    assert "Missing from esper-ray replay: --episode INT" in capsys.readouterr().err
    assert run(["replay", "--episode", "1"]) == 2
    assert "Missing from esper-ray replay: PATH Run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: row.pop("episode_seed"), "episode_seed: expected a whole number from 0 to 2**63 - 1, got None"),
        (lambda row: row.update(episode_seed=-1), "episode_seed: expected a whole number from 0 to 2**63 - 1, got -1"),
        (lambda row: row.update(episode_seed="7"), "episode_seed: expected a whole number"),
        (lambda row: row.pop("per_epoch"), "per_epoch: expected a list for each measurement, got None"),
        (lambda row: row.pop("stages"), "stages: expected a list of 14, one for each epoch, got None"),
        (lambda row: row["per_epoch"].pop("decision"), "per_epoch.decision: expected a list of 14"),
        (lambda row: row["per_epoch"]["decision"].pop(), "per_epoch.decision: expected a list of 14, one for each epoch"
                                                         ", got 13"),
        (lambda row: row["per_epoch"]["reward_components"]["rent"].append(0.0),
         "per_epoch.reward_components.rent: expected a list of 14, one for each epoch, got 15"),
        (lambda row: row["per_epoch"]["decision"].__setitem__(0, None), "expected names of actions, got None"),
        (lambda row: row["per_epoch"]["decision"].__setitem__(0, "GERMINATE_CONV_HEAVI"),
         "unknown action 'GERMINATE_CONV_HEAVI': did you mean 'GERMINATE_CONV_HEAVY'?"),
        (lambda row: row.pop("kept_blueprint"), "episodes.jsonl was written by an earlier version of esper_ray"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_refused_in_one_line_that_says_what_it_lacks(
    damage: Callable[[Row], None], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter_row(trained, 2, damage)
    assert message in refused(trained, 2, capsys)


def test_a_row_that_is_no_json_is_refused_and_one_that_was_cut_off_is_not_there(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained / "episodes.jsonl").read_text()
    (trained / "episodes.jsonl").write_text(text[:-100])
    assert "has no episode 8: expected 1 to 7" in refused(trained, 8, capsys)
    (trained / "episodes.jsonl").write_text(text[:-100] + "\n")
    assert "episodes.jsonl is damaged: " in refused(trained, 1, capsys)


def test_a_run_whose_task_or_data_is_not_here_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(trained / "empty"))
    alter_config(trained, lambda config: config["task"]["data"].update(source="cifar10"))
    assert "cifar10" in refused(trained, 1, capsys)
    assert str(trained / "gone") in refused(trained, 1, capsys, "--data-dir", str(trained / "gone"))
    alter_config(trained, lambda config: config["command"].update(plugin=["no_such_module"]))
    assert "plugin 'no_such_module' does not import" in refused(trained, 1, capsys)
    alter_config(trained, lambda config: config.update(command={"name": "train"}, esper_ray="0.0.9"))
    alter_config(trained, lambda config: config["task"].pop("host"))
    alter_config(trained, lambda config: config["task"].update(spare=1))
    assert "was written by esper_ray 0.0.9 and cannot be read by" in refused(trained, 1, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_run_on_a_gpu_is_replayed_on_the_cpu_only_when_asked_for(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--device cuda: torch finds no GPU here" in refused(trained, 1, capsys, "--device", "cuda")
    alter_config(trained, lambda config: config.update(device="cuda"))
    error = refused(trained, 1, capsys)
    assert f"{trained} was played on cuda, and torch finds no GPU here" in error
    assert "--device cpu, where the last digits may differ" in error
    assert replay(trained, 1, "--device", "cpu") == 0
    caveat = "That holds although it was played on cuda, and replayed on cpu.\n"
    assert capsys.readouterr().out == reproduced(trained, 1) + caveat
    alter_row(trained, 1, lambda row: row["per_epoch"]["val_loss"].__setitem__(3, 0.5))
    assert replay(trained, 1, "--device", "cpu") == 1
    assert "Possible causes: it was played on cuda, and replayed on cpu." in capsys.readouterr().out
