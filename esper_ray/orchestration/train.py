"""The main job: wait-only hosts for comparison, then iterations of episodes and learner updates, all written down."""

import importlib.metadata
import platform
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from ray.exceptions import RayError

from esper_ray import __version__
from esper_ray.episode import EpisodeRecord
from esper_ray.episode.actions import ActionTable
from esper_ray.errors import EpisodeFailedError
from esper_ray.orchestration.algorithm import EpisodePPO, build_config
from esper_ray.orchestration.cluster import local_ray
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.metrics import episode_metrics, learner_metrics, mean_with_error
from esper_ray.orchestration.placement import Placement, place
from esper_ray.orchestration.progress import BoardReader, ProgressBoard
from esper_ray.orchestration.run_folder import RunFolder, require_usable
from esper_ray.orchestration.tickets import Ticket, assign
from esper_ray.policies import WaitPolicy
from esper_ray.seeding import Stream, derive_seed
from esper_ray.tasks import TaskSpec, create_model, get_task_spec, load_task_data

_VERSIONED = ("torch", "ray", "numpy", "gymnasium", "scikit-learn", "pydantic")
_LAST_SHARE = 0.2


class RunObserver(Protocol):
    """Watches a run; the command line's live table is one."""

    def on_start(self, run: "RunPlan", board: BoardReader) -> None:
        """The actors are up. `board` knows how their hosts are doing."""

    def on_wait_only(self, done: int, total: int) -> None:
        """Another wait-only episode has been played."""

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """An iteration is over; `row` is its row of metrics.jsonl."""


@dataclass(frozen=True)
class RunPlan:
    """A run, resolved: nothing is left to a default."""

    config: TrainConfig
    task: TaskSpec
    placement: Placement
    episodes_per_iteration: int
    wait_only_episodes: int
    action_names: tuple[str, ...]
    out: Path

    def as_dict(self) -> dict[str, Any]:
        """Returns what config.json holds."""
        return {
            "esper_ray": __version__,
            "command": self.config.model_dump(mode="json"),
            "task": self.task.model_dump(mode="json"),
            "runners": self.placement.runners,
            "cpus_per_runner": self.placement.cpus_per_runner,
            "gpus_per_runner": self.placement.gpus_per_runner,
            "device": self.placement.device_kind,
            "episodes_per_iteration": self.episodes_per_iteration,
            "wait_only_episodes": self.wait_only_episodes,
            "actions": self.action_names,
            "git_commit": _git_commit(),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        }


@dataclass
class RunResult:
    """What a run came to. Accuracies are kept validation accuracies in percent.

    Attributes:
        wait_only: of the hosts that never grew a seed.
        trained: of every training episode, in the order of the iterations.
        stage_counts: episodes that were in each stage at some time.
        interrupted: the run was ended before its last iteration.
    """

    plan: RunPlan
    checkpoint: Path | None = None
    wait_only: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    stage_counts: dict[str, int] = field(default_factory=dict)
    fossilized: int = 0
    actors_lost: int = 0
    iterations: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def last(self) -> list[float]:
        """Of the last fifth of the training episodes."""
        return self.trained[-max(1, round(_LAST_SHARE * len(self.trained))) :] if self.trained else []

    @property
    def difference(self) -> tuple[float, float] | None:
        """Mean of the last fifth − mean of the wait-only hosts, points, and its standard error; None without both."""
        if not self.trained or not self.wait_only:
            return None
        learned, learned_error = mean_with_error(self.last)
        waiting, waiting_error = mean_with_error(self.wait_only)
        return learned - waiting, (learned_error**2 + waiting_error**2) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        """Returns what summary.json holds."""
        return {
            "iterations": self.iterations,
            "episodes": len(self.trained),
            "kept_val_accuracy_of_last_fifth": mean_with_error(self.last) if self.trained else None,
            "kept_val_accuracy_of_wait_only": mean_with_error(self.wait_only) if self.wait_only else None,
            "difference": self.difference,
            "wait_only": self.wait_only,
            "episodes_reaching": self.stage_counts,
            "fossilized": self.fossilized,
            "actors_lost": self.actors_lost,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
        }


def train(config: TrainConfig, observer: RunObserver) -> RunResult:
    """Runs the main job and returns what it came to. Ctrl-C ends it early, with a checkpoint.

    Raises:
        ConfigurationError, DatasetError, RunFolderError, PlacementError: before any actor starts; nothing is written.
        EpisodeFailedError: an episode raised, or its actor was lost too often; there is a checkpoint.
    """
    task = get_task_spec(config.task, config.task_overrides())
    task.require_reachable_probation()
    names = ActionTable.of(create_model(task)).names
    load_task_data(task, "cpu", config.data_dir)
    out = config.out or Path("runs") / f"{task.name}-{datetime.now():%Y%m%d-%H%M%S}"
    require_usable(out, config.overwrite)
    episodes = config.episodes_per_iteration or task.episodes_per_iteration
    wait_only = episodes if config.wait_only_episodes is None else config.wait_only_episodes
    with local_ray(), _sigterm_interrupts():
        placement = place(config.runners, episodes, config.device)
        plan = RunPlan(config, task, placement, episodes, wait_only, names, out)
        return _run(plan, observer)


