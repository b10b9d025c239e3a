"""Clusters of several machines, all on this one, and a task that says where it was played."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray.cluster_utils import Cluster

_QUICK_TO_NOTICE = {
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A machine that is gone is noticed in seconds; one that is only slow to answer has ten of them, as ever."""

PLUGIN = '''
"""Two clouds of points, and a host for them that takes its time and writes down where it is built."""

import os
import time
from pathlib import Path

import numpy as np
import ray
import torch
from torch import nn

import esper_ray
from esper_ray.data import data_source
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.models import blueprint, host
from esper_ray.tasks import DataSettings, DecisionSettings, HostSettings, TaskSpec, register_task


@data_source("{name}", "two clouds of points")
def read(files):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    points = rng.normal(size=(60, 4)) + labels[:, None]
    return {{"train": (points[:30], labels[:30]), "validation": (points[30:45], labels[30:45]),
             "test": (points[45:], labels[45:])}}


@host("{name}")
class Host(nn.Module):
    topology = "{name}"

    def __init__(self, input_shape, classes, *, width: int = 8):
        super().__init__()
        self.injection_points = {{"middle": width}}
        self.enter, self.leave = nn.Linear(input_shape[0], width), nn.Linear(width, classes)
        self.slot = nn.Identity()
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():  # and not where it is tried out only
            with Path({seen!r}).open("a") as file:
                file.write(f"{{ray.get_runtime_context().get_node_id()}} {{os.getpid()}} {{__file__}} "
                           f"{{esper_ray.__file__}}\\n")

    def register_slot(self, slot_id, module):
        self.slot = module

    def forward(self, points):
        time.sleep({pause})
        return self.leave(self.slot(torch.relu(self.enter(points))))


@blueprint("{name}", topology="{name}")
class Seed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, features):
        return features + self.linear(features)


register_task(TaskSpec(
    name="{name}", summary="", input_shape=(4,), classes=2, max_epochs=12, episodes_per_iteration=8,
    data=DataSettings(source="{name}", batch_size=15), host=HostSettings(kind="{name}"),
    lifecycle=LifecycleSettings(training_dwell=1, blending_steps=2, min_blending_epochs=1, shadowing_dwell=1),
    decisions=DecisionSettings(min_germination_epoch=2, min_plateau=0, require_stabilised=False, min_cull_age=2),
))
'''
_names = (f"own_clouds_{number}" for number in count())


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
        self.name = next(_names)
        self._seen = folder / f"{self.name}.seen"
        source = PLUGIN.format(name=self.name, seen=str(self._seen), pause=pause)
        (folder / f"{self.name}.py").write_text(source)

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
        alive = [node for node in ray.nodes() if node["Alive"]]
        assert len(alive) == len(cluster.list_all_nodes())
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
