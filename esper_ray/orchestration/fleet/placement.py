"""Placement of actors: the resources of the cluster, the actors that fit on them, and the device of an actor."""

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
import torch
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError

from esper_ray.errors import PlacementError

_SECONDS_FOR_RELEASE = 5.0
_ROUNDING = 1e-3
_SECONDS_FOR_A_GPU = 120.0
"""The task that tries one may have to import torch first."""
LEARNER_CPUS = 0.1
"""CPU share that a trial's learner is counted with; Ray does not place a process that asks for nothing."""


@dataclass(frozen=True)
class Placement:
    """Number of actors and their resources.

    Attributes:
        runners: number of actors; 0: this process plays the part of one.
        cpus_per_runner: CPUs of each.
        gpus_per_runner: share of a GPU of each; 0 on the CPU.
        hosts_per_runner: episodes that each plays at the same time, at most.
    """

    runners: int
    cpus_per_runner: float
    gpus_per_runner: float
    hosts_per_runner: int = 1

    @property
    def players(self) -> int:
        """Number of concurrent players: the actors, or 1 (this process) without actors."""
        return max(1, self.runners)

    @property
    def threads_per_runner(self) -> int:
        """Threads of torch in each, and in the process that learns: one for each whole CPU, at least one."""
        return max(1, int(self.cpus_per_runner))

    @property
    def device_kind(self) -> str:
        """ "cuda" or "cpu"."""
        return "cuda" if self.gpus_per_runner > 0 else "cpu"


