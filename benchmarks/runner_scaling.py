"""Host epochs per second of one runner and of two, one thread each, on the same wait-only episodes of `digits`.

Usage: python benchmarks/runner_scaling.py [--episodes N] [--rounds N]

Both sizes run in one Ray session, taking turns, so that a machine that speeds up or slows down does so for both. Each
round prints its ratio; the last line is the median.
"""

import argparse
import time
from statistics import median

from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.tickets import assign
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.learner_config import Learning, build_algorithm
from esper_ray.policies import WaitPolicy
from esper_ray.tasks import get_task_spec

TASK = get_task_spec("digits")


def host_epochs_per_second(algorithm: EpisodeAlgorithm, runners: int, episodes_each: int, round_number: int) -> float:
    """Plays `episodes_each` episodes on each of the first `runners` actors and returns the rate over all of them."""
    tickets = assign(runners * episodes_each, runners, round_number, base_seed=0)
    started = time.perf_counter()
    algorithm.play_scripted(tickets, WaitPolicy())
    return len(tickets) * TASK.max_epochs / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=12, help="episodes per runner and round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of one and two runners in turn")
    arguments = parser.parse_args()
    with local_ray():
        learning = Learning(LearnerSettings(), iterations=1, episodes_per_iteration=2, seed=0)
        algorithm = build_algorithm(ActorSettings(TASK), learning, Placement(2, 1, 0.0))
        try:
            host_epochs_per_second(algorithm, 2, 1, 0)
            ratios = []
            for round_number in range(1, arguments.rounds + 1):
                one, two = (
                    host_epochs_per_second(algorithm, runners, arguments.episodes, round_number) for runners in (1, 2)
                )
                ratios.append(two / one)
                rates = f"1 runner {one:6.1f}, 2 runners {two:6.1f}"
                rates = f"1 runner {one:6.1f}, 2 runners {two:6.1f}"
                print(f"round {round_number}: host epochs/s with {rates}, ratio {two / one:.2f}")
        finally:
            algorithm.stop()
    print(f"median ratio {median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
