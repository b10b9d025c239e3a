"""The page about searches: its commands run as they stand, and a search that goes on plays nothing twice."""

from pathlib import Path

import pytest
from pages import blocks, run_in


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("nothing_left_behind")
def test_the_commands_of_the_search_page_run(tmp_path: Path) -> None:
    search, train, resume = blocks("search.md", "sh")
    assert "Done: 6 finished" in run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", search])
    assert "Done after 1 of 1 iterations" in run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", train])
    trials = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/tune-quick/trials/*/episodes.jsonl")}
    assert len(trials) == 6
    assert "Done: 6 finished" in run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", resume])
    assert {path: path.stat().st_mtime_ns for path in trials} == trials
