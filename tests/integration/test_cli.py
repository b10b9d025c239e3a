"""The command line as a user meets it: bad input, the main job, Ctrl-C; and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from esper_ray.cli.main import _parse, run
from esper_ray.lifecycle import SeedStage
from esper_ray.orchestration.config import TasksConfig, TrainConfig
from esper_ray.orchestration.fleet.actor_envs import ActorEnv
from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.run_folder import checkpoints_of, iteration_of

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

SMALL = [
    "--set",
    *("data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"),
    *("--max-epochs", "12", "--episodes-per-iteration", "6", "--ppo.minibatch-size", "32"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --task digit", "unknown task 'digit': did you mean 'digits'?"),
        ("train --task chess", "unknown task 'chess': expected one of"),
        ("train --runers 2", "unknown flag '--runers': did you mean '--runners'?"),
        ("trian", "unknown command 'trian': did you mean 'train'?"),
        ("tasks digitz", "unknown task 'digitz': did you mean 'digits'?"),
        ("train --runners -1", "--runners: input should be greater than or equal to 0, got -1"),
        ("train --runners two", "--runners"),
        ("train --iterations 0", "--iterations: input should be greater than or equal to 1, got 0"),
        ("train --ppo.clip -1", "--ppo.clip: input should be greater than 0, got -1.0"),
        ("train --device tpu", "Expected one of ('auto', 'cpu', 'cuda')"),
        ("train --set lifecycle.blending_step=3", "did you mean 'lifecycle.blending_steps'?"),
        ("train --set lifecycle.blending_steps=0", "greater than or equal to 1"),
        ("train --set lifecycle.blending_steps", "--set expects KEY=VALUE"),
        ("train --set lifecycle.blending_steps=[", "is not a value"),
        ("train --set host.slot=block1post", "did you mean 'block1_post'?"),
        ("train --set host.blocks=4", "needs at least 16×16; the image has 8×8"),
        (
            "train --reward gian",
            "reward.mode='gian': Input should be 'contribution', 'gain', 'loss', 'sparse' or 'paired'",
        ),
        ("train --host-pool 0", "--host-pool: input should be greater than or equal to 1, got 0"),
        ("train --evaluate-every -1", "--evaluate-every: input should be greater than or equal to 0, got -1"),
        ("train --host-variety --set variety.options.bloks=[1]", "did you mean 'blocks'?"),
        ("train --host-variety --set variety.options.blocks=[1,4]", "needs at least 16×16; the image has 8×8"),
        ("train --set variety.lr_factor=[2,1]", "variety.lr_factor must be (lowest, highest)"),
        ("train --task pydoc --set data.label_noise=0.1", "label noise is for labelled samples"),
        ("evaluate nowhere", "nowhere is no checkpoint: there is no such folder"),
        ("evaluat x", "did you mean 'evaluate'?"),
        ("train --max-epochs 9", "no seed can reach PROBATIONARY in time"),
        ("train --task cifar10", "put cifar-10-python.tar.gz"),
        ("train --data-dir .", "digits comes with an installed package"),
        ("train --task fashion_mnist --data-dir nowhere", "looked for train-images-idx3-ubyte.gz"),
        ("train --config nowhere.yaml", "cannot be read: No such file"),
        ("train --out /dev/null", "is not a folder"),
        ("train --learner appo --runners 0", "learner appo learns while actors play: it needs 1 runner at least"),
        ("train --learner appo --skip-forced-waits", "learner appo needs episodes of equal length"),
        ("train --address here", "--address here: expected HOST:PORT or auto"),
        ("train --address 127.0.0.1:9", "--address 127.0.0.1:9: no Ray cluster answers there"),
        ("train --from-checkpoint nowhere", "nowhere is no checkpoint: there is no such folder"),
        ("train --resume nowhere", "nowhere holds no run: config.json cannot be read"),
        ("train --resume nowhere --iterations 3", "leave out --iterations with --resume"),
        ("plan --runners two", "--runners"),
        ("train --out /dev/null/run", "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("esper-ray: ")
    assert message in output.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --runners 4000", "4000 runners do not fit: each needs 1 CPU and the cluster has {cpus} in all"),
        ("train --runners 1 --device cuda", "--device cuda: the cluster has no GPU"),
        ("train --runners 0 --device cuda", "--runners 0 plays in this process, to which Ray gives no GPU"),
        ("plan --runners 4000", "4000 runners do not fit: each needs 1 CPU and the cluster has {cpus} in all"),
        ("train --out /proc/run", "cannot be written"),
    ],
)
def test_bad_input_that_only_the_cluster_can_tell_is_no_different(
    arguments: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert message.format(cpus=os.cpu_count()) in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iterashuns: 3", "unknown key 'iterashuns': did you mean 'iterations'?"),
        ("ppo: {clipp: 0.1}", "unknown key 'ppo.clipp': did you mean 'ppo.clip'?"),
        ("iterations: many", "iterations: Input should be a valid integer"),
        ("- 3", "expected settings as KEY: VALUE"),
        ("[", "is not YAML"),
    ],
)
def test_a_wrong_configuration_file_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert run(["train", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_flags_override_the_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task: chess\nmax_epochs: 5")
    assert run(["train", f"--config={path}", "--task", "digits"]) == 2
    assert "no seed can reach PROBATIONARY" in capsys.readouterr().err


def test_a_flag_with_several_values_may_be_repeated_and_takes_nothing_that_is_not_its_own() -> None:
    arguments = "train --set a=1 --plugin x --seed 3 --set b=2 c=3 --plugin=y.z --set=d=4"
    config = _parse(arguments.split())
    assert isinstance(config, TrainConfig)
    assert (config.set, config.plugin, config.seed) == (("a=1", "b=2", "c=3", "d=4"), ("x", "y.z"), 3)
    tasks = _parse(["tasks", "--plugin", "x", "photos"])
    assert isinstance(tasks, TasksConfig)
    assert (tasks.name, tasks.plugin) == ("photos", ("x",))


def test_an_error_in_a_process_of_its_own_shows_no_traceback() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "esper_ray.cli.main", "train", "--task", "digit"], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "esper-ray: unknown task 'digit': did you mean 'digits'?\n"


@pytest.mark.parametrize(
    ("arguments", "unneeded"), [("--help", {"pydantic"}), ("train --help", set()), ("tasks -h", set())]
)
def test_help_needs_neither_torch_nor_ray(arguments: str, unneeded: set[str]) -> None:
    code = (
        "import sys; from esper_ray.cli.main import run\n"
        "try: run(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, check=True
    )
    help_text, _, modules = answer.stdout.rstrip().rpartition("\n")
    assert "usage: esper-ray" in help_text
    assert not {"torch", "ray", "gymnasium", "numpy", *unneeded} & set(modules.split())


def test_tasks_lists_every_task_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in ("digits", "fashion_mnist", "cifar10"))
    assert run(["tasks", "digits"]) == 0
    one = capsys.readouterr().out
    assert all(name in one for name in ("lifecycle.blending_steps", "GERMINATE_CONV_HEAVY", "block1_post"))


def test_a_run_leaves_everything_that_it_followed_from_and_everything_that_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--iterations", "2", "--runners", "2", "--wait-only-episodes", "3", "--out", str(out), *SMALL]
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "Done after 2 of 2 iterations: 12 episodes, 144 host epochs" in printed
    assert "Difference: " in printed
    assert f"Next: tensorboard --logdir {out}" in printed

    config = json.loads((out / "config.json").read_text())
    assert config["task"]["max_epochs"] == 12
    assert config["runners"] == 2
    assert config["versions"]["ray"] == ray.__version__

    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in metrics] == [1, 2]
    assert [row["episodes"] for row in metrics] == [6, 12]
    assert all(sum(row["actions"].values()) == 6 * 12 for row in metrics)
    assert all(row["learner"]["explained_variance"] is not None for row in metrics)
    assert {key for row in metrics for key in row["learner"]} >= {"entropy", "kl", "gradient_norm"}
    assert all(value is not None for value in metrics[0]["learner"].values())

    episodes = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 12
    assert len({episode["episode_seed"] for episode in episodes}) == 12
    assert [(e["iteration"], e["runner"], e["number"]) for e in episodes] == [
        (iteration, runner, number)
        for iteration in (1, 2)
        for runner in (1, 2)
        for number in range(3 * iteration - 3, 3 * iteration)
    ]
    wanted = {"return", "reward_components", "final_val_accuracy", "action_counts", "added_parameters", "seconds"}
    assert all(wanted <= episode.keys() for episode in episodes)
    assert all(len(episode["stages"]) == 12 for episode in episodes)
    assert all(len(episode["per_epoch"]["gradient_norm"]) == 12 for episode in episodes)
    assert metrics[0]["return"] == pytest.approx(sum(e["return"] for e in episodes[:6]) / 6, rel=1e-5)

    assert all(row["actors_lost"] == {"died": 0, "raised": 0, "hung": 0} for row in metrics)

    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"iteration_{number:06d}" for number in range(3)}
    for checkpoint in checkpoints_of(out):
        assert read_manifest(checkpoint).iteration == iteration_of(checkpoint)
        assert json.loads((checkpoint / "learner.json").read_text())["iteration"] == iteration_of(checkpoint)
        assert {path.suffix for path in checkpoint.rglob("*")} == {".json", ".safetensors"}, "nothing that is executed"
    assert list(out.glob("events.out.tfevents.*"))
    assert json.loads((out / "summary.json").read_text())["episodes"] == 12

    assert run(arguments) == 2
    assert "already holds a run; name another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert run([*arguments, "--iterations", "1", "--overwrite"]) == 0
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 6
    assert len(list(out.glob("events.out.tfevents.*"))) == 1


def test_a_folder_with_other_things_in_it_is_never_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(["train", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_a_checkpoint(tmp_path: Path, end: signal.Signals) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "esper_ray.cli.main", "train", "--iterations", "5000", "--out", str(out), *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("iteration   2"):
            break
    process.send_signal(end)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    assert "Interrupted after " in printed
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    *_, checkpoint = checkpoints_of(out)
    assert checkpoint.name == f"iteration_{rows[-1]['iteration']:06d}"
    assert read_manifest(checkpoint).iteration == rows[-1]["iteration"]
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 6 * len(rows)


def test_a_run_that_an_error_ended_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, steps = tmp_path / "run", ActorEnv.step_steps

    def failing(self: ActorEnv, action: int) -> Any:
        if self.ticket.number >= 6:
            raise ValueError("the disk is on fire")
        return steps(self, action)

    arguments = ["train", "--iterations", "2", "--runners", "0", "--wait-only-episodes", "0", "--out", str(out), *SMALL]
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


@pytest.mark.slow
def test_growing_pays_on_real_digits(tmp_path: Path) -> None:
    """Even early on, the default task leaves wait-only hosts behind, and seeds travel the whole lifecycle."""
    out = tmp_path / "run"
    few = ["--episodes-per-iteration", "16", "--wait-only-episodes", "8"]
    assert run(["train", "--iterations", "6", *few, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    difference, error = summary["difference"]
    assert difference > 3 * error
    journey = [stage.name for stage in SeedStage if SeedStage.GERMINATED <= stage <= SeedStage.CULLED]
    stages = {
        stage for line in (out / "episodes.jsonl").read_text().splitlines() for stage in json.loads(line)["stages"]
    }
    assert stages >= set(journey)


def test_tables_in_a_file_or_a_pipe_have_room_for_long_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "digits"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) > 120