def place(
    runners: int | None, episodes: int, device: Literal["auto", "cpu", "cuda"], hosts_per_runner: int = 1
) -> Placement:
    """Decides the placement of a run's actors on the present cluster.

    Args:
        runners: actors asked for; None: as many as there are CPUs, at most one per episode; 0: none, see `Placement`.
        episodes: episodes per iteration.
        device: what the user asked for.
        hosts_per_runner: episodes that each actor plays at the same time.

    Raises:
        PlacementError: they do not fit; the message says the largest number that does.
    """
    if runners == 0:
        if device == "cuda":
            raise PlacementError(
                "--runners 0 plays in this process, to which Ray gives no GPU; leave out --device cuda"
            )
        _require_filled(1, hosts_per_runner, episodes)
        return Placement(0, 1, 0.0, hosts_per_runner)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = _use_gpus(device, int(sum(node.get("GPU", 0) for node in nodes)))
    if use_gpu:
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    runners = max(1, min(cpus, episodes // hosts_per_runner)) if runners is None else runners
    if runners > cpus:
        where = "on its nodes with GPUs" if use_gpu else "in all"
        raise PlacementError(
            f"{runners} runners do not fit: each needs 1 CPU and the cluster has {cpus} {where}; "
            f"use --runners {cpus} at most"
        )
    if runners > episodes:
        raise PlacementError(
            f"{runners} runners share {episodes} episodes at a time, so some would have none; "
            f"use --runners {episodes} at most, or play more episodes"
        )
    _require_filled(runners, hosts_per_runner, episodes)
    placement = Placement(runners, 1, _gpu_share(runners, nodes) if use_gpu else 0.0, hosts_per_runner)
    _require_free(placement)
    return placement


def _require_filled(runners: int, hosts_per_runner: int, episodes: int, setting: str = "--hosts-per-runner") -> None:
    """Refuses more hosts than there are episodes for."""
    if runners * hosts_per_runner > episodes:
        raise PlacementError(
            f"{runners} runners of {hosts_per_runner} hosts share {episodes} episodes at a time, so some would have "
            f"none; use {setting} {max(1, episodes // runners)} at most, or play more episodes"
        )


def place_trials(
    runners: int | None,
    concurrent: int | None,
    trials: int,
    episodes: int,
    device: Literal["auto", "cpu", "cuda"],
    hosts_per_runner: int = 1,
) -> tuple[Placement, int]:
    """Decides where the actors of each trial of a search go, and how many trials run at a time.

    A trial gets whole CPUs, as many as it has runners; its learner, which works while they wait, takes a tenth of one.

    Args:
        runners: actors of a trial asked for; None: what the trials at a time leave, at most one per episode.
        concurrent: trials at a time asked for; None: as many as fit.
        trials: in all.
        episodes: episodes per iteration of a trial.
        device: what the user asked for.
        hosts_per_runner: episodes that each actor plays at the same time.

    Raises:
        PlacementError: they do not fit; the message says what does.
    """
    if runners == 0:
        raise PlacementError("a trial needs an actor; use train.runners 1 at least")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = _use_gpus(device, int(sum(node.get("GPU", 0) for node in nodes)))
    if use_gpu:
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    at_a_time = concurrent or max(1, min(trials, cpus // runners if runners else cpus))
    each = runners or max(1, min(episodes // hosts_per_runner, cpus // at_a_time))
    if each > cpus:
        raise PlacementError(
            f"a trial of {each} runners does not fit: each needs 1 CPU and the cluster has {cpus}; use train.runners "
            f"{cpus} at most"
        )
    if each * at_a_time > cpus:
        raise PlacementError(
            f"{at_a_time} trials of {each} runners at a time do not fit on {cpus} CPUs; use --max-concurrent "
            f"{cpus // each} at most"
        )
    if each > episodes:
        raise PlacementError(
            f"{each} runners share {episodes} episodes at a time, so some would have none; use train.runners "
            f"{episodes} at most"
        )
    _require_filled(each, hosts_per_runner, episodes, "train.hosts_per_runner")
    _require_free(Placement(each * at_a_time, 1, _gpu_share(each * at_a_time, nodes) if use_gpu else 0.0))
    share = _gpu_share(each * at_a_time, nodes) if use_gpu else 0.0
    return Placement(each, 1.0 - LEARNER_CPUS, share, hosts_per_runner), at_a_time


def _require_free(placement: Placement) -> None:
    """Refuses a placement on resources in use; waits a moment for resources that were just released."""
    give_up = time.monotonic() + _SECONDS_FOR_RELEASE
    while (
        fit := sum(_capacity(free, placement) for free in available_resources_per_node().values())
    ) < placement.runners:
        if time.monotonic() > give_up:
            share = f" and {placement.gpus_per_runner:.3g} of a GPU" if placement.gpus_per_runner else ""
            remedy = f"use --runners {fit} at most" if fit else "first end what holds them"
            raise PlacementError(
                f"{placement.runners} runners do not fit: each needs {placement.cpus_per_runner:g} CPU{share} on one "
                f"machine, and others leave room for {fit}; {remedy}"
            )
        time.sleep(0.1)


def _capacity(free: Mapping[str, float], placement: Placement) -> int:
    """Returns how many of the runners fit on a machine with this left."""
    shares = {"CPU": placement.cpus_per_runner, "GPU": placement.gpus_per_runner}
    return min(int(free.get(kind, 0.0) / share + _ROUNDING) for kind, share in shares.items() if share)


def _gpu_share(runners: int, nodes: Sequence[Mapping[str, float]]) -> float:
    """Returns the largest share of a GPU, 1 ÷ a whole number, at which the nodes' GPUs and CPUs hold all runners."""
    for runners_per_gpu in itertools.count(1):
        if runners <= sum(min(int(node["CPU"]), int(node["GPU"]) * runners_per_gpu) for node in nodes):
            return 1.0 / runners_per_gpu
    raise AssertionError("there are enough CPUs, so some share fits")


def _use_gpus(device: Literal["auto", "cpu", "cuda"], gpus: int) -> bool:
    if device == "cpu" or (device == "auto" and gpus == 0):
        return False
    if gpus == 0:
        raise PlacementError("--device cuda: the cluster has no GPU; use --device cpu or --device auto")
    # The least share that Ray gives out: others may hold all but a little of every GPU.
    answer = ray.remote(num_cpus=0, num_gpus=0.001)(torch.cuda.is_available).remote()
    try:
        usable = ray.get(answer, timeout=_SECONDS_FOR_A_GPU)
    except GetTimeoutError:
        raise PlacementError(
            "others hold all GPUs of the cluster; first end what holds them, or use --device cpu"
        ) from None
    if not usable and device == "cuda":
        raise PlacementError("--device cuda: the installed torch cannot use the cluster's GPU; install a CUDA build")
    return bool(usable)


def assigned_device() -> torch.device:
    """Returns the device that Ray assigned to the present actor or task.

    An actor without a GPU share may still see a GPU; only Ray's word counts.

    Raises:
        PlacementError: Ray assigned a GPU that torch cannot use.
    """
    gpu_ids = [str(gpu) for gpu in ray.get_gpu_ids()] if ray.is_initialized() else []
    if not gpu_ids:
        return torch.device("cpu")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    index = visible.split(",").index(gpu_ids[0]) if gpu_ids[0] in visible.split(",") else int(gpu_ids[0])
    return torch.device("cuda", index)
