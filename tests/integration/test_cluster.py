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
from clusters import CloudsTask, actors_per_node, assert_unused, free_port, start_cluster
from fast_tasks import make_fast_task
from processes import ray_processes
from ray.cluster_utils import Cluster

from esper_ray.cli.main import run
from esper_ray.cli.plan import described
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.env_runner import WorkerInfo
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.run.plan import RunPlan
from esper_ray.orchestration.run.preflight import Preflight

FEW = ["--iterations", "2", "--episodes-per-iteration", "6", "--wait-only-episodes", "0"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, a machine with two and one with one."""
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


def test_auto_without_a_cluster_is_one_line_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if ray_processes():
        pytest.skip("a Ray runs on this machine, and auto would join it")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "no Ray cluster answers there" in refusal(["train", "--address", "auto"], capsys)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_plan_says_what_each_machine_gives_even_if_all_have_one_name(
    cluster: Cluster, task: CloudsTask, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--plugin", task.name, "--task", task.name, "--address", cluster.address]
    assert run(["plan", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{task.name}: 3 at a time, 1 CPU each"
    assert sorted(lines[1:3]) == sorted(
        f"  {cpus} on {socket.gethostname()}, Ray node {node.node_id[:8]}, cpu: {cpus} CPU"
        for node, cpus in ((node, node._ray_params.num_cpus) for node in cluster.worker_nodes)
    )
    assert_unused(cluster, {place.process for place in task.built()})


def test_a_plan_says_how_much_of_which_gpu_each_machine_gives() -> None:
    places = [("north", "a" * 56, "cuda:0"), ("north", "a" * 56, "cuda:1"), ("south", "b" * 56, "cuda:0")]
    workers = [
        WorkerInfo(i, *place, 1, 0.1, 1_000_000) for i, place in enumerate([places[0], *places, places[2]], start=1)
    ]
    plan = RunPlan(
        TrainConfig(),
        make_fast_task(),
        Placement(5, 1, 0.5),
        Preflight(tuple(workers), 12, 60.0),
        episodes=10,
        action_names=("WAIT",),
        out=Path("out"),
    )
    assert described(plan)[:4] == [
        "digits: 5 at a time, 1 CPU and 0.5 of a GPU each",
        "  2 on north, cuda:0: 2 CPU, 1 GPU",
        "  1 on north, cuda:1: 1 CPU, 0.5 GPU",
        "  2 on south, cuda:0: 2 CPU, 1 GPU",
    ]


def test_more_runners_than_a_cluster_has_room_for_are_refused_with_the_largest_number(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(["train", "--address", cluster.address, "--runners", "4"], capsys)
    assert "4 runners do not fit: each needs 1 CPU and the cluster has 3 in all; use --runners 3 at most" in error


@pytest.mark.slow
def test_a_machine_with_too_little_memory_is_refused_with_the_number_that_it_holds(
    task: CloudsTask, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", "--plugin", task.name, "--task", task.name]
    small = start_cluster(num_cpus=3, memory=150_000_000)
    try:
        at = ["--address", small.address]
        error = refusal([*asked, *at, "--runners", "1"], capsys)
        size = float(error.split("1 runners of ")[1].split(" MB")[0])
        assert "which has 150 MB for them; use a machine with more" in error
    finally:
        small.shutdown()
    larger = start_cluster(num_cpus=3, memory=int(2.4e6 * size))
    try:
        at = ["--address", larger.address]
        assert "use --runners 2 at most" in refusal([*asked, *at, "--runners", "3"], capsys)
        assert run([*asked, *at, "--runners", "2"]) == 0
    finally:
        larger.shutdown()


def test_without_an_address_a_run_keeps_to_this_machine_whatever_the_environment_names(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with local_ray(num_cpus=1):
        assert ray.cluster_resources()["CPU"] == 1
        assert len(ray.nodes()) == 1
