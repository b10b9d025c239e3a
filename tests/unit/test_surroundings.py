"""Machines that lack something: programs, a home, a short temporary folder, permissions."""

import os
import stat
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from esper_ray.cli import report
from esper_ray.cli.main import run
from esper_ray.data.cache import cache_folder
from esper_ray.errors import CheckpointError, ConfigurationError, DatasetError, PlacementError, RunFolderError
from esper_ray.orchestration.fleet import cluster, local_session, session_guard
from esper_ray.orchestration.fleet.local_session import LONGEST_TMPDIR, make_session_folder, session_environment
from esper_ray.orchestration.run import plan
from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.kept_hosts import load_kept_host
from esper_ray.orchestration.run.run_folder import RunFolder, read_config
from esper_ray.orchestration.tuning.search_folder import read_experiment
from esper_ray.process import process_memory
from esper_ray.report.reading import require_readable

# --- programs and files that are not there ---------------------------------------------------------------------------


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plan.origin()["git_commit"] is None


def test_a_package_without_metadata_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_VERSIONED", ("torch", "no-such-package"))
    assert plan.origin()["versions"] == {"torch": torch.__version__, "no-such-package": None}


def test_a_report_is_written_where_there_is_no_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").touch()
    monkeypatch.setattr(report, "write_report", lambda *_: tmp_path / "report.html")
    monkeypatch.setattr(webbrowser, "_tryorder", [])  # what it finds in a PATH without any
    assert run(["report", str(tmp_path), "--open"]) == 0
    assert capsys.readouterr().out.endswith("There is no browser to show it in.\n")


@pytest.mark.parametrize("error", [psutil.AccessDenied(), psutil.NoSuchProcess(1), FileNotFoundError("/proc")])
def test_memory_is_known_where_proc_is_not_shown(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    known = process_memory()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(psutil, "Process", fail)
    assert known / 10 < process_memory() < known * 10


def test_a_session_is_removed_where_proc_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Iterator[psutil.Process]:
        raise FileNotFoundError("/proc")

    monkeypatch.setattr(psutil, "process_iter", fail)
    session = tmp_path / "session"
    session.mkdir()
    session_guard.end_session(session)
    assert not session.exists()


# --- temporary folders and Ray's start -------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Makes a folder the one for temporary files."""

    def choose(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))

    return choose


