"""What others install: a wheel, in an environment of its own, far from the checkout."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from driver import whole_rows

ROOT = Path(__file__).parents[2]
SOURCES = ("esper_ray", "tune_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building leaves folders beside the sources."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, copy]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel; what it depends on is taken from this environment."""
    environment = tmp_path_factory.mktemp("fresh") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", "--ignore-installed", wheel], check=True)
    return environment / "bin"


def run(programs: Path, folder: Path, *command: str) -> str:
    """Runs a program of the environment in a folder that has nothing of the checkout; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program, *arguments = command
    done = subprocess.run(
        [programs / program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_what_is_not_python_and_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    shipped = {f"esper_ray/tune_configs/{path.name}" for path in (ROOT / "tune_configs").glob("*.yaml")}
    pages = {f"esper_ray/report/page.{ending}" for ending in ("css", "js", "html.jinja")}
    assert (
        shipped | pages | {"esper_ray/py.typed", "esper_ray/export/template.py.txt", "esper_ray/__main__.py"} <= names
    )
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "tune_configs"))]
    assert "Classifier: Typing :: Typed" in text
    assert "License-Expression: MIT" in text


def test_what_is_imported_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import esper_ray; print(esper_ray.__file__)").strip()
    assert Path(where).is_relative_to(installed.parent)
    assert run(installed, tmp_path, "esper-ray", "--version").startswith("esper-ray ")
    assert run(installed, tmp_path, "python", "-m", "esper_ray", "--version").startswith("esper-ray ")


def test_the_main_job_runs_from_the_wheel_with_a_shipped_file_by_name(installed: Path, tmp_path: Path) -> None:
    printed = run(installed, tmp_path, "esper-ray", "train", "--config", "digits", "--iterations", "1", "--out", "run")
    assert "Done after 1 of 1 iterations: 32 episodes" in printed
    assert "Next: esper-ray compare run/checkpoints/iteration_000001" in printed
    assert len(whole_rows(tmp_path / "run" / "episodes.jsonl")) == 32
    run(installed, tmp_path, "esper-ray", "report", "run")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_shipped_search_begins_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed / "esper-ray", "tune", "quick", "--max-concurrent", "1"]
    search = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert search.stdout is not None
    plan, trial = search.stdout.readline(), search.stdout.readline()
    search.send_signal(signal.SIGINT)
    rest, _ = search.communicate(timeout=250)
    assert "3 settings × 2 seeds = 6 trials" in plan
    assert "running" in trial
    assert search.returncode == 130
    assert "Next: esper-ray tune quick --out runs/tune-quick --resume" in rest
