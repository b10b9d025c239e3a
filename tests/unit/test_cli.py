"""The command line as a user meets it: bad input, help and tables; nothing that needs Ray."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esper_ray.cli.main import _parse, main, run
from esper_ray.orchestration.config import TasksConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("no_ray", "own_folder")


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
        ("train --episodes-per-iteration 0", "--episodes-per-iteration: input should be greater than or equal to 1"),
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
            "reward.mode='gian' of TaskSpec: Input should be 'contribution', 'gain', 'loss', 'sparse' or 'paired'",
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


@pytest.mark.parametrize(("asked", "code"), [(15, 15), (None, 0), (0, 0), ("stopped", 1)])
def test_who_is_told_to_end_does_not_say_that_all_is_done(
    asked: Any, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray's handler of SIGTERM does between the start of Ray and the run."""

    def end(_: object) -> int:
        raise SystemExit(asked)

    monkeypatch.setattr("esper_ray.cli.main._parse", end)
    monkeypatch.setattr("esper_ray.cli.main.make_output_lasting", lambda: None)
    monkeypatch.setattr(sys, "argv", ["esper-ray", "train"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code


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


def test_a_folder_with_other_things_in_it_is_never_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(["train", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_tables_in_a_file_or_a_pipe_have_room_for_long_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "digits"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) > 120
