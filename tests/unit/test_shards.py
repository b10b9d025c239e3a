"""The parts into which tests/nightly is divided: every test in one, all of about the same length."""

import json
import runpy
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "nightly" / "conftest.py"
SECONDS = {"test_a.py": 50, "test_b.py": 30, "test_c.py": 20, "test_d.py": 40}


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Files of two tests each, with the durations of all but the last one."""
    pytester.makeconftest(CONFTEST.read_text())
    for name in (*SECONDS, "test_new.py"):
        (pytester.path / name).write_text("def test_one(): pass\ndef test_two(): pass\n")
    (pytester.path / "durations.json").write_text(json.dumps({**SECONDS, "test_gone.py": 1000}))
    return pytester


def files(suite: pytest.Pytester, *arguments: str) -> list[str]:
    """Returns the files whose tests run, in this order, and holds that whole files do."""
    passed, _, _ = suite.inline_run(*arguments).listoutcomes()
    names = [report.nodeid.partition("::")[0] for report in passed]
    assert all(names.count(name) == 2 for name in names)
    return list(dict.fromkeys(names))


def test_every_file_is_in_one_part_and_the_parts_are_about_equal(suite: pytest.Pytester) -> None:
    """A file without a duration counts as the median of those known, here 35 s."""
    parts = [files(suite, "--shard", f"{number}/3") for number in (1, 2, 3)]
    assert parts == [["test_a.py"], ["test_c.py", "test_d.py"], ["test_b.py", "test_new.py"]]
    assert sorted(name for part in parts for name in part) == files(suite)


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/4", ""])
def test_a_part_that_does_not_exist_is_one_line(suite: pytest.Pytester, shard: str) -> None:
    ran = suite.runpytest_inprocess(f"--shard={shard}")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in ran.errlines if line]
    assert line == f"ERROR: --shard {shard}: expected K/N with K from 1 to N, as in --shard 1/4"


def test_durations_are_measured_and_kept(suite: pytest.Pytester) -> None:
    suite.runpytest_inprocess("--store-durations", "test_a.py", "test_new.py").assert_outcomes(passed=4)
    durations = json.loads((suite.path / "durations.json").read_text())
    assert durations.keys() == {*SECONDS, "test_new.py"}
    assert durations["test_a.py"] < 10 and durations["test_new.py"] < 10
    assert durations["test_b.py"] == SECONDS["test_b.py"]


def test_every_nightly_file_has_a_duration() -> None:
    durations = json.loads((CONFTEST.parent / "durations.json").read_text())
    assert durations.keys() == {path.name for path in CONFTEST.parent.glob("test_*.py")}


def test_the_four_parts_are_of_about_equal_length() -> None:
    durations = json.loads((CONFTEST.parent / "durations.json").read_text())
    parts = runpy.run_path(str(CONFTEST))["divided"](durations, 4)
    lengths = [sum(durations[name] for name in part) for part in parts]
    assert max(lengths) < 1.2 * min(lengths)
