"""The page about searches: its commands run as they stand, and the quick search is quick."""

import time
from pathlib import Path

import pytest
from pages import blocks, run_in

_SECONDS_OF_QUICK_SEARCH = 600
"""The page promises four minutes on two cores that have nothing else to do."""


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nothing_left_behind")
def test_the_commands_of_the_search_page_run_and_the_quick_search_is_quick(tmp_path: Path) -> None:
    search, train, resume = blocks("search.md", "sh")
    started = time.monotonic()
    assert "Done: 6 finished" in run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", search])
    assert time.monotonic() - started < _SECONDS_OF_QUICK_SEARCH
    assert "Done after 1 of 1 iterations" in run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", train])
    trials = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/tune-quick/trials/*/episodes.jsonl")}
    assert len(trials) == 6
    assert "Done: 6 finished" in run_in(tmp_path, ["bash", "-euo", "pipefail", "-c", resume])
    assert {path: path.stat().st_mtime_ns for path in trials} == trials
