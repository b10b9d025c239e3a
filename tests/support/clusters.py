"""Clusters of several machines, all on this one, and a task that says where it was played."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from plugin_source import write_plugin
from ray.cluster_utils import Cluster

_QUICK_TO_NOTICE = {
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A machine that is gone is noticed in seconds; one that is only slow to answer has ten of them, as ever."""

_WRITES_DOWN_WHERE = """
import os
from pathlib import Path
import esper_ray, ray
if ray.is_initialized() and ray.get_runtime_context().get_actor_id():  # and not where it is tried out only
    with Path({seen!r}).open("a") as file:
        print(ray.get_runtime_context().get_node_id(), os.getpid(), __file__, esper_ray.__file__, file=file)
"""


class Built(NamedTuple):
    """Where a host was built.

    Attributes:
        node: of Ray.
        process: its id.
        plugin: file that the host's class comes from.
        package: file of esper_ray there.
    """

    node: str
    process: int
    plugin: str
    package: str


class CloudsTask:
    """A task in a module of its own in `folder`; an epoch of it takes some ten times `pause`, seconds."""

    def __init__(self, folder: Path, pause: float) -> None:
        self._seen = folder / "seen"
        host = _WRITES_DOWN_WHERE.format(seen=str(self._seen))
        self.name = write_plugin(folder, host=host, forward=f"import time; time.sleep({pause})")

    def built(self) -> list[Built]:
        """Returns where actors built its hosts, in this order."""
        lines = self._seen.read_text().splitlines() if self._seen.exists() else []
        rows = [line.split() for line in lines]
        return [Built(node, int(process), plugin, package) for node, process, plugin, package in rows]


def start_cluster(**head: Any) -> Cluster:
    """Starts a cluster whose first machine offers what `head` says, on a port that is free."""
    return Cluster(
        initialize_head=True,
        head_node_args={
            **{"num_cpus": 0, "gcs_server_port": free_port(), "include_dashboard": False},
            **{"_system_config": _QUICK_TO_NOTICE, **head},
        },
    )


def free_port() -> int:
    """Returns a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until something is the case, and fails if it does not come to that."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come to that in time"
        time.sleep(0.05)


def assert_unused(cluster: Cluster, processes: set[int]) -> None:
    """Holds that a cluster is up, that nobody has anything on it, and that these processes of its have ended."""
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        cluster.wait_for_nodes()
        wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU"))
        wait_for(lambda: not ray.util.list_named_actors(all_namespaces=True))
        wait_for(lambda: not any(_is_running(process) for process in processes))
    finally:
        ray.shutdown()


def actors_per_node(built: list[Built]) -> Counter[str]:
    """Returns on which machine how many processes have built hosts."""
    return Counter(node for node, _ in {(place.node, place.process) for place in built})


def _is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
