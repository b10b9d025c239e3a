"""Whole runs from the command line: every task, the heuristic policy, export."""

import json
import shutil
from pathlib import Path

import pytest
from fast_tasks import FASHION_MNIST
from finished_runs import FinishedRuns
from writers import (
    cifar_batches,
    write_cifar_archive,
    write_cifar_parquet,
    write_gpt2_tokenizer,
    write_stories_parquet,
    write_stories_text,
)

from esper_ray.cli.main import run
from esper_ray.tasks import task_names

SHORT_LIFE = [
    *("lifecycle.training_dwell=1", "lifecycle.blending_steps=2", "lifecycle.min_blending_epochs=1"),
    *("lifecycle.shadowing_dwell=1", "lifecycle.embargo_epochs=1", "lifecycle.min_gradient_ratio=0"),
    *("decisions.min_germination_epoch=2", "decisions.min_plateau=0", "decisions.require_stabilised=false"),
    "decisions.min_cull_age=2",
]
SMALL_TRANSFORMER = [
    *("host.layers=2", "host.heads=2", "host.width=16", "host.context=32", "data.sequence_length=32"),
    *("data.batch_size=16", "data.train_samples=32", "data.validation_samples=32"),
]
FEW_TOKENS = [
    *("data.sequence_length=8", "host.context=8", "data.batch_size=8", "data.train_samples=16"),
    "data.validation_samples=8",
]
"""For a vocabulary of 50,257."""


def nothing(folder: Path) -> None:
    """The data set is on the machine."""


def cifar_archive(folder: Path) -> None:
    write_cifar_archive(folder, cifar_batches())


def stories_with_gpt2(folder: Path) -> None:
    write_stories_text(folder)
    write_gpt2_tokenizer(folder / "tokenizer.json")


CASES = {
    "digits": ("digits", nothing, ["data.train_samples=100", "data.validation_samples=100"]),
    "fashion_mnist": ("fashion_mnist", nothing, ["data.train_samples=500", "data.validation_samples=200"]),
    "cifar10 archive": ("cifar10", cifar_archive, ["host.base_channels=2"]),
    "cifar10 parquet": ("cifar10", write_cifar_parquet, ["host.base_channels=2"]),
    "pydoc": ("pydoc", nothing, SMALL_TRANSFORMER),
    "tinystories text": ("tinystories", write_stories_text, SMALL_TRANSFORMER),
    "tinystories parquet": ("tinystories", write_stories_parquet, SMALL_TRANSFORMER),
    "tinystories gpt2": ("tinystories", stories_with_gpt2, [*SMALL_TRANSFORMER, *FEW_TOKENS]),
}


def test_no_task_is_left_out() -> None:
    shipped = {name for name in task_names() if name != "photos" and not name.startswith("own")}
    assert {task for task, _, _ in CASES.values()} == shipped


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize("case", CASES)
def test_every_task_plays_whole_episodes(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, write, changes = CASES[case]
    if task == "fashion_mnist" and not FASHION_MNIST.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write(data)
    arguments = ["train", "--task", task, "--iterations", "1", "--runners", "0", "--episodes-per-iteration", "2"]
    arguments += ["--max-epochs", "10", "--wait-only-episodes", "0", "--out", str(out), "--set", *SHORT_LIFE, *changes]
    assert run([*arguments, *([] if write is nothing else ["--data-dir", str(data)])]) == 0
    assert "Done after 1 of 1 iterations: 2 episodes, 20 host epochs" in capsys.readouterr().out

    config = json.loads((out / "config.json").read_text())
    vocabulary = {"tinystories gpt2": 50_257, "pydoc": 256, "tinystories text": 256, "tinystories parquet": 256}
    assert config["task"]["classes"] == vocabulary.get(case, 10)
    rows = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert [(row["episode"], row["runner"]) for row in rows] == [(1, 1), (2, 1)]
    assert all(len(row["stages"]) == 10 for row in rows)
    components = set(rows[0]["reward_components"])
    assert ("loss" in components) == (config["task"]["task_type"] == "lm")
    assert len(list((out / "hosts").iterdir())) == 2

    assert run(["export", str(out)]) == 0
    printed = capsys.readouterr().out
    best = max(rows, key=lambda row: (row["kept_val_accuracy"], -row["episode"]))
    assert printed.startswith(f"Episode {best['episode']}: ")
    exported = out / "exports" / f"episode_{best['episode']:06d}"
    topology = json.loads((exported / "topology.json").read_text())
    assert topology["validation"]["accuracy"] == pytest.approx(best["kept_val_accuracy"], rel=1e-6)
    assert topology["validation"]["loss"] == pytest.approx(best["kept_val_loss"], rel=1e-5)
    assert (topology["seed"] or {}).get("blueprint") == best["kept_blueprint"]


@pytest.mark.usefixtures("session_ray")
def test_the_heuristic_policy_plays_on_the_same_actors_and_any_of_its_episodes_can_be_exported(
    finished_runs: FinishedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, original = finished_runs.printed("heuristic"), finished_runs.folder("heuristic")
    assert "Done after 5 of 5 episodes of the heuristic policy" in printed
    assert "GERMINATE_CONV_LIGHT 5" in printed
    assert f"Next: esper-ray export {original} --best" in printed
    out = finished_runs.copy("heuristic", tmp_path / "run")
    assert json.loads((out / "config.json").read_text())["runners"] == 2
    written = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    rows = sorted(written, key=lambda row: row["episode"])  # they are written as they end
    assert [row["episode"] for row in rows] == [1, 2, 3, 4, 5]
    assert json.loads((out / "summary.json").read_text())["episodes"] == 5
    ranking = sorted(rows, key=lambda row: (-row["kept_val_accuracy"], row["episode"]))
    kept = sorted(int(path.stem.removeprefix("episode_")) for path in (out / "hosts").iterdir())
    assert kept == sorted(row["episode"] for row in ranking[:2])

    worst, best = ranking[-1]["episode"], ranking[0]["episode"]
    assert run(["export", str(out), "--best"]) == 0
    assert f"Episode {best}: CNNHost" in capsys.readouterr().out
    assert run(["export", str(out), "--episode", str(worst)]) == 0
    assert f"Episode {worst}, grown again from its record: CNNHost" in capsys.readouterr().out

    kept_weights = out / "exports" / f"episode_{best:06d}" / "weights.safetensors"
    shutil.rmtree(out / "hosts")
    assert run(["export", str(out), "--episode", str(best), "--out", str(tmp_path / "again")]) == 0
    assert "grown again from its record" in capsys.readouterr().out
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == kept_weights.read_bytes()

    for wrong, message in {
        f"export {out}": "kept no host (--keep-hosts 0, or no episode was played); name one with --episode",
        f"export {out} --episode 9": "has no episode 9: expected 1 to 5",
        f"export {out} --episode 1 --best": "--episode and --best exclude each other",
        f"export {out} --episode {worst}": "exists already; name another folder with --out",
        f"export {tmp_path}": "holds no run: config.json cannot be read",
        "export": "Missing from esper-ray export: PATH Run folder",
    }.items():
        assert run(wrong.split()) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    rows[worst - 1]["per_epoch"]["val_loss"][4] += 0.001
    (out / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(out / "exports")
    assert run(["export", str(out), "--episode", str(worst)]) == 2
    assert f"episode {worst} comes out differently on this machine: val_loss of epoch 5 was" in capsys.readouterr().err
    assert not (out / "exports").exists()
