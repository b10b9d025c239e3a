"""Machines of a cluster that die in the middle of a run, and others that come: the run is the one nobody disturbed."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
import shared_ray
from clusters import CloudsTask, assert_unused, start_cluster, wait_for
from driver import begun, ended, wait_until, whole_rows
from learners import TASK, assert_same_weights, rows, weights
from ray.cluster_utils import Cluster
from traced import LOST_AT, Trace

from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.progress import BoardReader
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.run.plan import RunPlan
from esper_ray.orchestration.run.train import train

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_ray")]

ITERATIONS, EPISODES, RUNNERS = 5, 8, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs; each test adds its machines."""
    shared_ray.stop()
    cluster = start_cluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def machines(cluster: Cluster) -> Iterator[Callable[..., Any]]:
    """Adds a machine; all go in the end."""
    yield cluster.add_node
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudsTask]:
    """An episode of it takes about a second."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield CloudsTask(folder, pause=0.008)


class Watcher:
    """Calls a function after an iteration, in this thread; the next one waits for it."""

    def __init__(self, after: Mapping[int, Callable[[], Any]] | None = None) -> None:
        self.after = dict(after or {})

    def on_start(self, run: RunPlan, board: BoardReader) -> None:
        """The actors are up."""

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        """No scripted policy plays here."""

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """Calls the function."""
        if (call := self.after.get(row["iteration"])) is not None:
            call()


class Run:
    """What a run left."""

    def __init__(self, folder: Path) -> None:
        found = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
        self.episodes = [{name: value for name, value in row.items() if name != "seconds"} for row in found]
        self.metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.summary = json.loads((folder / "summary.json").read_text())


def play(
    cluster: Cluster, task: CloudsTask, out: Path, watcher: Watcher, learner: Literal["ppo", "appo"] = "ppo"
) -> Run:
    """Plays a run on the cluster."""
    config = TrainConfig(
        task=task.name,
        plugin=(task.name,),
        address=cluster.address,
        learner=learner,
        runners=RUNNERS,
        iterations=ITERATIONS,
        episodes_per_iteration=EPISODES,
        wait_only_episodes=0,
        out=out,
    )
    train(config, watcher)
    assert_unused(cluster, {place.process for place in task.built()})
    return Run(out)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, task: CloudsTask, tmp_path_factory: pytest.TempPathFactory) -> Run:
    node = cluster.add_node(num_cpus=RUNNERS)
    try:
        return play(cluster, task, tmp_path_factory.mktemp("undisturbed") / "run", Watcher())
    finally:
        cluster.remove_node(node)
        cluster.wait_for_nodes()


def assert_whole(run: Run, died: int) -> None:
    """Holds that a run has all its iterations and every episode once, and says how many actors died."""
    assert run.summary["iterations"] == ITERATIONS and run.summary["complete"]
    tickets = [(row["runner"], row["number"]) for row in run.episodes]
    assert len(set(tickets)) == len(tickets) == ITERATIONS * EPISODES
    assert run.summary["actors_lost"] == {"died": died, "raised": 0, "hung": 0}
    assert run.metrics[0]["actors_lost"]["died"] == 0
    assert run.metrics[-1]["actors_lost"] == run.summary["actors_lost"]


def assert_the_same_run(run: Run, undisturbed: Run, died: int) -> None:
    """Holds that a whole run came to what an undisturbed one did, episode by episode."""
    assert_whole(undisturbed, died=0)
    assert_whole(run, died)
    assert run.episodes == undisturbed.episodes


def dies_while_playing(cluster: Cluster, task: CloudsTask, node: Any, iteration: int) -> Watcher:
    """Has a machine die behind an iteration, as soon as an actor of it has begun its next episode."""

    def begun() -> int:
        return sum(place.node == node.node_id for place in task.built())

    def die(before: int) -> None:
        wait_for(lambda: begun() > before)
        cluster.remove_node(node, allow_graceful=False)

    return Watcher({iteration: lambda: threading.Thread(target=die, args=(begun(),)).start()})


def test_when_a_machine_dies_and_another_comes_its_actors_move_there_and_the_run_is_the_same(
    cluster: Cluster, machines: Callable[..., Any], task: CloudsTask, undisturbed: Run, tmp_path: Path
) -> None:
    machines(num_cpus=2)
    victim = machines(num_cpus=2)
    built_there = 0

    def replace() -> None:
        nonlocal built_there
        node = machines(num_cpus=2)

        def built() -> int:
            return sum(place.node == node.node_id for place in task.built())

        wait_for(lambda: built() >= 2, 120)
        built_there = built()
        arrived.append(built)

    arrived: list[Callable[[], int]] = []
    watcher = dies_while_playing(cluster, task, victim, iteration=1)
    watcher.after[2] = replace
    run = play(cluster, task, tmp_path / "run", watcher)
    assert_the_same_run(run, undisturbed, died=2)
    assert arrived[0]() > built_there + 2


def test_when_a_machine_dies_and_there_is_no_room_the_others_play_what_its_actors_owe(
    cluster: Cluster, machines: Callable[..., Any], task: CloudsTask, undisturbed: Run, tmp_path: Path
) -> None:
    machines(num_cpus=3)
    victim = machines(num_cpus=1)
    run = play(cluster, task, tmp_path / "run", dies_while_playing(cluster, task, victim, iteration=1))
    assert_the_same_run(run, undisturbed, died=1)


def test_a_machine_whose_death_nobody_has_noticed_yet_does_not_keep_a_run_from_starting(
    cluster: Cluster, machines: Callable[..., Any], task: CloudsTask, undisturbed: Run, tmp_path: Path
) -> None:
    machines(num_cpus=RUNNERS)
    cluster.remove_node(machines(num_cpus=1), allow_graceful=False)
    assert_the_same_run(play(cluster, task, tmp_path / "run", Watcher()), undisturbed, died=0)


def test_an_asynchronous_run_loses_a_machine_and_no_episode(
    cluster: Cluster, machines: Callable[..., Any], task: CloudsTask, tmp_path: Path
) -> None:
    machines(num_cpus=2)
    victim = machines(num_cpus=2)
    run = play(cluster, task, tmp_path / "run", dies_while_playing(cluster, task, victim, iteration=1), learner="appo")
    assert_whole(run, died=2)


def test_a_driver_that_is_killed_leaves_the_cluster_as_it_was_and_its_run_goes_on_there(
    cluster: Cluster, machines: Callable[..., Any], task: CloudsTask, undisturbed: Run, tmp_path: Path
) -> None:
    machines(num_cpus=RUNNERS)
    out = tmp_path / "run"
    joins = ["--address", cluster.address, "--plugin", task.name, "--task", task.name, "--runners", RUNNERS]
    length = ["--iterations", ITERATIONS, "--episodes-per-iteration", EPISODES, "--wait-only-episodes", 0]
    driver = begun("train", *joins, *length, "--out", out)
    wait_until(lambda: len(whole_rows(out / "metrics.jsonl")) >= 2, driver)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert_unused(cluster, {place.process for place in task.built()})

    resumed = ended("train", "--resume", out, "--address", cluster.address)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert_unused(cluster, {place.process for place in task.built()})
    assert_the_same_run(Run(out), undisturbed, died=0)


def test_actors_that_lose_their_gpus_move_to_a_machine_with_others_and_no_gpu_is_given_out_twice(
    cluster: Cluster, machines: Callable[..., Any], tmp_path: Path
) -> None:
    machines(num_cpus=4)
    with_gpus = [machines(num_cpus=2, num_gpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        trace, share = Trace(tmp_path), 0.5
        algorithm = trace.build(Placement(4, 1, share), episodes=8)
        assert_on_gpus(algorithm, trace, with_gpus, share, actors=4)

        cluster.remove_node(with_gpus.pop(), allow_graceful=False)
        with_gpus.append(machines(num_cpus=2, num_gpus=1))
        algorithm.train()
        dispatcher = algorithm.dispatcher
        assert dispatcher is not None and algorithm.losses["died"] == 2
        wait_for(lambda: all(actor_answers(actor) for actor in dispatcher._actors.values()), 120)
        trace.take()
        assert_on_gpus(algorithm, trace, with_gpus, share, actors=4)
        algorithm.stop()
    finally:
        ray.shutdown()


def actor_answers(actor: ray.actor.ActorHandle) -> bool:
    """Whether an actor is there."""
    try:
        return bool(ray.get(actor.ping.remote(), timeout=10) == "pong")
    except ray.exceptions.RayError:
        return False


def assert_on_gpus(algorithm: EpisodeAlgorithm, trace: Trace, machines: list[Any], share: float, actors: int) -> None:
    """Holds that all actors train, on these machines, and none of their GPUs serves more than it can."""
    workers: set[tuple[int, str, str | None]] = set()
    for _ in range(20):  # one that came back may miss an iteration, since the others play what it owes
        algorithm.train()
        workers |= {(step.runner, step.node, step.gpu) for step in trace.take()}
        if len({runner for runner, _, _ in workers}) == actors:
            break
    assert len(workers) == len({runner for runner, _, _ in workers}) == actors
    per_gpu = Counter((node, gpu) for _, node, gpu in workers)
    assert {node for node, _ in per_gpu} == {machine.node_id for machine in machines}
    assert all(gpu is not None and count * share <= 1.0 for (_, gpu), count in per_gpu.items())


def test_an_actor_that_moves_to_another_machine_goes_on_with_the_host_that_the_lost_one_had(
    cluster: Cluster, machines: Callable[..., Any], tmp_path: Path
) -> None:
    nodes = {node.node_id: node for node in (machines(num_cpus=1), machines(num_cpus=1))}
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        trace = Trace(tmp_path)
        undisturbed = trace.build(Placement(0, 1, 0.0))
        undisturbed.train()
        trace.take()
        algorithm = trace.build(Placement(1, 1, 0.0), checkpoints=True, lost_at=LOST_AT, how="waits")
        killer = threading.Thread(target=kill_when_waited_for, args=(cluster, nodes, trace.marker))
        killer.start()
        algorithm.train()
        killer.join()
        epochs = trace.take()
        died_on = trace.marker.read_text()
        (moved_to,) = nodes.keys() - {died_on}
        first = [(step.node, step.epoch) for step in epochs if step.number == 0]
        before = [(died_on, epoch) for epoch in range(1, LOST_AT)]
        assert first == before + [(moved_to, epoch) for epoch in range(LOST_AT - 1, TASK.max_epochs + 1)]
        assert algorithm.losses == {"died": 1, "raised": 0, "hung": 0}
        assert rows(algorithm) == rows(undisturbed)
        assert_same_weights(weights(algorithm), weights(undisturbed))
        algorithm.stop()
        undisturbed.stop()
    finally:
        ray.shutdown()


def kill_when_waited_for(cluster: Cluster, nodes: Mapping[str, Any], marker: Path) -> None:
    """Lets the machine die on which an actor says that it waits for that."""
    wait_for(lambda: marker.exists() and bool(marker.read_text()), 120)
    cluster.remove_node(nodes[marker.read_text()], allow_graceful=False)
