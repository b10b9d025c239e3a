"""A run that joins a cluster of several machines: what is sent there, who sits where, what is left."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import shared_ray
from clusters import CloudsTask, actors_per_node, assert_unused, free_port, start_cluster
from ray.cluster_utils import Cluster

from esper_ray.cli.main import run
from esper_ray.orchestration.fleet.cluster import local_ray

pytestmark = pytest.mark.usefixtures("no_ray")

FEW = ["--iterations", "2", "--episodes-per-iteration", "6", "--wait-only-episodes", "0"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, a machine with two and one with one."""
    shared_ray.stop()
    cluster = start_cluster()
    try:
        cluster.add_node(num_cpus=2)
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudsTask:
    """A task whose module lies in a folder that only the driver searches; Ray tells actors of its working folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return CloudsTask(folder, pause=0)


def episodes_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's episodes but for the time that they took."""
    rows = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


class QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Keeps standard error for the command."""


@contextmanager
def web_server() -> Iterator[int]:
    """Runs a server that has nothing to do with Ray; yields its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail; returns its one line."""
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert not ray.is_initialized()
    return error


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("somewhere", "expected HOST:PORT or auto"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT or auto"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
        ("127.0.0.1:{free}", "no Ray cluster answers there"),
        ("127.0.0.1:{mute}", "no Ray cluster answers there (timed out)"),
        ("127.0.0.1:{web}", "what answers there is no Ray cluster"),
    ],
)
def test_an_address_without_a_cluster_is_one_line_at_once(
    address: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute, web_server() as web:
        ports = {"free": free_port(), "mute": mute.getsockname()[1], "web": web}
        assert message in refusal(["train", "--address", address.format(**ports)], capsys)
    assert time.monotonic() - started < 30
    assert not any(tmp_path.iterdir())


def test_auto_means_the_cluster_that_the_environment_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert "no Ray cluster answers there" in refusal(["train", "--address", "auto"], capsys)


def test_two_runs_on_a_cluster_find_their_code_there_use_its_machines_and_leave_it_as_it_was(
    cluster: Cluster, task: CloudsTask, tmp_path: Path
) -> None:
    asked = ["--plugin", task.name, "--task", task.name, "--address", cluster.address, "--runners", "3", *FEW]
    command = [sys.executable, "-m", "esper_ray.cli.main", "train", *asked, "--out", "first"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Done after 2 of 2 iterations: 12 episodes" in finished.stdout
    assert finished.stderr == ""

    nodes = {node.node_id: node._ray_params.num_cpus for node in cluster.worker_nodes}
    assert actors_per_node(task.built()) == nodes
    for place in task.built():
        for file in (place.plugin, place.package):
            assert "runtime_resources" in file and not file.startswith(str(tmp_path)), file
    assert_unused(cluster, {place.process for place in task.built()})

    assert run(["train", *asked, "--out", "second"]) == 0
    assert not ray.is_initialized()
    assert episodes_of(tmp_path / "second") == episodes_of(tmp_path / "first")
    assert_unused(cluster, {place.process for place in task.built()})


def test_more_runners_than_a_cluster_has_room_for_are_refused_with_the_largest_number(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(["train", "--address", cluster.address, "--runners", "4"], capsys)
    assert "4 runners do not fit: each needs 1 CPU and the cluster has 3 in all; use --runners 3 at most" in error


def test_without_an_address_a_run_keeps_to_this_machine_whatever_the_environment_names(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with local_ray(num_cpus=1):
        assert ray.cluster_resources()["CPU"] == 1
        assert len(ray.nodes()) == 1
