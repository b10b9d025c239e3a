"""`--shard K/N` runs one of N parts of about equal length, and `--store-durations` measures what that follows from."""

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DURATIONS = HERE / "durations.json"
"""Seconds that each file of tests takes on two idle cores."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nightly")
    group.addoption("--shard", metavar="K/N", help="run the K-th of N parts of tests/nightly, of about equal length")
    group.addoption("--store-durations", action="store_true", help="write down how long each file of tests took")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """One test at a time unless `-n` was given: some look at seconds or memory, most have several processes."""
    if not any(str(argument).startswith(("-n", "--numprocesses")) for argument in config.invocation_params.args):
        config.option.numprocesses, config.option.dist = 0, "no"


def pytest_configure(config: pytest.Config) -> None:
    if (shard := config.getoption("shard")) is not None:
        config.pluginmanager.register(Shard(*parsed(shard)))
    if config.getoption("store_durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


def parsed(shard: str) -> tuple[int, int]:
    """Returns K and N of "K/N"."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise pytest.UsageError(f"--shard {shard}: expected K/N with K from 1 to N, as in --shard 1/4")
    return number, count


def stored() -> dict[str, float]:
    durations: dict[str, float] = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    return durations


def divided(durations: Mapping[str, float], count: int) -> list[set[str]]:
    """Shares files out: the longest first, each to the part that is the shortest so far."""
    parts: list[set[str]] = [set() for _ in range(count)]
    lengths = [0.0] * count
    for name in sorted(durations, key=lambda name: (-durations[name], name)):
        shortest = lengths.index(min(lengths))
        parts[shortest].add(name)
        lengths[shortest] += durations[name]
    return parts


class Shard:
    """Leaves out the files of the other parts; whole files, since the tests of one share a cluster or a run."""

    def __init__(self, number: int, count: int) -> None:
        names = {path.name for path in HERE.glob("test_*.py")}
        known = {name: seconds for name, seconds in stored().items() if name in names}
        durations = dict.fromkeys(names, statistics.median(known.values()) if known else 1.0) | known
        self._files = divided(durations, count)[number - 1]

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept, others = [], []
        for item in items:
            is_other = item.path.parent == HERE and item.path.name not in self._files
            (others if is_other else kept).append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=others)


class Stopwatch:
    """Writes down how long each file took, and keeps what is known of the others."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[Path(report.nodeid.partition("::")[0]).name] += report.duration

    def pytest_sessionfinish(self) -> None:
        there = {path.name for path in HERE.glob("test_*.py")}
        measured = {name: round(seconds, 1) for name, seconds in self._seconds.items()}
        durations = {name: seconds for name, seconds in {**stored(), **measured}.items() if name in there}
        DURATIONS.write_text(json.dumps(durations, indent=2, sort_keys=True) + "\n")
