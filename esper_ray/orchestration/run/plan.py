"""Resolves a configuration into a run plan and makes every check that needs no actor."""

import importlib.metadata
import platform
import secrets
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel
from ray.exceptions import RayError

from esper_ray import __version__
from esper_ray.episode import ActionTable, ObservationTable
from esper_ray.episode.host_cache import say_not_shared
from esper_ray.episode.provenance import what_is_unknown
from esper_ray.errors import EpisodeFailedError
from esper_ray.numerics import as_actor
from esper_ray.orchestration.config import CompareConfig, EvaluateConfig, HeuristicConfig, TrainConfig
from esper_ray.orchestration.fleet.actor_envs import ActorSettings
from esper_ray.orchestration.fleet.cluster import on_every_machine, ray_for
from esper_ray.orchestration.fleet.interrupts import interrupts_raise, time_limit
from esper_ray.orchestration.fleet.placement import Placement, place
from esper_ray.orchestration.fleet.progress import BoardReader, start_board
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.learner_config import Learning, build_algorithm
from esper_ray.orchestration.run.claims import claimed_run
from esper_ray.orchestration.run.preflight import Preflight, check
from esper_ray.orchestration.run.run_folder import IN_PROGRESS, require_writable
from esper_ray.plugins import load_plugins
from esper_ray.process import without_compiler
from esper_ray.tasks import TaskSpec, get_task_spec, load_task_data, require_sound, with_tokenizer

RunConfig = TrainConfig | HeuristicConfig | EvaluateConfig | CompareConfig

_Config = TypeVar("_Config", bound=BaseModel)

ORIGIN = ("esper_ray", "git_commit", "python", "cpu_capability", "versions", "started")
"""Names of what `origin` returns."""
_SECONDS_TO_START = 600.0
_SECONDS_TO_START_ONE = 15.0
_VERSIONED = ("torch", "ray", "numpy", "gymnasium", "scikit-learn", "pydantic")


@dataclass(frozen=True)
class RunPlan:
    """A run, resolved: nothing is left to a default.

    Attributes:
        preflight: where the actors sit and how fast they are.
        episodes: per learner update, or in all if nothing learns.
        action_names: as the actors have them on their devices.
    """

    config: RunConfig
    task: TaskSpec
    placement: Placement
    preflight: Preflight
    episodes: int
    action_names: tuple[str, ...]
    out: Path

    @property
    def iterations(self) -> int:
        """Learner updates; 0 if nothing learns."""
        return self.config.iterations

    @property
    def wait_only_episodes(self) -> int:
        """Episodes that never grow a seed, played first for comparison."""
        asked = self.config.wait_only_episodes
        return self.episodes if asked is None else asked

    @property
    def evaluation_episodes(self) -> int:
        """Episodes of all evaluations on held-out hosts during training, sampled and deterministic."""
        every = getattr(self.config, "evaluate_every", 0)
        return self.iterations // every * 2 * self.config.evaluation_episodes if every else 0  # type: ignore[union-attr]

    @property
    def seconds(self) -> float:
        """Estimated wall time of the whole run, seconds, without the learner's updates."""
        each = self.preflight.seconds_for
        return each(self.wait_only_episodes) + self.iterations * each(self.episodes) + each(self.evaluation_episodes)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the values that the policy sees."""
        blueprints = ActionTable.from_names(self.action_names).blueprint_ids
        return ObservationTable(blueprints, self.task.variety.enabled).names

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of config.json."""
        return {
            "command": {"name": self.config.command, **with_absolute_paths(self.config).model_dump(mode="json")},
            "task": self.task.model_dump(mode="json"),
            "runners": self.placement.runners,
            "hosts_per_runner": self.placement.hosts_per_runner,
            "cpus_per_runner": self.placement.cpus_per_runner,
            "gpus_per_runner": self.placement.gpus_per_runner,
            "device": self.placement.device_kind,
            "threads_per_runner": self.placement.threads_per_runner,
            "iterations": self.iterations,
            "episodes_per_iteration": self.episodes,
            "wait_only_episodes": self.wait_only_episodes,
            "actions": self.action_names,
            "numerics": self.preflight.numerics,
            **origin(),
        }


class RunObserver(Protocol):
    """Watches a run; the command line's live table is one."""

    def on_start(self, run: RunPlan, board: BoardReader) -> None:
        """The actors are up. `board` knows how their hosts are doing."""

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        """Another episode of a policy that does not learn, "wait-only" or "heuristic", has been played."""

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """An iteration is over; `row` is its row of metrics.jsonl."""


@contextmanager
def started_run(
    config: TrainConfig | HeuristicConfig, resumed: bool = False
) -> Iterator[tuple[RunPlan, EpisodeAlgorithm, BoardReader]]:
    """Checks the configuration, starts Ray and the actors, and ends both afterwards. SIGTERM acts as Ctrl-C.

    The folder of a new run is claimed before anything slow, and is removed again if nothing was written to it.

    Args:
        config: what was asked for.
        resumed: its folder holds the run already, which goes on; the caller has locked it.

    Raises:
        EsperError: something is wrong with the configuration, the data, the plugins or the run folder, or the cluster
            has too little room; before any actor starts, and nothing is written.
        EpisodeFailedError: the actors could not be built.
    """
    load_plugins(config.plugin)
    task = with_tokenizer(get_task_spec(config.task, config.task_overrides()), config.data_dir)
    name = task.name if isinstance(config, TrainConfig) else f"{task.name}-{config.command}"
    with ExitStack() as stack:
        if resumed:
            assert config.out is not None
            out = config.out
            require_writable(out)
        else:
            out = stack.enter_context(claimed_run(config.out, name, config.overwrite))
        yield stack.enter_context(started_actors(config, task, out))


