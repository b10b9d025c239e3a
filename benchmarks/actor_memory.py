"""Memory of an actor: what it needs of its own beyond torch and Ray, and that all actors share one copy of the data.

Usage: python benchmarks/actor_memory.py [TASK ...] [--hosts K ...] [--episodes N] [--set KEY=VALUE ...] [--json FILE]

Two actors of each kind play whole episodes in which seeds come and go at random, beside two that have only imported
torch and the parts of RLlib that an actor uses. What counts is USS, the pages that no other process has: libraries and
the data set are shared, and PSS gives each process its part of them.
"""

import argparse
import ctypes
import gc
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import ray
from figures import figures_file, positive, write_figures
from rich.console import Console
from rich.table import Table

from esper_ray.data.cache import cache_folder
from esper_ray.errors import EsperError
from esper_ray.orchestration.config import LearnerSettings, TaskChoice
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.tickets import assign
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.learner_config import Learning, build_algorithm
from esper_ray.policies import RandomPolicy
from esper_ray.tasks import get_task_spec

RUNNERS = 2
GOAL_MB = 60
IMPORTED = ("torch", "gymnasium", "ray.rllib.env.single_agent_env_runner", "ray.rllib.algorithms.appo")

Figures = dict[str, float]


def memory(*_: Any) -> Figures:
    """Returns USS and PSS of this process, MB, and of the mapped data set the pages in memory, its part and its own."""
    found = psutil.Process().memory_full_info()
    figures = {"uss": found.uss / 1e6, "pss": found.pss / 1e6, "data": 0.0, "data_part": 0.0, "data_own": 0.0}
    for region in psutil.Process().memory_maps():
        if Path(region.path).is_relative_to(cache_folder()):
            figures["data"] += region.rss / 1e6
            figures["data_part"] += region.pss / 1e6
            figures["data_own"] += region.private_dirty / 1e6
    return figures


def trimmed_memory(*_: Any) -> Figures:
    """Returns the figures of `memory` after everything that is free was given back: what is left is in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory()


@ray.remote(num_cpus=0)
class Baseline:
    """An actor that has imported what every actor of RLlib needs, and does nothing."""

    def __init__(self) -> None:
        for module in IMPORTED:
            importlib.import_module(module)

    def memory(self) -> Figures:
        """Returns what it takes."""
        return memory()


def measured(task: str, hosts: int, episodes: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of actors that train `hosts` hosts each: after their start, an epoch, and some episodes."""
    spec = get_task_spec(task, changes)
    learning = Learning(LearnerSettings(), iterations=1, episodes_per_iteration=RUNNERS * hosts, seed=0)
    baselines = [Baseline.remote() for _ in range(RUNNERS)]  # type: ignore[attr-defined]
    algorithm = build_algorithm(ActorSettings(spec), learning, Placement(RUNNERS, 1, 0.0, hosts))
    try:
        baseline = mean(ray.get([actor.memory.remote() for actor in baselines]))
        found = {"baseline": baseline, "started": mean(asked(algorithm, memory))}
        algorithm.ask_all("worker_info")
        found["an epoch"] = mean(asked(algorithm, memory))
        algorithm.play_scripted(assign(RUNNERS * hosts * episodes, RUNNERS, 0, base_seed=0), RandomPolicy())
        found["episodes"] = mean(asked(algorithm, memory))
        found["in use"] = mean(asked(algorithm, trimmed_memory))
    finally:
        algorithm.stop()
        for actor in baselines:
            ray.kill(actor)
    return {"name": f"{task}, {hosts} hosts", "task": task, "hosts": hosts, **found}


def asked(algorithm: EpisodeAlgorithm, function: Callable[..., Figures]) -> list[Figures]:
    """Calls a function inside every actor."""
    actors = algorithm.env_runner_group._worker_manager.actors().values()
    return list(ray.get([actor.apply.remote(function) for actor in actors]))


def mean(figures: Sequence[Figures]) -> Figures:
    """Returns the mean of each figure."""
    return {name: fmean(each[name] for each in figures) for name in figures[0]}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns the figures in MB, a row for each kind of actor."""
    beyond = ("started", "an epoch", "episodes", "in use")
    names = ["task", "hosts", "baseline", "actor", *[f"beyond it: {name}" for name in beyond]]
    shown = Table(*names, "actor PSS", "data mapped", "its part", "copied", title="USS of an actor, MB")
    for row in rows:
        uss = {name: row[name]["uss"] for name in ("baseline", *beyond)}
        last = row["episodes"]
        figures = [uss["baseline"], uss["episodes"], *[uss[name] - uss["baseline"] for name in beyond]]
        figures += [last[name] for name in ("pss", "data", "data_part", "data_own")]
        shown.add_row(row["task"], str(row["hosts"]), *[f"{figure:.1f}" for figure in figures])
    shown.caption = f"goal on digits with one host: at most {GOAL_MB} MB beyond the baseline"
    return shown


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["digits"], metavar="TASK", help="tasks to measure (digits)")
    parser.add_argument("--hosts", type=positive, nargs="+", default=[1], help="hosts that an actor trains at a time")
    parser.add_argument("--episodes", type=positive, default=2, help="episodes per host")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="task settings to change")
    parser.add_argument("--json", type=figures_file, metavar="FILE", help="where the figures are written")
    arguments = parser.parse_args()
    try:
        changes = TaskChoice(set=tuple(arguments.set)).task_overrides()
        for task in arguments.tasks:
            get_task_spec(task, changes)
        with local_ray(num_cpus=RUNNERS):
            rows = [
                measured(task, hosts, arguments.episodes, changes)
                for task in arguments.tasks
                for hosts in arguments.hosts
            ]
    except EsperError as error:
        parser.error(" ".join(str(error).split()))
    Console(width=180, highlight=False).print(table(rows))
    if arguments.json is not None:
        write_figures(arguments.json, rows)


if __name__ == "__main__":
    main()
