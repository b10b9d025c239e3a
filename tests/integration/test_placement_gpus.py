"""Devices on a cluster of several nodes with logical GPUs, all on this machine."""

from collections.abc import Iterator

import pytest
import ray
import shared_ray
import torch
from ray.cluster_utils import Cluster

from esper_ray.errors import PlacementError
from esper_ray.orchestration.fleet import placement
from esper_ray.orchestration.fleet.placement import Placement, assigned_device, place

pytestmark = pytest.mark.usefixtures("no_ray", "three_nodes")


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[None]:
    """A head with CPUs only, a node with more CPUs than logical GPUs, and one with fewer."""
    shared_ray.stop()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    cluster.add_node(num_cpus=4, num_gpus=1)
    cluster.add_node(num_cpus=1, num_gpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@ray.remote
class Probe:
    def where(self) -> tuple[str, str, list[str]]:
        node = ray.get_runtime_context().get_node_id()
        return str(assigned_device()), node, [str(gpu) for gpu in ray.get_gpu_ids()]


def test_runners_are_counted_over_all_nodes() -> None:
    assert place(None, 32, "cpu") == Placement(7, 1, 0.0)
    with pytest.raises(PlacementError, match="use --runners 7 at most"):
        place(8, 32, "cpu")


def test_a_gpu_that_torch_cannot_use_is_refused_or_passed_over() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that torch can use")
    with pytest.raises(PlacementError, match="cannot use the cluster's GPU"):
        place(2, 32, "cuda")
    assert place(2, 32, "auto").device_kind == "cpu"


@pytest.mark.parametrize(("runners", "share"), [(2, 1.0), (3, 0.5), (5, 0.25)])
def test_every_gpu_serves_a_whole_number_of_runners(
    monkeypatch: pytest.MonkeyPatch, runners: int, share: float
) -> None:
    monkeypatch.setattr(placement, "_use_gpus", lambda device, gpus: gpus > 0)
    placed = place(runners, 32, "auto")
    assert placed.gpus_per_runner == share
    probes = [Probe.options(num_cpus=1, num_gpus=placed.gpus_per_runner).remote() for _ in range(runners)]  # type: ignore[attr-defined]
    found = ray.get([probe.where.remote() for probe in probes], timeout=60)
    assert all(device == "cuda:0" for device, _, _ in found)
    per_gpu = [sum(other[1:] == mine[1:] for other in found) for mine in found]
    assert max(per_gpu) * share <= 1.0
    for probe in probes:
        ray.kill(probe)


def test_only_nodes_with_gpus_count_where_gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_use_gpus", lambda device, gpus: gpus > 0)
    assert place(None, 32, "auto") == Placement(5, 1, 0.25)
    with pytest.raises(PlacementError, match="5 on its nodes with GPUs; use --runners 5 at most"):
        place(6, 32, "auto")


def test_an_actor_without_a_gpu_share_uses_the_cpu_even_on_a_node_with_gpus() -> None:
    probes = [Probe.options(num_cpus=1, num_gpus=0).remote() for _ in range(6)]  # type: ignore[attr-defined]
    assert {device for device, _, _ in ray.get([probe.where.remote() for probe in probes], timeout=60)} == {"cpu"}
    for probe in probes:
        ray.kill(probe)
