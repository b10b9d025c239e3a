"""Searches with real Ray Tune: ranking, resumption after kill -9, schedulers, placement, loggers."""

import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import tune
from ray.cluster_utils import Cluster
from writers import cifar_batches, write_cifar_archive

from esper_ray.cli.main import run
from esper_ray.errors import PlacementError
from esper_ray.file_locks import locked
from esper_ray.orchestration.config import TuneConfig
from esper_ray.orchestration.fleet import placement
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.placement import Placement, place_trials
from esper_ray.orchestration.tuning.search import SearchPlan, SearchResult, run_search
from esper_ray.orchestration.tuning.searchers import BoundedPBT
from esper_ray.orchestration.tuning.trial import _claimed_after_former_actor

TRAIN: dict[str, Any] = {
    **{"task": "digits", "iterations": 3, "episodes_per_iteration": 4, "wait_only_episodes": 0, "max_epochs": 12},
    "set": ["data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"],
}
SMALL: dict[str, Any] = {"train": TRAIN, "space": {"ppo.lr_start": {"grid": [0.001, 0.003]}}, "seeds": [0, 1]}


class Silent:
    """An observer that only counts."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_start(self, plan: SearchPlan) -> None:
        self.plan = plan

    def on_trials(self, trials: Any) -> None:
        self.seen.append([trial.status for trial in trials])


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return file


def searched(folder: Path, **changes: Any) -> SearchResult:
    """Searches on the Ray that runs."""
    return run_search(TuneConfig(file=written(folder, **changes), out=folder / "out"), Silent())


def rows(run_folder: Path, file: str = "episodes.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / file).read_text().splitlines()]


def played(run_folder: Path) -> list[dict[str, Any]]:
    """The episodes without what the clock says."""
    return [{**row, "seconds": 0, "per_epoch": {**row["per_epoch"]}} for row in rows(run_folder)]


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_search_killed_after_half_of_it_goes_on_and_repeats_no_finished_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver is killed at the very moment at which a trial has ended, before Ray Tune has written that down."""
    file, out = written(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "esper_ray.cli.main", "tune", str(file), "--out", str(out)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 250
        while len(ended := sorted(path.parent for path in out.glob("trials/*/summary.json"))) < 2:
            assert driver.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        driver.kill()
        driver.wait()
    before = {path: (path / "episodes.jsonl").stat() for path in ended}

    assert run(["tune", str(file), "--out", str(out)]) == 2
    assert "already holds a search; go on with it with --resume" in capsys.readouterr().err
    assert run(["tune", str(written(tmp_path, seeds=[0, 2])), "--out", str(out), "--resume"]) == 2
    assert "other values of seeds than the search" in capsys.readouterr().err
    assert run(["tune", str(written(tmp_path)), "--out", str(out), "--resume", "--max-concurrent", "7"]) == 2
    assert "leave out --max-concurrent with --resume" in capsys.readouterr().err

    with local_ray(num_cpus=1):
        assert run(["tune", str(written(tmp_path)), "--out", str(out), "--resume"]) == 2
    assert "began with 2 trials of 1 runners at a time, which do not fit here" in capsys.readouterr().err
    assert run(["tune", str(written(tmp_path)), "--out", str(out), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "Done: 4 finished" in printed
    for path, stat in before.items():
        now = (path / "episodes.jsonl").stat()
        assert (now.st_ino, now.st_mtime_ns, now.st_size) == (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    trials = sorted(out.glob("trials/*"))
    assert [path.name for path in trials] == ["00000_seed0", "00001_seed0", "00002_seed1", "00003_seed1"]
    for path in trials:
        assert [row["iteration"] for row in rows(path, "metrics.jsonl")] == [1, 2, 3]
        assert [row["episode"] for row in rows(path)] == list(range(1, 13))
    ranking = json.loads((out / "ranking.json").read_text())
    assert [entry["seeds"] for entry in ranking["settings"]] == [[0, 1], [0, 1]]
    assert all(entry["complete"] for entry in ranking["settings"])
    assert (out / "report.html").stat().st_size > 100_000
    assert {path.name for path in out.glob("*.png")} == {"ranking.png", "learning_curves.png"}

    best = out / "best.yaml"
    (seed_0,) = [name for name in ranking["settings"][0]["trials"] if name.endswith("seed0")]
    last = out / "trials" / seed_0 / "checkpoints" / "iteration_000003"
    with local_ray():
        assert run(["train", "--config", str(best), "--out", str(tmp_path / "again")]) == 0
        assert run(["evaluate", str(last), "--episodes", "2", "--out", str(tmp_path / "held_out")]) == 0
    again, trial = played(tmp_path / "again"), played(out / "trials" / seed_0)
    assert [row["per_epoch"] for row in again] == [row["per_epoch"] for row in trial]


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_asha_holds_trials_against_those_of_their_own_seed(tmp_path: Path) -> None:
    space = {"ppo.lr_start": {"grid": [0.001, 0.003]}}
    result = searched(tmp_path, space=space, scheduler={"kind": "asha", "grace_iterations": 1, "reduction": 2})
    by_seed = {seed: [trial for trial in result.trials if trial.seed == seed] for seed in (0, 1)}
    for trials in by_seed.values():
        assert max(trial.iterations for trial in trials) == 3
        assert {trial.status for trial in trials} <= {"finished", "stopped"}
    assert not result.interrupted
    assert not result.failed
    for trial in result.trials:
        if trial.status == "stopped":
            summary = json.loads((tmp_path / "out" / "trials" / trial.name / "summary.json").read_text())
            assert summary["interrupted"]
            assert trial.iterations < 3


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_pbt_learns_on_with_the_settings_that_it_changed(tmp_path: Path) -> None:
    train = {**TRAIN, "iterations": 4, "ppo": {"lr_end": 1.0e-4, "entropy_end": 0.0}}
    space = {"ppo.lr_start": {"loguniform": [1e-4, 1e-2]}, "ppo.entropy_start": {"uniform": [0.01, 0.1]}}
    scheduler = {"kind": "pbt", "interval": 2, "quantile": 0.5}
    result = searched(tmp_path, train=train, space=space, samples=2, seeds=[0], scheduler=scheduler)
    assert [trial.iterations for trial in result.trials] == [4, 4]
    changed = 0
    for trial in result.trials:
        folder = tmp_path / "out" / "trials" / trial.name
        metrics, config = rows(folder, "metrics.jsonl"), json.loads((folder / "config.json").read_text())
        assert config["setting"] == trial.setting
        lr, entropy = trial.setting["ppo.lr_start"], trial.setting["ppo.entropy_start"]
        # After the third of four updates both schedules are at three quarters of their way.
        assert metrics[2]["learner"]["learning_rate"] == pytest.approx(lr + 0.75 * (1e-4 - lr), rel=1e-3)
        assert metrics[2]["learner"]["entropy_coefficient"] == pytest.approx(0.25 * entropy, rel=1e-3)
        first = metrics[0]["learner"]["learning_rate"]
        changed += first != pytest.approx(lr + 0.25 * (1e-4 - lr), rel=1e-3)
    assert changed == 1, "one of the two takes over from the other"
    assert [len(entry.trials) for entry in result.ranking] == [1, 1]


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_a_trial_that_takes_over_while_its_own_checkpoint_is_being_written_goes_on_to_its_end(tmp_path: Path) -> None:
    saving, arrived = tmp_path / "saving", tmp_path / "arrived"

    def wait_until_there(marker: Path) -> None:
        give_up = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < give_up:
            time.sleep(0.01)

    class Meeting(tune.Trainable):
        """The worse of two is still writing its second checkpoint when the better one comes to its second step."""

        def setup(self, config: dict[str, Any]) -> None:
            self._is_worse = config["seed"] == 0

        def step(self) -> dict[str, Any]:
            if not self._is_worse and self.iteration == 1:
                wait_until_there(saving)
                arrived.touch()
            return {"score": self.config["value"], "done": self.iteration == 3}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            if self._is_worse and self.iteration == 2:
                saving.touch()
                wait_until_there(arrived)
                time.sleep(3.0)

        def load_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing to take up."""

    was_saving = []

    class Watched(BoundedPBT):
        def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
            was_saving.append(trial.is_saving)
            super()._exploit(tune_controller, trial, trial_to_clone)

    pbt = Watched(
        bounds={"value": (0.0, 1.0)},
        **{"time_attr": "training_iteration", "metric": "score", "mode": "max", "perturbation_interval": 2},
        **{"hyperparam_mutations": {"value": [0.0, 1.0]}, "quantile_fraction": 0.5, "synch": True, "log_config": False},
    )
    found = tune.Tuner(
        Meeting,
        param_space={"seed": tune.grid_search([0, 1]), "value": tune.sample_from(lambda spec: spec.config.seed)},
        tune_config=tune.TuneConfig(scheduler=pbt),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            verbose=0,
        ),
    ).fit()
    assert was_saving == [True]
    assert [trial.metrics["training_iteration"] for trial in found] == [4, 4]


def test_a_trial_s_next_actor_waits_until_the_one_before_has_let_go_of_its_folder(tmp_path: Path) -> None:
    former = ExitStack()
    former.enter_context(locked(tmp_path, blocking=False))
    let_go = threading.Event()
    ending = threading.Timer(0.3, lambda: (let_go.set(), former.close()))
    ending.start()
    with _claimed_after_former_actor(tmp_path):
        assert let_go.is_set()
    ending.join()


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_optuna_tries_every_suggestion_with_every_seed(tmp_path: Path) -> None:
    space = {"ppo.lr_start": {"loguniform": [1e-4, 1e-2]}, "ppo.update_epochs": {"randint": [1, 2]}}
    train = {**TRAIN, "iterations": 1}
    result = searched(tmp_path, train=train, space=space, samples=2, algorithm="optuna", stop={"episodes": 4})
    assert len(result.ranking) == 2
    for entry in result.ranking:
        assert [trial.seed for trial in entry.trials] == [0, 1]
        assert entry.complete


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_a_stop_rule_ends_a_trial_that_counts_as_finished_and_one_that_fails_is_named(tmp_path: Path) -> None:
    result = searched(tmp_path, stop={"iteration": 2}, seeds=[0])
    assert [(trial.iterations, trial.status) for trial in result.trials] == [(2, "finished"), (2, "finished")]
    assert all(entry.complete for entry in result.ranking)

    class Blocking(Silent):
        """Puts a file in the place of one trial's run folder."""

        def on_start(self, plan: SearchPlan) -> None:
            (plan.folder / "trials").mkdir()
            (plan.folder / "trials" / "00001_seed0").write_text("in the way")

    file = written(tmp_path, seeds=[0], train={**TRAIN, "iterations": 1})
    failing = run_search(TuneConfig(file=file, out=tmp_path / "second"), Blocking())
    assert [trial.status for trial in failing.trials] == ["finished", "failed"]
    assert "cannot be written" in failing.failed[0].failure
    assert len(failing.ranking) == 1


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_a_trial_finds_data_that_is_named_from_where_the_search_began(tmp_path: Path) -> None:
    write_cifar_archive(tmp_path, cifar_batches())
    few = [
        "host.base_channels=2",
        "data.train_samples=60",
        "decisions.min_germination_epoch=1",
        "decisions.min_plateau=0",
    ]
    train = {**TRAIN, "task": "cifar10", "iterations": 1, "episodes_per_iteration": 1, "data_dir": "."}
    train["set"] = [*few, "decisions.min_plateau=0", "decisions.require_stabilised=false", "lifecycle.training_dwell=1"]
    result = searched(tmp_path, train=train, space={"ppo.clip": {"grid": [0.2]}}, seeds=[0])
    assert [trial.status for trial in result.trials] == ["finished"]
    assert f"data_dir: {tmp_path}\n" in (tmp_path / "out" / "best.yaml").read_text()


@pytest.mark.usefixtures("nothing_left_behind")
def test_trials_and_runs_are_logged_to_mlflow_and_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train = {**TRAIN, "iterations": 1}
    small = [*(f"--{key.replace('_', '-')}={value}" for key, value in train.items() if key != "set")]
    arguments = ["train", *small, "--runners", "2", "--set", *TRAIN["set"], "--out", "run"]
    file = written(tmp_path, seeds=[0], train=train, space={"ppo.lr_start": {"grid": [0.001]}})
    with local_ray(num_cpus=2):
        assert run([*arguments, "--logger", "mlflow", "--logger", "wandb"]) == 0
        assert run(["tune", str(file), "--out", "search", "--logger", "mlflow", "--logger", "wandb"]) == 0
    (logged,) = mlflow.search_runs(experiment_names=["esper-ray"], output_format="list")
    last = rows(Path("run"), "metrics.jsonl")[-1]
    assert logged.data.metrics["score"] == last["score"]
    assert logged.data.metrics["learner/kl"] == pytest.approx(last["learner"]["kl"])
    assert logged.data.params["seed"] == "0"
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    (trial,) = mlflow.search_runs(experiment_names=["esper-ray search"], output_format="list")
    assert "score" in trial.data.metrics

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    capsys.readouterr()
    assert run([*arguments, "--out", "other", "--logger", "wandb"]) == 2
    assert "--logger wandb needs a login" in capsys.readouterr().err


@pytest.mark.usefixtures("session_ray", "own_folder")
def test_a_search_that_does_not_fit_is_refused_with_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, flags, message in (
        ({"train": {**TRAIN, "runners": 5}}, [], "use train.runners 4 at most"),
        ({}, ["--max-concurrent", "5"], "use --max-concurrent 4 at most"),
        ({"train": {**TRAIN, "runners": 4}}, ["--max-concurrent", "2"], "use --max-concurrent 1 at most"),
    ):
        assert run(["tune", str(written(tmp_path, **changes)), "--out", "out", *flags]) == 2  # type: ignore[arg-type]
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not Path("out").exists()


@pytest.mark.usefixtures("no_ray")
def test_trials_share_the_cpus_and_gpus_of_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    cluster.add_node(num_cpus=4, num_gpus=1)
    cluster.add_node(num_cpus=2, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert place_trials(None, None, 4, 32, "cpu") == (Placement(2, 0.9, 0.0), 4)
        assert place_trials(None, None, 100, 32, "cpu") == (Placement(1, 0.9, 0.0), 8)
        assert place_trials(4, None, 100, 32, "cpu") == (Placement(4, 0.9, 0.0), 2)
        assert place_trials(None, 1, 100, 3, "cpu") == (Placement(3, 0.9, 0.0), 1)
        with pytest.raises(PlacementError, match=r"the cluster has 8; use train\.runners 8 at most"):
            place_trials(9, None, 4, 32, "cpu")
        monkeypatch.setattr(placement, "_use_gpus", lambda device, gpus: gpus > 0)
        assert place_trials(None, None, 4, 32, "auto") == (Placement(1, 0.9, 0.5), 4)
    finally:
        ray.shutdown()
        cluster.shutdown()
