"""Algorithms on real actors, and what tests look at of them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from fast_tasks import make_fast_task

from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorEnv, ActorEnvs, ActorSettings
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.learner_config import Learning, algorithm_class, build_config

TASK = make_fast_task()


def build(
    runners: int,
    episodes: int,
    env: type[ActorEnv] = ActorEnv,
    policy: Literal["mlp", "lstm"] = "mlp",
    learner: Literal["ppo", "appo"] = "ppo",
    minibatch: int = 32,
    sample_timeout_s: float | None = None,
    hosts: int = 1,
    **more_env_config: Any,
) -> EpisodeAlgorithm:
    """Builds actors on the Ray that runs, and a learner. What is left over is told to the environment."""
    settings = LearnerSettings(minibatch_size=minibatch, update_epochs=2, hidden=(16,), lstm_width=8)
    learning = Learning(settings, 4, episodes, seed=3, learner=learner, policy=policy)
    config = build_config(ActorSettings(TASK), learning, Placement(runners, 1, 0.0, hosts))
    config.environment(ActorEnvs.of(env), env_config={**config.env_config, **more_env_config})
    config.env_runners(sample_timeout_s=sample_timeout_s)
    return algorithm_class(learner)(config=config)


def rows(algorithm: EpisodeAlgorithm) -> list[dict[str, Any]]:
    """Returns the episodes of the last iteration as they are written down, without the wall time."""
    found = []
    for episode in algorithm.episodes:
        row = episode.record.as_row() | {"runner": episode.ticket.runner, "number": episode.ticket.number}
        row.pop("seconds")
        found.append(row)
    return found


def weights(algorithm: EpisodeAlgorithm) -> dict[str, np.ndarray]:
    """Returns a copy of the learner's weights."""
    return {name: tensor.numpy(force=True).copy() for name, tensor in algorithm.policy_network.state_dict().items()}


def weights_of_the_actors(algorithm: EpisodeAlgorithm) -> list[dict[str, np.ndarray]]:
    """Returns every tensor of every actor's network, at the end of what it plays."""
    actors = algorithm.env_runner_group._worker_manager.actors().values()
    states = [state["rl_module"] for state in ray.get([a.get_state.remote(components="rl_module") for a in actors])]
    assert all(states)
    return states


def differ(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Returns whether two networks differ in a tensor that both have; an actor has not all of the learner's."""
    return any(not np.array_equal(some[name], others[name]) for name in some.keys() & others.keys())


def assert_same_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Asserts that two networks are equal to the last bit."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert np.array_equal(found[name], weight), name


def assert_a_new_run_begins_with_its_policy_alone(folder: Path, runners: int, learner: Literal["ppo", "appo"]) -> None:
    """Holds that a run from another one's checkpoint has its weights, and neither its optimizer nor its episodes."""

    def policy(algorithm: EpisodeAlgorithm) -> dict[str, np.ndarray]:
        return {name: value for name, value in weights(algorithm).items() if "_old_" not in name}  # APPO's target

    algorithm = build(runners, 2, learner=learner)
    try:
        algorithm.train()
        algorithm.write_checkpoint(folder)
        saved = policy(algorithm)
    finally:
        algorithm.stop()
    new = build(runners, 2, learner=learner)
    try:
        new.warm_start(folder)
        assert new.iteration == 0
        assert_same_weights(policy(new), saved)
        assert not new._optimizer.state_dict()["state"]
        new.train()
        assert [row["number"] for row in rows(new)] == [0, 1]
    finally:
        new.stop()
