"""Measures how fast hosts train, task by task, and where the time goes; a table, and everything as JSON beside it.

Usage: python benchmarks/host_epochs.py [TASK ...] [--episodes N] [--json FILE] [--compare OLD]

Real actors play real episodes with a policy that has learned nothing yet, so that seeds come and go. In the same run
each core's float32 matrix product is timed: with the operations that forward and backward pass of an image need,
counted by torch, that gives the arithmetic limit.

without seeds   host epochs/s of the machine while all actors train and validate hosts without seeds and do nothing else
samples/s       of an actor while it trains such hosts
of the limit    share of what a core's matrix products would allow
counterfactual  validation with the counterfactual of a large seed, as a multiple of validation alone
statistics      an epoch with gradient statistics, as a multiple of one without
memory          of an actor that nobody shares, beyond that of a process that has imported torch and RLlib
train … idle    shares of the wall time of an actor; idle is waiting for the others and the policy's update
"""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import made_up_images
import psutil
import ray
import torch
from figures import Row, earlier_figures, figures_file, positive, with_ratio, write_figures
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper_ray.errors import DatasetError
from esper_ray.models.blueprints import registered_blueprints
from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.env_runner import EpisodeRunner, PlayedEpisode
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.learner_config import Learning, algorithm_class, build_config
from esper_ray.tasks import TaskSpec, create_model, get_task_spec, load_task_data
from esper_ray.training import _train_one_epoch, build_optimizer, evaluate, lockstep
from esper_ray.training import epoch as epoch_module
from esper_ray.training.work import EvaluationWork

RUNNERS = 2
PHASES = ("train", "validate", "counterfactual", "decision", "RLlib", "idle")
_MATRIX, _PRODUCTS, _PAIRS = 1024, 20, 5
_QUICK_LIFE = {
    **{"lifecycle.training_dwell": 1, "lifecycle.blending_steps": 3, "lifecycle.shadowing_dwell": 1},
    **{"decisions.min_germination_epoch": 1, "decisions.min_plateau": 0, "decisions.require_stabilised": False},
}


