"""Puts the faults of mutations.yaml into a copy of the last commit, one at a time, and says which test notices.

A fault counts as noticed by a test that fails with it and passes without it. Prints a row of a table as each is done.

    python tests/mutations.py [--tiers unit,integration,nightly] [--quick] [NUMBER ...]
"""

import argparse
import importlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TIERS = ("unit", "integration", "nightly")
LIBRARIES = (
    "hypothesis",
    "pandas",
    "pyarrow",
    "ray.rllib.algorithms.appo",
    "ray.tune",
    "scipy.stats",
    "sklearn",
    "tyro",
)
"""Imported once, since that takes longer than most tests."""
_SECONDS = 3600
"""After which a run of tests counts as hanging, and its fault as noticed."""


@dataclass(frozen=True)
class Mutation:
    """A fault, see mutations.yaml."""

    breaks: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, root: Path) -> None:
        """Puts the fault into the source below `root`."""
        path = root / "esper_ray" / self.file
        source = path.read_text()
        assert source.count(self.old) == 1, f"{self.file} holds this {source.count(self.old)} times: {self.old!r}"
        path.write_text(source.replace(self.old, self.new))


def all_mutations() -> list[Mutation]:
    """Returns the faults in their order."""
    return [Mutation(**entry) for entry in yaml.safe_load((ROOT / "tests" / "mutations.yaml").read_text())]


@contextmanager
def copied_tree() -> Iterator[Path]:
    """Yields a folder with the files of the last commit."""
    with tempfile.TemporaryDirectory(prefix="mutations-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(copy)], check=True, capture_output=True)
        try:
            yield copy
        finally:
            subprocess.run([*git, "remove", "--force", str(copy)], check=True, capture_output=True)


def first_failure(copy: Path, tests: str, but: Sequence[str] = ()) -> str | None:
    """Runs tests, but some, up to the first that fails; returns its name, or None if none does."""
    workers = "2" if tests == "tests/unit" else "0"
    options = ["-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-n", workers]
    options += [option for test in but for option in ("--deselect", test)]
    with tempfile.TemporaryFile("w+") as printed:
        process = multiprocessing.get_context("fork").Process(
            target=_run_pytest, args=(copy, [*options, tests], printed)
        )
        process.start()
        try:
            process.join(_SECONDS)
        finally:
            if hangs := process.is_alive():
                assert process.pid is not None
                os.killpg(process.pid, signal.SIGKILL)
        if hangs:
            return "(hangs)"
        if process.exitcode == 0:
            return None
        printed.seek(0)
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", printed.read(), re.MULTILINE)
    return named[1].partition("[")[0] if named else f"(exit code {process.exitcode})"


def _run_pytest(copy: Path, arguments: Sequence[str], printed: TextIO) -> NoReturn:
    """Runs pytest in this process, which has the libraries from its parent, and nothing of esper_ray."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    sys.exit(int(pytest.main(list(arguments))))


class Hunt:
    """Looks for the test that notices a fault."""

    def __init__(self, copy: Path, tiers: Sequence[str], quick: bool) -> None:
        self._copy = copy
        self._tiers = tiers
        self._quick = quick
        self._passes: dict[str, bool] = {}

    def noticed_by(self, mutation: Mutation) -> str | None:
        """Returns the first test that fails with the fault and passes without it; None if none does."""
        likely = [f"tests/{mutation.tests}"] if mutation.tests.partition("/")[0] in self._tiers else []
        for tests in likely if self._quick else [*likely, *(f"tests/{tier}" for tier in self._tiers)]:
            while (failed := self._fails_with(mutation, tests)) is not None:
                if self._passes_without(failed):
                    return failed
        return None

    def _fails_with(self, mutation: Mutation, tests: str) -> str | None:
        mutation.apply(self._copy)
        try:
            return first_failure(self._copy, tests, [test for test, passes in self._passes.items() if not passes])
        finally:
            subprocess.run(["git", "-C", str(self._copy), "checkout", "-q", "."], check=True)

    def _passes_without(self, test: str) -> bool:
        if test.startswith("("):
            return True
        if test not in self._passes:
            self._passes[test] = first_failure(self._copy, test) is None
            if not self._passes[test]:
                print(f"{test} fails without any fault, too", file=sys.stderr)
        return self._passes[test]


def main() -> None:
    """Prints the table, and how many were noticed by which tier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiers", default="unit,integration", help="folders of tests, in this order")
    parser.add_argument("--quick", action="store_true", help="only the file of tests that is tried first")
    parser.add_argument("numbers", type=int, nargs="*", help="only these faults")
    asked = parser.parse_args()
    tiers = asked.tiers.split(",")
    if not set(tiers) <= set(TIERS):
        parser.error(f"--tiers {asked.tiers}: expected some of {','.join(TIERS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in LIBRARIES:
        importlib.import_module(name)
    found: Counter[str] = Counter()
    print("| no. | what the fault breaks | tier | test | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    with copied_tree() as copy:
        hunt = Hunt(copy, tiers, asked.quick)
        for number, mutation in enumerate(all_mutations(), start=1):
            if asked.numbers and number not in asked.numbers:
                continue
            started = time.monotonic()
            test = hunt.noticed_by(mutation)
            tier = test.split("/")[1] if test is not None and "/" in test else "" if test else "none"
            found[tier] += 1
            cells = number, mutation.breaks, tier, (test or "").rpartition("/")[2], f"{time.monotonic() - started:.0f}"
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print("\n" + ", ".join(f"{tier or 'no test by name'}: {count}" for tier, count in found.items()))


if __name__ == "__main__":
    main()
