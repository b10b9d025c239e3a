"""Host epochs per second of PPO and of APPO where one of two runners is four times slower than the other.

Usage: python benchmarks/unequal_runners.py [--iterations N] [--rounds N]

Both learners play small real hosts of `digits`, with a pause after each epoch that makes one runner's epochs four times
as long as the other's. They take turns, so that a machine that speeds up or slows down does so for both. Each round
prints its ratio; the last line is the median.
"""

import argparse
import time
from statistics import median
from typing import Any, Literal

from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorEnv, ActorEnvs, ActorSettings
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.learner_config import Learning, algorithm_class, build_config
from esper_ray.tasks import get_task_spec

TASK = get_task_spec("digits", {"data.train_samples": 64, "data.validation_samples": 50, "host.base_channels": 2})
EPISODES = 8
EPOCH_SECONDS = 0.02


class UnequalEnv(ActorEnv):
    """An environment whose epochs take a fixed time, on the first runner four times as long."""

    def step_steps(self, action: Any) -> Any:
        """Steps, then waits for the rest of the time."""
        started = time.perf_counter()
        result = yield from super().step_steps(action)
        seconds = EPOCH_SECONDS * (4 if self.ticket.runner == 1 else 1)
        time.sleep(max(0.0, seconds - (time.perf_counter() - started)))
        return result


def build(learner: Literal["ppo", "appo"]) -> EpisodeAlgorithm:
    """Builds two actors and a learner, and lets them warm up."""
    learning = Learning(LearnerSettings(), iterations=100, episodes_per_iteration=EPISODES, seed=0, learner=learner)
    config = build_config(ActorSettings(TASK), learning, Placement(2, 1, 0.0))
    algorithm = algorithm_class(learner)(config=config.environment(ActorEnvs.of(UnequalEnv)))
    algorithm.train()
    return algorithm


def host_epochs_per_second(algorithm: EpisodeAlgorithm, iterations: int) -> float:
    """Returns the rate over so many iterations, the learner's updates included."""
    started = time.perf_counter()
    for _ in range(iterations):
        algorithm.train()
    return iterations * EPISODES * TASK.max_epochs / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=4, help="iterations per learner and round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of PPO and APPO in turn")
    arguments = parser.parse_args()
    ratios = []
    for round_number in range(1, arguments.rounds + 1):
        rates = {}
        for learner in ("ppo", "appo"):
            with local_ray(num_cpus=2):
                algorithm = build(learner)
                try:
                    rates[learner] = host_epochs_per_second(algorithm, arguments.iterations)
                finally:
                    algorithm.stop()
        ratios.append(rates["appo"] / rates["ppo"])
        print(
            f"round {round_number}: host epochs/s with PPO {rates['ppo']:.1f}, with APPO {rates['appo']:.1f}, "
            f"ratio {ratios[-1]:.2f}"
        )
    print(f"median ratio {median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
