"""Output folders belong to one command from its start: a second one is refused before anything slow."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from esper_ray.errors import RunFolderError
from esper_ray.orchestration.run.claims import claimed, claimed_again, claimed_run
from esper_ray.orchestration.run.run_folder import RunFolder


def test_a_second_claim_of_a_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with claimed_run(tmp_path / "run", "digits", overwrite=False) as folder:
        for overwrite in (False, True):
            with (
                pytest.raises(RunFolderError, match=r"^another command writes to \S+/run; wait for it.*--out$"),
                claimed_run(folder, "digits", overwrite),
            ):
                pass


def test_a_run_that_ended_while_another_one_began_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one looks at the folder before the first one claims it, and claims it after the first one's end."""
    from esper_ray.orchestration.run import claims

    out, claim = tmp_path / "run", claims.claimed

    def claimed_late(folder: Path) -> Any:
        with claim(folder), RunFolder(folder, {"first": True}):
            pass
        return claim(folder)

    monkeypatch.setattr(claims, "claimed", claimed_late)
    with pytest.raises(RunFolderError, match="already holds a run"), claimed_run(out, "digits", overwrite=False):
        pass
    assert (out / "config.json").read_text() == '{\n  "first": true\n}\n'


def test_a_claim_under_which_nothing_is_written_leaves_no_folder(tmp_path: Path) -> None:
    with claimed(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with claimed(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir(), "it was there before"
    with claimed(tmp_path / "b"):
        (tmp_path / "b" / "file").touch()
    assert (tmp_path / "b" / "file").exists()


def test_runs_that_begin_in_the_same_second_without_a_name_get_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        claimed_run(None, "digits", overwrite=False) as first,
        claimed_run(None, "digits", overwrite=False) as second,
        claimed_run(None, "digits", overwrite=False) as third,
    ):
        assert len({first, second, third}) == 3
        assert {folder.parent for folder in (first, second, third)} == {Path("runs")}


def _claim_and_wait(folder: Path) -> None:
    with claimed(folder):
        (folder.parent / "claimed").touch()
        time.sleep(60)


def test_the_claim_of_a_killed_process_is_void(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_claim_and_wait, args=(tmp_path / "run",))
    process.start()
    give_up = time.monotonic() + 30
    while not (tmp_path / "claimed").exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert process.pid is not None
    with pytest.raises(RunFolderError, match="another command writes"), claimed(tmp_path / "run"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claimed_run(tmp_path / "run", "digits", overwrite=False):
        pass


def test_a_run_that_one_process_goes_on_with_is_refused_to_others(tmp_path: Path) -> None:
    refused = pytest.raises(RunFolderError, match="goes on in another process")
    with claimed_again(tmp_path), refused, claimed_again(tmp_path):
        pass
    with claimed(tmp_path), refused, claimed_again(tmp_path):
        pass
    with claimed_again(tmp_path), pytest.raises(RunFolderError, match="another command writes"), claimed(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"), claimed(tmp_path / "file" / "run"):
        pass