@dataclass(frozen=True)
class Work:
    """A case to measure: a task, how many hosts an actor trains at a time, and changes to the task."""

    task: str
    hosts: int = 1
    episodes: int = 1
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its row."""
        return self.task if self.hosts == 1 else f"{self.task}, {self.hosts} hosts"

    def spec(self) -> TaskSpec:
        """Returns the task."""
        return get_task_spec(self.task, self.changes)


WORKS = (
    Work("digits", episodes=64),
    Work("digits", hosts=32, episodes=2),
    Work("fashion_mnist", episodes=2),
    Work("weak_cnn", changes={"max_epochs": 9, **_QUICK_LIFE}),
    Work("pydoc", changes={"max_epochs": 9, **_QUICK_LIFE}),
    Work("cifar10", changes={"max_epochs": 9, **_QUICK_LIFE}),
    Work("tinystories", changes={"max_epochs": 9, **_QUICK_LIFE}),
)


class TimedRunner(EpisodeRunner):
    """An actor that says what it spent its time on."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._seconds: Counter[str] = Counter()
        if self.env is None:  # the driver's own, which plays nothing
            return
        lockstep._do_group = self._timing_work(lockstep._do_group)
        self.env.unwrapped.step = self._timing_step(self.env.unwrapped.step)
        self.env.unwrapped.reset = self._timing_step(self.env.unwrapped.reset)

    def play(self, *arguments: Any) -> list[PlayedEpisode]:
        """Plays episodes."""
        with self._phase("play"):
            return super().play(*arguments)

    def _timing_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self._phase("step"):
                return function(*arguments, **named)

        return timed

    def _timing_work(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(works: Any, kinds: Any) -> Any:
            evaluates = isinstance(works[0], EvaluationWork)
            with_seed = [w for w in works if evaluates and (w.forced_alpha or w.model.seed_slot.alpha) > 0]
            phase = "paired" if with_seed else "validate" if evaluates else "train"
            self._seconds["host epochs"] += 0 if evaluates else len(works)
            with self._phase(phase):
                return function(works, kinds)

        return timed

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def take_times(self) -> dict[str, float]:
        """Returns the seconds of each phase since the last time, and the memory that is this process's own."""
        found = dict(self._seconds)
        self._seconds.clear()
        return {**found, "memory": own_memory()}

    def time_products(self) -> float:
        """Returns float32 operations per second of matrix products on this actor's threads."""
        a = torch.randn(_MATRIX, _MATRIX)
        rates = []
        for _ in range(_PRODUCTS):
            started = time.perf_counter()
            _ = a @ a
            rates.append(2 * _MATRIX**3 / (time.perf_counter() - started))
        return max(rates)


def own_memory() -> int:
    """Returns the bytes that would be free if this process ended."""
    return int(psutil.Process().memory_full_info().uss)


@ray.remote
class Importer:
    """An actor that does nothing: what torch and RLlib need by themselves."""

    def memory(self) -> int:
        """Returns its own memory after it has imported them."""
        assert SingleAgentEnvRunner is not None and torch is not None
        return own_memory()


def measure(work: Work) -> Row:
    """Plays an iteration and returns what it took.

    Raises:
        DatasetError: the data set is not here.
    """
    task = work.spec()
    load_task_data(task)
    plugins = (made_up_images.__name__,) if task.name == "weak_cnn" else ()
    episodes = RUNNERS * work.hosts * work.episodes
    with local_ray(num_cpus=RUNNERS + 1, plugins=plugins):
        bare = ray.get(Importer.remote().memory.remote())
        learning = Learning(LearnerSettings(), iterations=10, episodes_per_iteration=episodes, seed=0)
        config = build_config(ActorSettings(task, plugins=plugins), learning, Placement(RUNNERS, 1, 0.0, work.hosts))
        algorithm = algorithm_class("ppo")(config=config.env_runners(env_runner_cls=TimedRunner))
        try:
            algorithm.ask_all("worker_info")
            limit = fmean(algorithm.ask_all("time_products"))
            algorithm.ask_all("take_times")
            algorithm.ask_all("worker_info")
            without_seeds = algorithm.ask_all("take_times")
            started = time.perf_counter()
            algorithm.train()
            wall = time.perf_counter() - started
            actors = algorithm.ask_all("take_times")
        finally:
            algorithm.stop()
    return {"name": work.name, **speed(task, without_seeds, limit), **summary(task, actors, wall, bare)}


def speed(task: TaskSpec, actors: list[dict[str, float]], limit: float) -> dict[str, Any]:
    """Returns how fast hosts without seeds are trained, on all actors at once, while nothing else happens."""
    samples, operations = load_task_data(task).train.samples, operations_per_sample(task)
    rate = fmean(actor["host epochs"] * samples / actor["train"] for actor in actors)
    return {
        "host_epochs_per_second_without_seeds": sum(a["host epochs"] / (a["train"] + a["validate"]) for a in actors),
        "samples_per_second_of_actor": rate,
        "operations_per_sample": operations,
        "operations_per_second_limit": limit,
        "share_of_limit": rate * operations / limit,
    }


def summary(task: TaskSpec, actors: list[dict[str, float]], wall: float, bare: int) -> dict[str, Any]:
    """Returns what became of an iteration's time."""
    cost = counterfactual_cost(task)
    seconds = {
        name: fmean(actor.get(name, 0.0) for actor in actors)
        for name in ("train", "validate", "paired", "step", "play")
    }
    counterfactual = seconds["paired"] * (1 - 1 / cost)
    epochs = sum(actor["host epochs"] for actor in actors)
    return {
        "host_epochs_per_second": epochs / wall,
        "host_epochs_per_second_of_actor": epochs / wall / len(actors),
        "episodes_per_minute": 60 * epochs / task.max_epochs / wall,
        "counterfactual_cost": cost,
        "statistics_cost": statistics_cost(task),
        "memory_beyond_imports": (max(actor["memory"] for actor in actors) - bare) / 1e6,
        "phases": {
            "train": seconds["train"] / wall,
            "validate": (seconds["validate"] + seconds["paired"] - counterfactual) / wall,
            "counterfactual": counterfactual / wall,
            "decision": (seconds["step"] - seconds["train"] - seconds["validate"] - seconds["paired"]) / wall,
            "RLlib": (seconds["play"] - seconds["step"]) / wall,
            "idle": 1 - seconds["play"] / wall,
        },
    }


def operations_per_sample(task: TaskSpec) -> float:
    """Returns the float operations of a host's forward and backward pass, for one sample or token sequence.

    They are counted where nothing is computed: not the more that a CPU does in ways of its own, and attention as well,
    which torch does not count there.
    """
    data, model = load_task_data(task), create_model(task).to("meta")
    inputs, targets = (tensor.to("meta") for tensor in next(iter(data.train)))
    with FlopCounterMode(display=False) as counter:
        logits = model(inputs)
        nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    return counter.get_total_flops() / len(inputs)


def counterfactual_cost(task: TaskSpec) -> float:
    """Returns the time of validation with the counterfactual, as a multiple of that without, for the largest seed."""
    torch.set_num_threads(1)
    data, model = load_task_data(task), create_model(task)
    blueprint = "conv_heavy" if model.seed_slot.topology == "cnn" else "mlp"
    model.seed_slot.place_fossil(blueprint, "seed")
    criterion, slot = nn.CrossEntropyLoss(), model.seed_slot

    def seconds(alpha: float, paired: bool) -> float:
        assert slot.state is not None
        slot.state.alpha = alpha
        started = time.perf_counter()
        if paired:
            evaluate(model, data.validation, criterion, "cpu", task.task_type)
        else:
            with torch.inference_mode():
                for inputs, targets in data.validation:
                    logits = model(inputs).flatten(0, -2)
                    criterion(logits, targets.flatten()), (logits.argmax(1) == targets.flatten()).sum()
        return time.perf_counter() - started

    model.eval()
    seconds(0.5, True)
    return median(seconds(0.5, True) / seconds(0.5, False) for _ in range(_PAIRS))


def statistics_cost(task: TaskSpec) -> float:
    """Returns the time of an epoch with gradient statistics, as a multiple of that without, while a seed blends in.

    They are taken once, behind the last batch: a difference of two epochs would be noise, so they are timed by
    themselves.
    """
    torch.set_num_threads(1)
    data, model = load_task_data(task), create_model(task)
    model.germinate_seed(registered_blueprints(model.seed_slot.topology)[0], "seed")
    optimizers = [
        build_optimizer(parameters, settings)
        for parameters, settings in (
            (model.get_host_parameters(), task.host_optimizer),
            (model.get_seed_parameters(), task.seed_optimizer),
        )
    ]

    def epoch() -> None:
        _train_one_epoch(model, data.train, nn.CrossEntropyLoss(), *optimizers, "cpu", task.task_type)

    epoch()
    return 1 + median(timed(lambda: epoch_module._gradient_stats(model)) / timed(epoch) for _ in range(_PAIRS))


def timed(work: Callable[[], Any]) -> float:
    """Returns the seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


_COLUMNS = {
    "host_epochs_per_second": ("host epochs/s", "{:.3g}"),
    "host_epochs_per_second_of_actor": ("of an actor", "{:.3g}"),
    "episodes_per_minute": ("episodes/min", "{:.3g}"),
    "host_epochs_per_second_without_seeds": ("without seeds", "{:.3g}"),
    "samples_per_second_of_actor": ("samples/s", "{:,.0f}"),
    "share_of_limit": ("of the limit", "{:.0%}"),
    "counterfactual_cost": ("counterfactual", "×{:.2f}"),
    "statistics_cost": ("statistics", "×{:.3f}"),
    "memory_beyond_imports": ("memory", "{:.0f} MB"),
}


def show(rows: Sequence[Row], before: Mapping[str, Row]) -> None:
    """Prints the table; behind a figure its ratio to that of `before`, by row name."""
    table = Table("task", *(title for title, _ in _COLUMNS.values()), *PHASES)
    for row in rows:
        measured = (with_ratio(form.format(row[name]), row, name, before) for name, (_, form) in _COLUMNS.items())
        table.add_row(row["name"], *measured, *(f"{row['phases'][phase]:.1%}" for phase in PHASES))
    Console(width=240).print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(work.task for work in WORKS))
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"only these: {', '.join(names)}")
    parser.add_argument("--episodes", type=positive, metavar="N", help="of each host, whatever the task")
    parser.add_argument("--json", type=figures_file, metavar="FILE", help="where the figures are written")
    parser.add_argument("--compare", type=earlier_figures, default={}, metavar="OLD", help="such a file, for ratios")
    given = parser.parse_args()
    for name in given.tasks:
        if name not in names:
            parser.error(f"{name}: expected one of {', '.join(names)}")
    warnings.filterwarnings("ignore", ".*Overriding environment")  # of the row before
    rows = []
    for work in WORKS:
        if not given.tasks or work.task in given.tasks:
            try:
                rows.append(measure(replace(work, episodes=given.episodes or work.episodes)))
            except DatasetError as error:
                print(f"{work.name}: not measured: {error}")
    show(rows, given.compare)
    if given.json:
        write_figures(given.json, rows)


if __name__ == "__main__":
    main()
