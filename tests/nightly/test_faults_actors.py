"""Actors killed again and again, one that eats up the memory, and sixty-four of them: nothing is counted twice."""

import json
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import FakeHostEnv
from learners import build
from lost_actors import assert_one_loss_changes_nothing

from esper_ray.cli.train import summary
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.tickets import assign
from esper_ray.orchestration.run.train import train
from esper_ray.orchestration.tuning.trial import QuietObserver

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.faults

KILLS = 10


class Killer(QuietObserver):
    """Kills an actor in the middle of an episode, at a random moment of each of the first iterations."""

    def __init__(self) -> None:
        self.killed: list[int] = []
        self._random = random.Random(0)

    def on_start(self, run: Any, board: Any) -> None:
        """The actors are up."""
        self._begin()

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """An iteration is over."""
        self._thread.join()
        if len(self.killed) < KILLS:
            self._begin()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._kill_one)
        self._thread.start()

    def _kill_one(self) -> None:
        time.sleep(self._random.uniform(0, 0.3))
        while not (playing := playing_actors()):
            time.sleep(0.005)
        victim = self._random.choice(playing)
        os.kill(victim, signal.SIGKILL)
        self.killed.append(victim)


def playing_actors() -> list[int]:
    """Returns the process ids of the actors that play an episode for the learner at this moment."""
    mine = psutil.Process().children(recursive=True)
    return [process.pid for process in mine if _title(process) == "ray::EpisodeRunner.play"]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("nothing_left_behind")
def test_ten_kills_cost_time_and_nothing_else(tmp_path: Path) -> None:
    """All iterations, every episode once, the losses stated, and every number that of a run that nobody disturbed."""
    found = {}
    for name in ("undisturbed", "disturbed"):
        config = TrainConfig(
            iterations=KILLS + 1,
            episodes_per_iteration=4,
            runners=2,
            wait_only_episodes=2,
            max_epochs=12,
            keep_hosts=0,
            out=tmp_path / name,
        )
        observer = Killer() if name == "disturbed" else QuietObserver()
        result = train(config, observer)
        assert result.iterations == KILLS + 1
        episodes = [json.loads(line) for line in (tmp_path / name / "episodes.jsonl").read_text().splitlines()]
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["iteration"] for row in metrics] == list(range(1, KILLS + 2))
        for row in episodes:
            del row["seconds"]
        found[name] = (episodes, [row["learner"] for row in metrics])
        lost = json.loads((tmp_path / name / "summary.json").read_text())["actors_lost"]
        told = "\n".join(summary(result))
        if isinstance(observer, Killer):
            assert len(observer.killed) == KILLS
            assert lost == metrics[-1]["actors_lost"] == {"died": KILLS, "raised": 0, "hung": 0}
            assert f"Actors lost and replaced: {KILLS} died; their episodes were played again." in told
        else:
            assert sum(lost.values()) == 0
            assert "lost" not in told
    played = [(row["runner"], row["number"]) for row in found["disturbed"][0]]
    tickets = [ticket for number in range(KILLS + 1) for ticket in assign(4, 2, number, base_seed=0)]
    assert played == [(ticket.runner, ticket.number) for ticket in tickets]
    assert found["disturbed"] == found["undisturbed"]


@pytest.mark.usefixtures("session_ray")
def test_an_actor_of_two_hosts_that_hangs_is_replaced_when_its_time_is_over(tmp_path: Path) -> None:
    """It would hang for five minutes; nobody waits longer than the timeout, and the start of another actor."""
    assert assert_one_loss_changes_nothing(tmp_path, "hang", "hung", timeout_s=5, hosts=2) < 120


@pytest.mark.usefixtures("nothing_left_behind")
def test_an_actor_that_eats_up_the_memory_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own monitor ends it, at a threshold that is a little above what is used now."""
    used = psutil.virtual_memory()
    if used.available < 10e9:
        pytest.skip("needs 10 GB of free memory, to have some in hand when it eats up 5")
    threshold = (used.total - used.available + 5e9) / used.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    with local_ray(num_cpus=2):
        assert_one_loss_changes_nothing(tmp_path, "allocate", "died", timeout_s=100)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("nothing_left_behind")
def test_sixty_four_actors_of_fake_hosts_are_all_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a cost of less than 15 ms of the driver's time for an episode."""
    actors, iterations = 64, 3
    if psutil.virtual_memory().available < 21e9:
        pytest.skip("64 actors need 21 GB of free memory")
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.99")  # they fill a machine of 24 GB to 95 %
    with local_ray(num_cpus=actors):
        algorithm = build(actors, 2 * actors, env=FakeHostEnv)
        try:
            sizes = [seat.memory for seat in algorithm.ask_all("worker_info")]
            assert len(sizes) == actors
            assert max(sizes) < 1e9
            tickets, driver_seconds = [], 0.0
            for _ in range(iterations):
                before = time.process_time()
                algorithm.train()
                driver_seconds += time.process_time() - before
                tickets += [episode.ticket for episode in algorithm.episodes]
            expected = [t for number in range(iterations) for t in assign(2 * actors, actors, number, base_seed=3)]
            assert tickets == expected
            assert sum(algorithm.losses.values()) == 0
        finally:
            algorithm.stop()
    each = driver_seconds / len(tickets)
    logger.warning("%.1f ms of driver time for an episode, at most %.0f MB for an actor", 1000 * each, max(sizes) / 1e6)
    assert each < 0.015