def _run(plan: RunPlan, observer: RunObserver) -> RunResult:
    started = time.monotonic()
    result = RunResult(plan)
    board_name = f"esper-board-{uuid.uuid4().hex}"
    board = BoardReader(ProgressBoard.options(name=board_name).remote())  # type: ignore[attr-defined]
    with _algorithm(plan, board_name) as algorithm, RunFolder(plan.out, plan.as_dict()) as folder:
        observer.on_start(plan, board)
        try:
            result.wait_only = _play_wait_only(plan, algorithm, observer)
            _iterate(plan, algorithm, folder, observer, result)
        except KeyboardInterrupt:
            result.interrupted = True
        finally:
            board.close()
            result.iterations = algorithm.iteration
            result.actors_lost = algorithm.actors_lost
            result.checkpoint = folder.save_checkpoint(algorithm.iteration, algorithm.save_to_path)
            result.seconds = time.monotonic() - started
            folder.write_summary(result.as_dict())
    return result


@contextmanager
def _algorithm(plan: RunPlan, board_name: str) -> Iterator[EpisodePPO]:
    config = build_config(
        plan.task,
        plan.config.ppo,
        plan.placement,
        iterations=plan.config.iterations,
        episodes_per_iteration=plan.episodes_per_iteration,
        seed=plan.config.seed,
        data_dir=str(plan.config.data_dir.absolute()) if plan.config.data_dir else None,
        board=board_name,
    )
    torch.set_num_threads(1)
    try:
        algorithm = EpisodePPO(config=config)
    except RayError as error:
        raise EpisodeFailedError(f"the actors could not be built: {error}") from error
    try:
        yield algorithm
    finally:
        algorithm.stop()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Lets SIGTERM end a run as Ctrl-C does. Ray would exit at once; so this comes after Ray has started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _play_wait_only(plan: RunPlan, algorithm: EpisodePPO, observer: RunObserver) -> list[float]:
    """Plays hosts that never grow a seed, on seeds that no training episode has."""
    total = plan.wait_only_episodes
    if total == 0:
        return []
    base_seed = derive_seed(plan.config.seed, Stream.WAIT_ONLY)
    tickets = assign(total, min(plan.placement.runners, total), 0, base_seed)
    done = 0

    def count(record: EpisodeRecord) -> None:
        nonlocal done
        done += 1
        observer.on_wait_only(done, total)

    return [record.kept_val_accuracy for _, record in algorithm.play_scripted(tickets, WaitPolicy(), count)]


def _iterate(plan: RunPlan, algorithm: EpisodePPO, folder: RunFolder, observer: RunObserver, result: RunResult) -> None:
    started = time.monotonic()
    for iteration in range(1, plan.config.iterations + 1):
        iteration_started = time.monotonic()
        rllib_result = algorithm.train()
        records = [record for _, record in algorithm.records]
        result.trained += [record.kept_val_accuracy for record in records]
        result.fossilized += sum(record.final_stage == "FOSSILIZED" for record in records)
        row = {
            "iteration": iteration,
            "episodes": len(result.trained),
            "host_epochs": len(result.trained) * plan.task.max_epochs,
            "seconds": time.monotonic() - started,
            "episodes_per_second": len(records) / (time.monotonic() - iteration_started),
            **episode_metrics(records, plan.action_names),
            "learner": learner_metrics(rllib_result),
            "actors_lost": algorithm.actors_lost,
        }
        for stage, count in row["episodes_reaching"].items():
            result.stage_counts[stage] = result.stage_counts.get(stage, 0) + count
        _write_episodes(folder, iteration, algorithm.records)
        folder.add_iteration(row)
        observer.on_iteration(row)
        if iteration % plan.config.checkpoint_every == 0:
            folder.save_checkpoint(iteration, algorithm.save_to_path)


def _write_episodes(folder: RunFolder, iteration: int, played: Sequence[tuple[Ticket, EpisodeRecord]]) -> None:
    for ticket, record in played:
        place_in_run = {"iteration": iteration, "runner": ticket.runner, "number": ticket.number}
        folder.add_episode(place_in_run | record.as_row())


def _git_commit() -> str | None:
    """Returns the commit of the checkout that this package lies in, or None if it lies in none."""
    package = Path(__file__).parent
    answer = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None
