"""Measures the cost of the orchestration alone: hosts whose epoch is a pause, one to hundreds of actors, one learner.

Usage: python benchmarks/orchestration.py [--actors 1,4,16,64,256] [--epoch-seconds S] [--json FILE] [--compare OLD]

The driver is the real one: dispatcher, tickets, weights, RLlib's metrics, and PPO updates on the rollouts of `digits`
episodes. The table says who played:

real    actors as a run has them, each a process with torch and RLlib (0.3 GB and 4 s of CPU time to start); slot,
        stages, observations and decisions are real.
light   calls to a few processes, each the place of up to 64 actors. They pause for as long as an episode takes and
        return one of eight that were played before. As many calls are under way, and as much comes back, as with real
        actors; what is missing is the connections to as many processes, and the actors' own work between epochs.
        Where both were tried, with 16 actors, the driver's time of a light row was a third below the real one's.

driver    CPU time of the driver's process without the learner's, all threads, ÷ episodes.
learner   wall time of the policy update, which is in the driver's process.
idle      1 − time inside epochs ÷ (actors × wall time): waiting for tickets, the other actors and the learner; of real
          actors also their own work between epochs.
"""

import argparse
import copy
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

import ray
import torch
from figures import Row, earlier_figures, figures_file, positive, whole, with_ratio, write_figures
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from rich.console import Console
from rich.table import Table

from esper_ray.episode.host_run import Beginning, HostRun
from esper_ray.episode.signals import EpochOutcome
from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorEnv, ActorEnvs, ActorSettings
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.orchestration.fleet.dispatch import Dispatcher
from esper_ray.orchestration.fleet.env_runner import PlayedEpisode, Weights
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.tickets import Ticket, assign, assign_number
from esper_ray.orchestration.learner.episode_ppo import EpisodePPO
from esper_ray.orchestration.learner.learner_config import Learning, build_config
from esper_ray.tasks import get_task_spec
from esper_ray.training import Steps

