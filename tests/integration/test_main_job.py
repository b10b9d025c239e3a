"""The main job from the command line: what it leaves, what only the cluster can refuse, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from finished_runs import EPOCHS, SHORT_RUN, FinishedRuns
from plugin_source import write_plugin
from shared_ray import CPUS

from esper_ray.cli.main import run
from esper_ray.orchestration.fleet.actor_envs import ActorEnv
from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.run_folder import checkpoints_of, iteration_of


@pytest.mark.usefixtures("session_ray")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --runners 4000", "4000 runners do not fit: each needs 1 CPU and the cluster has {cpus} in all"),
        ("train --runners 1 --device cuda", "--device cuda: the cluster has no GPU"),
        ("train --runners 0 --device cuda", "--runners 0 plays in this process, to which Ray gives no GPU"),
        ("plan --runners 4000", "4000 runners do not fit: each needs 1 CPU and the cluster has {cpus} in all"),
        ("train --out /proc/run --runners 0", "cannot be written"),
    ],
)
def test_bad_input_that_only_the_cluster_can_tell_is_no_different(
    arguments: str, message: str, own_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert message.format(cpus=CPUS) in error
    assert list(own_folder.iterdir()) == []


def test_a_run_leaves_everything_that_it_followed_from_and_everything_that_came_of_it(
    finished_runs: FinishedRuns,
) -> None:
    out, printed = finished_runs.folder("trained"), finished_runs.printed("trained")
    assert f"Done after 2 of 2 iterations: 8 episodes, {8 * EPOCHS} host epochs" in printed
    assert "Difference: " in printed
    assert f"Next: tensorboard --logdir {out}" in printed

    config = json.loads((out / "config.json").read_text())
    assert config["task"]["max_epochs"] == EPOCHS
    assert config["runners"] == 2
    assert config["versions"]["ray"] == ray.__version__
    assert config["numerics"]["torch.backends.cudnn.deterministic"] == "True", "as the actors have it"

    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in metrics] == [1, 2]
    assert [row["episodes"] for row in metrics] == [4, 8]
    assert all(sum(row["actions"].values()) == 4 * EPOCHS for row in metrics)
    assert all(row["learner"]["explained_variance"] is not None for row in metrics)
    assert {key for row in metrics for key in row["learner"]} >= {"entropy", "kl", "gradient_norm"}
    assert all(value is not None for value in metrics[0]["learner"].values())

    episodes = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 8
    assert len({episode["episode_seed"] for episode in episodes}) == 8
    assert [(e["iteration"], e["runner"], e["number"]) for e in episodes] == [
        (iteration, runner, number)
        for iteration in (1, 2)
        for runner in (1, 2)
        for number in range(2 * iteration - 2, 2 * iteration)
    ]
    wanted = {"return", "reward_components", "final_val_accuracy", "action_counts", "added_parameters", "seconds"}
    assert all(wanted <= episode.keys() for episode in episodes)
    assert all(len(episode["stages"]) == EPOCHS for episode in episodes)
    assert all(len(episode["per_epoch"]["gradient_norm"]) == EPOCHS for episode in episodes)
    assert metrics[0]["return"] == pytest.approx(sum(e["return"] for e in episodes[:4]) / 4, rel=1e-5)

    assert all(row["actors_lost"] == {"died": 0, "raised": 0, "hung": 0} for row in metrics)

    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"iteration_{number:06d}" for number in range(3)}
    for checkpoint in checkpoints_of(out):
        assert read_manifest(checkpoint).iteration == iteration_of(checkpoint)
        assert json.loads((checkpoint / "learner.json").read_text())["iteration"] == iteration_of(checkpoint)
        assert {path.suffix for path in checkpoint.rglob("*")} == {".json", ".safetensors"}, "nothing that is executed"
    assert list(out.glob("events.out.tfevents.*"))
    assert json.loads((out / "summary.json").read_text())["episodes"] == 8


@pytest.mark.usefixtures("session_ray")
def test_a_run_takes_the_place_of_another_only_when_told_to(
    finished_runs: FinishedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished_runs.copy("trained", tmp_path / "run")
    arguments = [
        "train",
        "--runners",
        "0",
        "--iterations",
        "1",
        "--wait-only-episodes",
        "0",
        "--out",
        str(out),
        *SHORT_RUN,
    ]
    assert run(arguments) == 2
    assert "already holds a run; name another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert run([*arguments, "--overwrite"]) == 0
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 6
    assert len(list(out.glob("events.out.tfevents.*"))) == 1


@pytest.mark.usefixtures("session_ray")
def test_a_run_that_an_error_ended_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, steps = tmp_path / "run", ActorEnv.step_steps

    def failing(self: ActorEnv, action: int) -> Any:
        if self.ticket.number >= 6:
            raise ValueError("the disk is on fire")
        return steps(self, action)

    arguments = [
        "train",
        "--iterations",
        "2",
        "--runners",
        "0",
        "--wait-only-episodes",
        "0",
        "--out",
        str(out),
        *SHORT_RUN,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(ActorEnv, "step_steps", failing)
        assert run(arguments) == 1
    assert "the disk is on fire" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["interrupted"]
    assert run(["train", "--resume", str(out)]) == 0
    assert "Done after 2 of 2 iterations: 12 episodes" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert run(["train", "--resume", str(out)]) == 2
    assert "is over, after all 2 iterations" in capsys.readouterr().err


@pytest.mark.usefixtures("session_ray")
def test_a_plugin_that_a_running_ray_does_not_have_is_refused(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(own_folder)
    name = write_plugin(own_folder)
    assert run(["train", "--plugin", name, "--task", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"esper-ray: inside the actors: plugin '{name}' does not import")
    assert error.count("\n") == 1
