"""Environments in several threads of one process play what they play one after another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from fast_tasks import make_fast_task, make_fast_text_task

from esper_ray.episode import EpisodeRecord, MorphogenesisEnv
from esper_ray.episode.lockstep_envs import LockstepEnvs
from esper_ray.episode.rollout import play_episode, play_episodes
from esper_ray.policies import HeuristicPolicy
from esper_ray.seeding import forked_generators, seeded, seeded_globally
from esper_ray.tasks import TaskSpec

THREADS, EPISODES = 2, 3


def in_threads(work: Callable[[int], object]) -> list[object]:
    """What `work` returns for 0 to THREADS − 1, all at the same time."""
    together = Barrier(THREADS)

    def begin(place: int) -> object:
        together.wait()
        return work(place)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def measured(record: EpisodeRecord) -> dict[str, object]:
    return {**record.as_row(), "seconds": None}


@pytest.mark.parametrize("make_task", [make_fast_task, make_fast_text_task])
def test_environments_in_threads_play_as_one_after_another(make_task: Callable[..., TaskSpec]) -> None:
    """A text's host drops out features, so it draws in every batch."""
    dropout = {"host__dropout": 0.1} if make_task is make_fast_text_task else {}
    task = make_task(**dropout)

    def play(place: int) -> list[dict[str, object]]:
        env = MorphogenesisEnv(task)
        policy = HeuristicPolicy.of(task, env.action_table)
        return [measured(play_episode(env, policy, 10 * place + episode)) for episode in range(EPISODES)]

    state = torch.get_rng_state()
    serial = [play(place) for place in range(THREADS)]
    assert in_threads(play) == serial
    assert torch.equal(torch.get_rng_state(), state)


def test_hosts_in_lockstep_in_threads_are_trained_as_one_after_another() -> None:
    task = make_fast_task()

    def play(place: int) -> list[dict[str, object]]:
        envs = [MorphogenesisEnv(task) for _ in range(2)]
        policies = [HeuristicPolicy.of(task, env.action_table) for env in envs]
        found = []
        for episode in range(EPISODES):
            seeds = [100 * place + 10 * host + episode for host in range(2)]
            records = play_episodes(LockstepEnvs(envs), policies, seeds)
            found += [measured(record) for record in records if isinstance(record, EpisodeRecord)]
        return found

    serial = [play(place) for place in range(THREADS)]
    assert [len(found) for found in serial] == [2 * EPISODES] * THREADS
    assert in_threads(play) == serial


@pytest.mark.parametrize("kind", ["seeded", "forked", "global"])
def test_what_draws_from_the_global_generators_has_them_to_itself(kind: str) -> None:
    def draw(place: int) -> list[float]:
        found = []
        for seed in range(20 * place, 20 * place + 20):
            with seeded_globally(seed) if kind == "global" else seeded(seed):
                for _ in range(50):
                    if kind == "forked":
                        with forked_generators():
                            torch.rand(1)
                    found += [torch.rand(1000).sum().item(), np.random.random() if kind == "global" else 0.0]
        return found

    serial = [draw(place) for place in range(THREADS)]
    assert in_threads(draw) == serial