@pytest.mark.parametrize("name", ["ü", "x" * LONGEST_TMPDIR], ids=["not ASCII", "long"])
def test_ray_s_files_go_elsewhere_where_sockets_do_not_fit(
    name: str, temporary: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    temporary(tmp_path / name)
    session = make_session_folder()
    try:
        assert session.parent == Path("/tmp").resolve()
        assert stat.S_IMODE(session.stat().st_mode) == 0o700
        assert f"Ray's files lie in /tmp: {tmp_path / name} is not ASCII or longer than" in caplog.text
    finally:
        session.rmdir()


def test_ray_s_files_stay_in_a_temporary_folder_that_is_short(temporary: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s") as short:
        temporary(Path(short))
        assert make_session_folder().parent == Path(short)


def test_tmpdir_is_named_where_nothing_else_helps(
    temporary: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_session, "_other_folders", list)
    temporary(tmp_path / "ü")
    with pytest.raises(ConfigurationError, match=rf"set TMPDIR to a folder of at most {LONGEST_TMPDIR} bytes.*ASCII$"):
        make_session_folder()


@pytest.mark.parametrize(
    ("error", "is_busy"),
    [
        (Exception("The current node timed out during startup. This could happen because it is overloaded"), True),
        (PermissionError(13, "Permission denied", "/x"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_only_a_machine_that_is_busy_is_said_to_be(
    error: Exception, is_busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", fail)
    with pytest.raises(PlacementError) as refusal, cluster.local_ray(num_cpus=1):
        pass
    assert str(refusal.value).startswith("Ray could not be started: ")
    assert ("less to do" in str(refusal.value)) == is_busy


# --- the home folder -------------------------------------------------------------------------------------------------


def test_a_session_has_a_token_of_its_own_and_the_environment_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    before = dict(os.environ)
    with session_environment(tmp_path):
        assert "RAY_AUTH_TOKEN" not in os.environ
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == tmp_path and len(token.read_text()) == 64
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    assert dict(os.environ) == before


WITHOUT_HOME = """
import os, pwd
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
del os.environ["HOME"]
"""


def test_ray_tune_can_be_imported_by_a_user_without_home() -> None:
    code = f"{WITHOUT_HOME}import esper_ray.orchestration, ray.train.constants; print(os.environ['HOME'])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "/\n"), answer.stderr


def test_a_user_without_home_is_told_what_to_set() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("CACHE", "CACHE_HOME"))}
    code = f"{WITHOUT_HOME}from esper_ray.data.cache import cache_folder; cache_folder()"
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "DatasetError: this user has no home folder: set HOME, or ESPER_RAY_CACHE, to one" in answer.stderr


def test_an_empty_cache_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ESPER_RAY_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "esper_ray"


# --- permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_checkpoints_have_the_mode_that_the_umask_says(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with RunFolder(tmp_path / "run", {}) as folder:
            checkpoint = folder.save_checkpoint(1, lambda path: (path / "whole").touch())
    finally:
        os.umask(before)
    assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o777 & ~umask


@pytest.fixture
def run_as_nobody() -> Callable[[Callable[[], None]], str]:
    """Calls a function in a process of another user's, and returns what it raised."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")

    def call(function: Callable[[], None]) -> str:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                function()
                message = "nothing"
            except BaseException as error:
                message = f"{type(error).__name__}: {error}"
            os.write(writer, message.encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as answer:
            return answer.read()

    return call


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="shared-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


REFUSED = (
    (read_manifest, "checkpoint", CheckpointError, True),
    (read_manifest, "checkpoint", CheckpointError, False),
    (read_config, "run", RunFolderError, True),
    (read_config, "run", RunFolderError, False),
    (require_readable, "run", RunFolderError, True),
    (read_experiment, "search", RunFolderError, True),
    (read_experiment, "search", RunFolderError, False),
)
"""What reads what, what it raises, and whether the whole folder may not be read, or only the files in it."""


@pytest.mark.parametrize(("read", "name", "kind", "whole"), REFUSED)
def test_what_another_user_may_not_read_is_not_called_damaged(
    read: Callable[[Path], object],
    name: str,
    kind: type[Exception],
    whole: bool,
    shared: Path,
    run_as_nobody: Callable[[Callable[[], None]], str],
) -> None:
    folder = shared / name
    folder.mkdir()
    for file in ("config.json", "experiment.json", "esper_ray.json"):
        (folder / file).write_text("{}")
        (folder / file).chmod(0o600)
    folder.chmod(0o700 if whole else 0o755)
    found = run_as_nobody(lambda: read(folder) and None)
    assert found.startswith(f"{kind.__name__}: no permission to read {folder}")
    assert "ask its owner" in found and "damaged" not in found


def test_a_host_that_another_user_may_not_read_is_not_called_damaged(
    shared: Path, run_as_nobody: Callable[[Callable[[], None]], str]
) -> None:
    file = shared / "episode_000001.safetensors"
    save_file({"w": torch.zeros(1)}, file)
    file.chmod(0o600)
    found = run_as_nobody(lambda: load_kept_host(shared, 1) and None)
    assert found.startswith(f"RunFolderError: no permission to read {file}")


def test_data_that_another_user_may_not_read_is_not_called_altered(
    shared: Path, run_as_nobody: Callable[[Callable[[], None]], str]
) -> None:
    file = shared / "data"
    file.touch(0o600)

    def refuse() -> None:
        raise DatasetError.altered(file, "reason")

    assert run_as_nobody(refuse).startswith(f"DatasetError: no permission to read {file}")
    file.chmod(0o644)
    assert run_as_nobody(refuse) == f"DatasetError: {file} is truncated or altered: reason; fetch it again"