TASK = get_task_spec("digits")
_SEED = 0
_PREPARED = 8
_LIGHT_PER_PROCESS = 64


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        actors: how many play.
        kind: "real" or "light".
        epoch_seconds: of a host's pause.
        episodes_each: episodes of each actor per iteration.
        iterations: that are measured, after one that is not.
    """

    actors: int
    kind: str
    epoch_seconds: float
    episodes_each: int
    iterations: int

    @property
    def name(self) -> str:
        """Name of its row."""
        return f"{self.actors} {self.kind}, {self.epoch_seconds:g} s epochs"


class PausingRun(HostRun):
    """A host whose epoch is a pause; slot, stages and mask are real."""

    epoch_seconds = 0.0

    def _train(self) -> Steps[tuple[float, float, None]]:
        time.sleep(self.epoch_seconds)
        yield from ()
        return 1.0, 50.0, None

    def _validate(self, train_loss: float, train_accuracy: float) -> Steps[EpochOutcome]:
        yield from ()
        accuracy = 50.0 + self.episode_seed % 7 + self.epoch
        contribution = 1.0 if self.model.seed_slot.alpha > 0 else None
        return EpochOutcome(train_loss, train_accuracy, 1.0, accuracy, 1.0, accuracy, contribution)


class PausingEnv(ActorEnv):
    """An environment of such hosts."""

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__(context)
        self._epoch_seconds = context["epoch_seconds"]

    def _new_run(self, episode_seed: int, beginning: Beginning | None = None) -> HostRun:
        data = self._data.of_host(self.task, episode_seed)
        run = PausingRun(self.task, data, self._device, episode_seed, self.action_table, beginning)
        run.epoch_seconds = self._epoch_seconds
        return run


class LightActors:
    """A process that stands for several actors: each call is an actor that plays.

    Args:
        prepared: what they return.
        episode_seconds: how long an episode takes them.
    """

    def __init__(self, prepared: Sequence[PlayedEpisode], episode_seconds: float) -> None:
        self._prepared = prepared
        self._episode_seconds = episode_seconds

    def process(self) -> str:
        """Returns what tells this process from others; the dispatcher asks for it where a call has failed."""
        return str(ray.get_runtime_context().get_worker_id())

    def play(self, tickets: Sequence[Ticket], keep_from: float, weights: Weights) -> list[PlayedEpisode]:
        """Pauses, then returns an episode for the ticket; arguments as of `EpisodeRunner.play`."""
        (ticket,) = tickets
        time.sleep(self._episode_seconds)
        played = self._prepared[(ticket.runner + ticket.number) % len(self._prepared)]
        rollout = copy.copy(played.rollout)
        assert rollout is not None
        rollout.id_ = uuid.uuid4().hex
        return [replace(played, ticket=ticket, rollout=rollout)]


class TimedPPO(EpisodePPO):
    """PPO that says how long its updates take.

    Attributes:
        learner_seconds: wall time of each update so far.
        learner_cpu_seconds: CPU time of this process during all of them.
    """

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds learner and actors."""
        self.learner_seconds: list[float] = []
        self.learner_cpu_seconds = 0.0
        super().setup(config)

    def _update(self, rollouts: Sequence[SingleAgentEpisode]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        super()._update(rollouts)
        self.learner_seconds.append(time.perf_counter() - wall)
        self.learner_cpu_seconds += time.process_time() - cpu


class LightPPO(TimedPPO):
    """PPO with light actors in place of RLlib's."""

    _actors = 1

    def seat(self, actors: int, episode_seconds: float) -> None:
        """Has light actors play from now on. What they return is played first, in this process."""
        tickets = [assign_number(actors + 1, number, _SEED) for number in range(_PREPARED)]
        prepared = ray.put([episode for t in tickets for episode in self.env_runner.play([t], inf, self._weights)])
        processes = -(-actors // _LIGHT_PER_PROCESS)
        light = ray.remote(num_cpus=0, max_concurrency=_LIGHT_PER_PROCESS)(LightActors)
        handles = [light.remote(prepared, episode_seconds) for _ in range(processes)]
        self._actors = actors
        self.dispatcher = Dispatcher({runner: handles[runner % processes] for runner in range(1, actors + 1)})
        self._publish_weights()

    @property
    def runners(self) -> int:
        """Number of actors."""
        return self._actors


def measure(case: Case) -> Row:
    """Plays the iterations of a case on a Ray of its own and returns what they took."""
    is_real = case.kind == "real"
    episodes = case.actors * case.episodes_each
    with local_ray(num_cpus=case.actors if is_real else 1):
        learning = Learning(LearnerSettings(), case.iterations + 1, episodes, _SEED)
        config = build_config(ActorSettings(TASK), learning, Placement(case.actors if is_real else 0, 1, 0.0))
        pause = {"epoch_seconds": case.epoch_seconds if is_real else 0.0}
        config.environment(ActorEnvs.of(PausingEnv), env_config={**config.env_config, **pause})
        algorithm = (TimedPPO if is_real else LightPPO)(config=config)
        try:
            if isinstance(algorithm, LightPPO):
                algorithm.seat(case.actors, case.epoch_seconds * TASK.max_epochs)
            algorithm.train()
            learner_before = algorithm.learner_cpu_seconds
            wall, cpu, tickets = time.perf_counter(), time.process_time(), []
            for _ in range(case.iterations):
                algorithm.train()
                tickets += [episode.ticket for episode in algorithm.episodes]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            cpu -= algorithm.learner_cpu_seconds - learner_before
            learner = sum(algorithm.learner_seconds[1:])
            lost = sum(algorithm.losses.values())
        finally:
            algorithm.stop()
    owed = [t for number in range(1, case.iterations + 1) for t in assign(episodes, case.actors, number, _SEED)]
    assert tickets == owed, "every episode once"
    inside = len(tickets) * TASK.max_epochs * case.epoch_seconds
    return {
        "name": case.name,
        **asdict(case),
        "episodes": len(tickets),
        "actors_lost": lost,
        "wall_seconds": wall,
        "episodes_per_second": len(tickets) / wall,
        "driver_ms_per_episode": 1000 * cpu / len(tickets),
        "learner_seconds_per_iteration": learner / case.iterations,
        "learner_ms_per_episode": 1000 * learner / len(tickets),
        "idle_share": 1 - inside / (case.actors * wall),
    }


_COLUMNS = {
    "episodes_per_second": ("episodes/s", "{:.3g}"),
    "driver_ms_per_episode": ("driver ms/episode", "{:.2f}"),
    "learner_seconds_per_iteration": ("learner s/iteration", "{:.2f}"),
    "learner_ms_per_episode": ("learner ms/episode", "{:.1f}"),
    "idle_share": ("idle", "{:.1%}"),
}


def show(rows: Sequence[Row], before: Mapping[str, Row]) -> None:
    """Prints the table; behind a figure its ratio to that of `before`, by row name."""
    table = Table("actors", "kind", "epoch s", "episodes", *(title for title, _form in _COLUMNS.values()))
    for row in rows:
        measured = (with_ratio(form.format(row[name]), row, name, before) for name, (_title, form) in _COLUMNS.items())
        case = (row[name] for name in ("actors", "kind", "epoch_seconds", "episodes"))
        table.add_row(*map(str, case), *measured)
    Console(width=200).print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=_sizes, default="1,2,4,8,16,32,64,128,256", help="numbers of actors")
    parser.add_argument("--real-up-to", type=whole, default=4, metavar="N", help="play up to N with real actors too")
    parser.add_argument("--epoch-seconds", type=_seconds, default=0.01, metavar="S", help="pause of an epoch")
    parser.add_argument("--episodes", type=positive, default=2, metavar="N", help="of each actor per iteration")
    parser.add_argument("--iterations", type=positive, default=3, metavar="N", help="measured, after one that is not")
    parser.add_argument("--json", type=figures_file, metavar="FILE", help="where the figures are written")
    parser.add_argument("--compare", type=earlier_figures, default={}, metavar="OLD", help="such a file, for ratios")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as in a run
    warnings.filterwarnings("ignore", ".*Overriding environment")  # of the row before
    rows = []
    for actors in given.actors:
        for kind in ("real", "light") if actors <= given.real_up_to else ("light",):
            rows.append(measure(Case(actors, kind, given.epoch_seconds, given.episodes, given.iterations)))
    show(rows, given.compare)
    if given.json:
        write_figures(given.json, rows)


def _sizes(text: str) -> list[int]:
    return sorted({positive(size) for size in text.split(",")})


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < inf:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds above 0")
    return seconds


if __name__ == "__main__":
    main()
