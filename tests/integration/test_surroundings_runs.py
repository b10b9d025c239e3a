"""Whole runs on machines that lack something."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from driver import command, refused, wait_until
from finished_runs import FinishedRuns

from esper_ray.orchestration.run.claims import claimed
from esper_ray.orchestration.run.run_folder import checkpoints_of

NO_PASSWD_ENTRY = 54321
RUN = [
    *("--runners", "0", "--iterations", "1", "--episodes-per-iteration", "2", "--wait-only-episodes", "0"),
    *("--reward", "paired", "--host-pool", "2"),
    *("--max-epochs", "12", "--set", "data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"),
]


@pytest.mark.faults
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_run_needs_no_git_no_writable_home_and_no_short_tmpdir_and_its_folder_is_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary files ü"
    out, cache = tmp_path / "run", tmp_path / "cache"
    for folder in (home, temporary):
        folder.mkdir()
    surroundings = {"PATH": str(home), "HOME": str(home), "TMPDIR": str(temporary), "ESPER_RAY_CACHE": str(cache)}
    before = os.umask(0o022)
    try:
        process = subprocess.Popen(
            command("train", "--out", out, *RUN), env={**os.environ, **surroundings}, stderr=subprocess.PIPE, text=True
        )
        wait_until(out.is_dir, process)
        assert f"another command writes to {out}" in refused(capsys, "train", "--out", out, *RUN)
        assert f"another command writes to {out}" in refused(capsys, "heuristic", "--out", out)
        _, errors = process.communicate(timeout=200)
    finally:
        os.umask(before)
    assert process.returncode == 0, errors
    assert errors.startswith("Ray's files lie in /tmp: ") and errors.count("\n") == 1
    assert json.loads((out / "config.json").read_text())["git_commit"] is None
    assert [*home.iterdir(), *temporary.iterdir()] == []
    assert list(cache.rglob("*.*")) != []
    closed = [path for made in (out, cache) for path in made.rglob("*") if not path.stat().st_mode & 0o004]
    assert closed == [], "other users may read what the umask lets them"


@pytest.mark.faults
@pytest.mark.parametrize(("home", "cache"), [("read-only", "cache"), (None, "cache"), ("read-only", None)])
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_user_without_a_passwd_entry_plays_or_is_told_what_to_set(
    home: str | None, cache: str | None, tmp_path: Path
) -> None:
    """Containers are often run so: with the root folder as home, which they may not write, or with none."""
    another_user = ["unshare", "--user", f"--map-user={NO_PASSWD_ENTRY}", f"--map-group={NO_PASSWD_ENTRY}"]
    if shutil.which("unshare") is None or subprocess.run([*another_user, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody become another user")
    (tmp_path / "read-only").mkdir(mode=0o555)
    folders = {"HOME": home, "ESPER_RAY_CACHE": cache, "XDG_CACHE_HOME": None}
    environment = {name: value for name, value in os.environ.items() if name not in folders}
    environment |= {name: str(tmp_path / folder) for name, folder in folders.items() if folder is not None}
    done = subprocess.run(
        [*another_user, *command("train", "--out", tmp_path / "run", *RUN)],
        **{"env": environment, "capture_output": True, "text": True},
    )
    if cache is not None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "cannot be written: Permission denied; set HOME, or name another folder" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["read-only"]


@pytest.mark.faults
@pytest.mark.usefixtures("session_ray")
def test_a_refused_token_is_named(tmp_path: Path) -> None:
    """Ray's own words after half a minute are that nobody answers."""
    address = ray.get_runtime_context().gcs_address
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}):
        found = subprocess.run(
            command("train", "--address", address, "--out", tmp_path / "run", *RUN),
            **{"env": {**others, **token, "HOME": str(tmp_path)}, "capture_output": True, "text": True},
            **{"timeout": 200, "check": False},
        )
        assert found.returncode == 2
        assert "the cluster refuses this user's token, or the lack of one; set RAY_AUTH_MODE" in found.stderr
        assert found.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_command_refuses_a_folder_that_another_one_writes_to(
    finished_runs: FinishedRuns, killed_run: Path, no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything slow: no Ray starts."""
    run, out = finished_runs.folder("undisturbed"), tmp_path / "out"
    checkpoint = checkpoints_of(run)[-1]
    search = tmp_path / "search.yaml"
    search.write_text(
        yaml.safe_dump({"train": {"task": "digits"}, "seeds": [0], "space": {"ppo.lr_end": {"grid": [1e-3]}}})
    )
    with claimed(out), claimed(killed_run):
        for arguments in (
            ("train",),
            ("heuristic",),
            ("evaluate", checkpoint),
            ("compare", checkpoint),
            ("export", run, "--best"),
            ("tune", search),
        ):
            assert f"another command writes to {out}; wait for it" in refused(capsys, *arguments, "--out", out)
        for command_name in ("train", "plan"):
            assert "goes on in another process" in refused(capsys, command_name, "--resume", killed_run)
        assert not ray.is_initialized()
    assert not out.exists()
