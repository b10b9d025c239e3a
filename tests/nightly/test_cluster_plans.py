"""What a plan says of the machines of a cluster, and those that have too little memory."""

import os
import socket
from pathlib import Path

import psutil
import pytest
from clusters import CloudsTask, assert_unused, start_cluster
from driver import refused

from esper_ray.cli.main import run

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def task(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CloudsTask:
    """A task whose module lies in a folder that only the driver searches; Ray tells actors of its working folder."""
    folder = own_folder / "own"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return CloudsTask(folder, pause=0)


def test_a_plan_says_what_each_machine_gives_even_if_all_have_one_name(
    task: CloudsTask, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = start_cluster()
    cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=1)
    try:
        arguments = ["--plugin", task.name, "--task", task.name, "--address", cluster.address]
        assert run(["plan", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{task.name}: 3 at a time, 1 CPU each"
        assert sorted(lines[1:3]) == sorted(
            f"  {cpus} on {socket.gethostname()}, Ray node {node.node_id[:8]}, cpu: {cpus} CPU"
            for node, cpus in ((node, node._ray_params.num_cpus) for node in cluster.worker_nodes)
        )
        assert_unused(cluster, {place.process for place in task.built()})
    finally:
        cluster.shutdown()


def test_a_machine_with_too_little_memory_is_refused_with_the_number_that_it_holds(
    task: CloudsTask, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", "--plugin", task.name, "--task", task.name]
    small = start_cluster(num_cpus=3, memory=150_000_000)
    try:
        at = ["--address", small.address]
        error = refused(capsys, *[*asked, *at, "--runners", "1"])
        size = float(error.split("1 runners of ")[1].split(" MB")[0])
        assert "which has 150 MB for them; use a machine with more" in error
    finally:
        small.shutdown()
    larger = start_cluster(num_cpus=3, memory=int(2.4e6 * size))
    try:
        at = ["--address", larger.address]
        assert "use --runners 2 at most" in refused(capsys, *[*asked, *at, "--runners", "3"])
        assert run([*asked, *at, "--runners", "2"]) == 0
    finally:
        larger.shutdown()


def test_auto_without_a_cluster_is_one_line_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nightly, where no other test runs beside it: any Ray of this machine would answer."""
    if any("gcs_server" in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])):
        pytest.skip("a Ray runs on this machine")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "no Ray cluster answers there" in refused(capsys, "train", "--address", "auto")
