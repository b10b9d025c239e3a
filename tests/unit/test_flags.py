"""Flags as a user gives them: lists, shipped files by name, the flags before any command."""

import subprocess
import sys
from pathlib import Path

import pytest

from esper_ray import __version__
from esper_ray.cli.main import _parse, run
from esper_ray.orchestration.config import CompareConfig, EvaluateConfig, TasksConfig, TrainConfig
from esper_ray.orchestration.config_files import shipped_files
from esper_ray.orchestration.tuning.search_file import load_search


@pytest.mark.parametrize(
    "arguments",
    ["--plugin a b", "--plugin a --plugin b", "--plugin=a --plugin b", "--plugin a,b", "--plugin=a,b"],
)
@pytest.mark.parametrize(
    "command", ["train", "plan", "heuristic", "tasks digits", "evaluate x", "replay x --episode 1"]
)
def test_every_list_flag_takes_several_values_and_may_be_repeated(command: str, arguments: str) -> None:
    assert _parse([*command.split(), *arguments.split()]).plugin == ("a", "b")  # type: ignore[attr-defined]


def test_the_other_list_flags_follow_the_same_rule() -> None:
    config = _parse(
        ["train", "--logger", "wandb", "mlflow", "--set", "a=[1,2]", "b=2", "--ppo.hidden", "8", "16", "--set", "c=3"]
    )
    assert isinstance(config, TrainConfig)
    assert (config.logger, config.ppo.hidden) == (("wandb", "mlflow"), (8, 16))
    assert config.set == ("a=[1,2]", "b=2", "c=3"), "values of --set may hold commas"
    for rounds in ("4 8", "4,8", "4, 8"):
        compared = _parse(
            ["compare", "x", "y", "--controls", "wait,random", "heuristic", "--search-rounds", *rounds.split()]
        )
        assert isinstance(compared, CompareConfig)
        assert compared.checkpoints == (Path("x"), Path("y"))
        assert compared.control_names() == ("wait", "random", "heuristic")
        assert compared.search_host_counts() == (4, 8)
    assert CompareConfig(checkpoints=(Path("x"),), controls="wait, random").controls == ("wait", "random")  # type: ignore[arg-type]


def test_what_a_command_is_about_may_stand_last() -> None:
    evaluated = _parse(["evaluate", "--greedy", "--episodes", "3", "--plugin", "a", "b", "x"])
    assert isinstance(evaluated, EvaluateConfig)
    assert (evaluated.checkpoint, evaluated.plugin, evaluated.greedy) == (Path("x"), ("a", "b"), True)
    assert _parse(["evaluate", "--plugin", "a", "--episodes", "3", "x"]).checkpoint == Path("x")  # type: ignore[attr-defined]
    assert _parse(["tasks", "--plugin=a", "x"]).name == "x"  # type: ignore[attr-defined]
    assert _parse(["tasks", "--plugin", "a"]).name is None  # type: ignore[attr-defined]
    for plugins in (["a"], ["a", "b"]):
        tasks = _parse(["tasks", "--plugin", *plugins, "x"])
        assert isinstance(tasks, TasksConfig)
        assert (tasks.name, tasks.plugin) == ("x", tuple(plugins))
    compared = _parse(["compare", "--controls", "wait", "random", "x"])
    assert isinstance(compared, CompareConfig)
    assert (compared.checkpoints, compared.controls) == ((Path("x"),), ("wait", "random"))


def test_a_list_without_a_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ("train --plugin", "train --set --seed 3", "compare x --controls --episodes 3"):
        assert run(arguments.split()) == 2
        assert "expects a value" in capsys.readouterr().err


def test_shipped_files_go_by_name_and_a_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    for name, file in shipped_files().items():
        if "\nspace:" in file.read_text():
            assert load_search(Path(name)) == load_search(file)
        else:
            config = _parse(["train", "--config", name])
            assert isinstance(config, TrainConfig)
            assert config == _parse(["train", f"--config={file}"])
            assert config.config == file, "the run records the file"
    (tmp_path / "varied").write_text("seed: 77")
    assert _parse(["train", "--config", "varied"]).seed == 77  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", ["train --config varid", "plan --config=varid", "tune varid"])
def test_an_unknown_name_is_answered_with_the_shipped_ones(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments.split()) == 2
    error = capsys.readouterr().err
    assert "varid is neither a file nor a shipped one: digits, fashion_mnist, " in error
    assert error.count("\n") == 1


def test_help_names_the_shipped_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    searches = [name for name, file in shipped_files().items() if "\nspace:" in file.read_text()]
    settings = [name for name in shipped_files() if name not in searches]
    for command, names in (("train", settings), ("plan", settings), ("tune", searches)):
        with pytest.raises(SystemExit):
            run([command, "--help"])
        assert f"the name of a shipped one: {', '.join(names)}." in " ".join(capsys.readouterr().out.split())


def test_the_version_and_unknown_flags_before_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"esper-ray {__version__}\n"
    assert run(["--verson"]) == 2
    assert "unknown flag '--verson': did you mean '--version'?" in capsys.readouterr().err
    assert run(["--print-completion", "fish"]) == 2
    assert "--print-completion expects bash or zsh, got 'fish'" in capsys.readouterr().err


def test_the_module_runs_and_bash_completes_commands_and_flags(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    with script.open("w") as file:
        subprocess.run([sys.executable, "-m", "esper_ray", "--print-completion", "bash"], stdout=file, check=True)
    asked = (
        'source "$0"; f=$(complete -p esper-ray | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
        'for words in "esper-ray comp" "esper-ray train --host-v"; do COMP_WORDS=($words); '
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$words; COMP_POINT=${#words}; $f; "
        'echo "${COMPREPLY[@]}"; done'
    )
    done = subprocess.run(["bash", "-c", asked, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["compare", "--host-variety"], done.stderr
    for_zsh = subprocess.run(
        [sys.executable, "-m", "esper_ray", "--print-completion", "zsh"], capture_output=True, text=True, check=True
    )
    assert for_zsh.stdout.startswith("#compdef esper-ray") and "--host-variety" in for_zsh.stdout