@contextmanager
def started_actors(
    config: RunConfig, task: TaskSpec, out: Path
) -> Iterator[tuple[RunPlan, EpisodeAlgorithm, BoardReader]]:
    """Checks the task and its data, starts Ray and actors that play it, and ends both afterwards; as `started_run`."""
    require_playable(task, config.data_dir)
    address = getattr(config, "address", None)
    with ray_for(address, config.plugin), interrupts_raise():
        if address is not None:
            on_every_machine(_require_playable_there, config.plugin, task, with_absolute_paths(config).data_dir)
        placement = place(config.runners, episodes_of(config, task), config.device, config.hosts_per_runner)
        with built_actors(config, task, out, placement) as built:
            yield built


@contextmanager
def built_actors(
    config: RunConfig, task: TaskSpec, out: Path, placement: Placement
) -> Iterator[tuple[RunPlan, EpisodeAlgorithm, BoardReader]]:
    """Builds the actors where `placement` says, on the Ray that runs, and ends them afterwards.

    Raises:
        EpisodeFailedError: they could not be built.
    """
    episodes = episodes_of(config, task)
    board_name = f"esper-board-{uuid.uuid4().hex}"
    board = BoardReader(start_board(board_name))
    try:
        with ExitStack() as stack:
            seconds = max(_SECONDS_TO_START, _SECONDS_TO_START_ONE * placement.runners)
            try:
                with time_limit(seconds):
                    built = _algorithm(config, task, placement, episodes, board_name, out)
                    algorithm = stack.enter_context(built)
                    preflight = check(algorithm, task.max_epochs, getattr(config, "episode_timeout", None))
                    names = algorithm.action_names()
            except TimeoutError:
                raise EpisodeFailedError(
                    f"the actors were not ready after {seconds:.0f} s: they hang, or there is no room for them any more"
                ) from None
            yield RunPlan(config, task, placement, preflight, episodes, names, out), algorithm, board
    finally:
        board.close()


def _require_playable_there(plugins: tuple[str, ...], task: TaskSpec, data_dir: Path | None) -> None:
    """Runs `require_playable` on another machine of the cluster."""
    load_plugins(plugins)
    require_playable(task, data_dir)


def require_playable(task: TaskSpec, data_dir: Path | None) -> None:
    """Checks everything about a task that needs no actor, and prepares its data on this machine.

    Raises:
        ConfigurationError: no seed can reach PROBATIONARY in time, or host, blueprints and slot do not fit.
        DatasetError: the data set is missing or damaged.
    """
    task.require_reachable_probation()
    data = load_task_data(task, "cpu", data_dir)
    require_sound(task, next(iter(data.validation))[0])


def episodes_of(config: RunConfig, task: TaskSpec) -> int:
    """Returns the episodes per learner update, or in all if nothing learns."""
    if isinstance(config, TrainConfig):
        return config.episodes_per_iteration or task.episodes_per_iteration
    return config.episodes


@contextmanager
def _algorithm(
    config: RunConfig, task: TaskSpec, placement: Placement, episodes: int, board_name: str, out: Path
) -> Iterator[EpisodeAlgorithm]:
    actor = ActorSettings(
        task,
        data_dir=with_absolute_paths(config).data_dir,
        board=board_name,
        plugins=config.plugin,
        host_pool=config.host_pool,
        skip_forced_waits=config.skip_forced_waits,
        host_checkpoints=_host_checkpoints(config, out),
    )
    if (task.reward.mode == "paired" or config.host_pool is not None) and (unknown := what_is_unknown(task)):
        say_not_shared(task.name, unknown)  # the actors' logs are not shown
    learning = Learning(config.ppo, config.iterations, episodes, config.seed, config.learner, config.policy)
    without_compiler()
    with as_actor(placement.threads_per_runner):
        try:
            algorithm = build_algorithm(actor, learning, placement)
        except RayError as error:
            raise EpisodeFailedError(f"the actors could not be built: {error}") from error
        except IndexError as error:  # RLlib only logs why actors failed, and then misses the first of them
            raise EpisodeFailedError("the actors could not be built; Ray's logs on their machines say why") from error
        try:
            yield algorithm
        finally:
            algorithm.stop()


def _host_checkpoints(config: RunConfig, out: Path) -> dict[str, Any] | None:
    """Returns where the actors write down the episodes in progress, with a key of this run alone; None if nowhere."""
    every = getattr(config, "host_checkpoint_every", 0)
    if not every:
        return None
    return {"folder": str((out / IN_PROGRESS).absolute()), "key": secrets.token_hex(32), "every": every}


def with_absolute_paths(config: _Config) -> _Config:
    """Returns the configuration with folders, of the data and to begin with, that mean the same from everywhere."""
    given = {name: getattr(config, name, None) for name in ("data_dir", "from_checkpoint")}
    return config.model_copy(update={name: path.absolute() for name, path in given.items() if path is not None})


def origin() -> dict[str, Any]:
    """Returns the provenance of a result: versions, git commit, CPU, time."""
    return {
        "esper_ray": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: _version(name) for name in _VERSIONED},
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Returns the commit of the checkout that this package lies in; None if it lies in none, or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    """Returns the version of an installed package; None where its metadata were left out, as in slim containers."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
