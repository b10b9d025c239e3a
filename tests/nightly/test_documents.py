"""The pages that show how to use it: every command and program in them is run as it stands."""

import sys
from pathlib import Path

import pytest
from pages import blocks, run_in


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nothing_left_behind")
def test_the_commands_of_the_getting_started_page_run(tmp_path: Path) -> None:
    commands = blocks("getting_started.md", "sh")
    printed = [run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", block]) for block in commands]
    assert len(printed) == 6
    assert "Done after 4 of 4 iterations: 64 episodes" in printed[0]
    assert printed[4].startswith("Episode 64 of runs/first: all 25 epochs as recorded, to the last digit")
    page = (tmp_path / "runs" / "first" / "report.html").read_text()
    assert "held-out hosts" in page
    assert (tmp_path / "runs" / "second" / "summary.json").exists()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nothing_left_behind")
def test_the_commands_of_the_fleet_page_run(tmp_path: Path) -> None:
    plan, trained = [run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", block]) for block in blocks("fleet.md", "sh")]
    assert "An iteration of 16 episodes: " in plan
    assert "Done after 2 of 2 iterations" in trained
    assert "Done after 1 of 1 iterations" in trained


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nothing_left_behind")
def test_the_plugin_of_the_plugins_page_can_be_trained_and_compared(tmp_path: Path) -> None:
    (program,) = blocks("plugins.md", "python")
    (commands,) = blocks("plugins.md", "sh")
    (tmp_path / "wine.py").write_text(program)
    printed = run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", commands])
    assert "GERMINATE_WIDE" in printed
    assert "Done after 2 of 2 iterations" in printed
    assert (tmp_path / "runs/wine/held_out/iteration_000002/comparison.json").exists()


def test_the_program_of_the_readme_runs(tmp_path: Path) -> None:
    (program,) = blocks("../README.md", "python")
    assert 0 < float(run_in(tmp_path, [sys.executable, "-c", program])) <= 100


def test_the_programs_of_the_decision_problem_page_run(tmp_path: Path) -> None:
    for program in blocks("decision_problem.md", "python"):
        assert run_in(tmp_path, [sys.executable, "-c", program])


@pytest.mark.usefixtures("nothing_left_behind")
def test_the_program_of_the_notebooks_page_runs(tmp_path: Path) -> None:
    (program,) = blocks("notebooks.md", "python")
    printed = run_in(tmp_path, [sys.executable, "-c", program])
    assert "report.html" in printed
    assert "score of record" in printed
