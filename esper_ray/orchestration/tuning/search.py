"""A search over settings with Ray Tune: from a file to trials, their ranking, and the best configuration."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from esper_ray.errors import PlacementError, RunFolderError
from esper_ray.orchestration.config import TuneConfig
from esper_ray.orchestration.fleet.cluster import ray_for
from esper_ray.orchestration.fleet.interrupts import sigterm_as_sigint
from esper_ray.orchestration.fleet.placement import LEARNER_CPUS, Placement, place_trials
from esper_ray.orchestration.run.claims import claimed
from esper_ray.orchestration.run.loggers import require_loggers, tune_loggers
from esper_ray.orchestration.run.plan import origin, require_playable, with_absolute_paths
from esper_ray.orchestration.run.run_folder import METRICS_FILE, has_ended, read_metrics, write_json
from esper_ray.orchestration.tuning.ranking import RankedSetting, TrialResult, rank
from esper_ray.orchestration.tuning.search_file import SearchFile, load_search
from esper_ray.orchestration.tuning.search_folder import (
    EXPERIMENT,
    STATE,
    TRIALS,
    remove_results,
    remove_search,
    require_same_search,
    require_usable_folder,
    write_best,
    write_ranking,
)
from esper_ray.orchestration.tuning.searchers import SEED, param_space, require_optuna, scheduler, search_algorithm
from esper_ray.orchestration.tuning.trial import Trial, TrialContext, reported, trial_name
from esper_ray.plugins import load_plugins
from esper_ray.tasks import TaskSpec, get_task_spec, with_tokenizer

_STATUS = {"PENDING": "pending", "RUNNING": "running", "PAUSED": "paused", "TERMINATED": "finished", "ERROR": "failed"}
_CHECKPOINTS_KEPT = 4
"""Per trial. Population-based training takes over from a checkpoint that must not be gone by then."""
_SECONDS_BETWEEN_LOOKS = 0.5
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each trial has a run folder
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # evaluations come every so many iterations
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class SearchPlan:
    """A search, resolved.

    Attributes:
        placement: of each trial's actors.
        concurrent: trials at a time.
    """

    config: TuneConfig
    search: SearchFile
    folder: Path
    placement: Placement
    concurrent: int


@dataclass
class SearchResult:
    """The result of a search.

    Attributes:
        ranking: best first.
        seconds: wall time, of this session if the search was resumed.
        best: file for `train --config`; None if no trial measured anything.
    """

    plan: SearchPlan
    trials: list[TrialResult]
    ranking: list[RankedSetting]
    best: Path | None
    seconds: float
    interrupted: bool

    @property
    def failed(self) -> list[TrialResult]:
        """Trials that raised."""
        return [trial for trial in self.trials if trial.status == "failed"]


class SearchObserver(Protocol):
    """Watches a search; the command line's live table is one."""

    def on_start(self, plan: SearchPlan) -> None:
        """The first trials are about to start."""

    def on_trials(self, trials: Sequence[TrialResult]) -> None:
        """Called with the progress of all trials, at most twice a second."""


def run_search(config: TuneConfig, observer: SearchObserver) -> SearchResult:
    """Runs or resumes a search. Ctrl-C ends it early, so that it can be resumed.

    Raises:
        EsperError: something is wrong with the file, the task, the data, the plugins or the folder, or the cluster has
            too little room; before any trial starts.
    """
    started = time.monotonic()
    search = load_search(config.file)
    load_plugins(search.train.plugin)
    require_loggers(config.logger)
    if search.algorithm == "optuna":
        require_optuna()
    folder = (config.out or Path("runs") / f"tune-{config.file.stem}").absolute()
    before = require_same_search(config, search, folder) if config.resume else None
    tasks = _playable_tasks(search)
    if before is None:
        require_usable_folder(config, folder)
    with claimed(folder):
        if before is None:
            require_usable_folder(config, folder)  # whoever had it before may have left a search
        with ray_for(config.address, search.train.plugin), _quiet_tune(), sigterm_as_sigint():
            plan = _plan(config, search, folder, tasks, before)
            if before is None:
                remove_search(folder)
                write_json(folder / EXPERIMENT, _experiment(plan), exact=True)
            remove_results(folder)
            observer.on_start(plan)
            with _watched(plan, observer.on_trials) as trials:
                _tuner(plan, resume=config.resume).fit()
        return _result(plan, trials, time.monotonic() - started)


def _plan(
    config: TuneConfig, search: SearchFile, folder: Path, tasks: Sequence[TaskSpec], before: dict[str, Any] | None
) -> SearchPlan:
    """Returns the search with its trials placed on the cluster; one that goes on is placed as it began.

    Raises:
        PlacementError: the cluster has too little room.
    """
    episodes = search.train.episodes_per_iteration or min(task.episodes_per_iteration for task in tasks)
    runners = before["runners"] if before else search.train.runners
    concurrent = before["concurrent"] if before else config.max_concurrent
    try:
        placement, concurrent = place_trials(
            runners, concurrent, search.trial_count, episodes, search.train.device, search.train.hosts_per_runner
        )
    except PlacementError as error:
        if before is None:
            raise
        raise PlacementError(
            f"the search began with {concurrent} trials of {runners} runners at a time, which do not fit here; "
            "resume it where they do"
        ) from error
    return SearchPlan(config, search, folder, placement, concurrent)


def _playable_tasks(search: SearchFile) -> list[TaskSpec]:
    """Returns every task that a trial could play, each checked before anything starts."""
    tasks: dict[str, TaskSpec] = {}
    for setting in search.example_settings():
        config = search.trial_config(setting, search.seeds[0])
        task = with_tokenizer(get_task_spec(config.task, config.task_overrides()), config.data_dir)
        if task.model_dump_json() not in tasks:
            require_playable(task, config.data_dir)
            tasks[task.model_dump_json()] = task
    return list(tasks.values())


def _experiment(plan: SearchPlan) -> dict[str, Any]:
    return {
        "command": {"name": "tune", **plan.config.model_dump(mode="json")},
        "search": plan.search.model_dump(mode="json"),
        "runners": plan.placement.runners,
        "concurrent": plan.concurrent,
        **origin(),
    }


def _tuner(plan: SearchPlan, resume: bool) -> tune.Tuner:
    # Ray Tune gives every trial a working folder of its own.
    everywhere = plan.search.model_copy(update={"train": with_absolute_paths(plan.search.train)})
    context = TrialContext(everywhere, plan.folder, plan.placement)
    runner = {"CPU": plan.placement.cpus_per_runner, "GPU": plan.placement.gpus_per_runner}
    bundle = {kind: amount for kind, amount in runner.items() if amount}
    resources = tune.PlacementGroupFactory([{"CPU": LEARNER_CPUS}, *[bundle] * plan.placement.runners])
    trainable = tune.with_resources(tune.with_parameters(Trial, context=context), resources)
    state, space = plan.folder / STATE, param_space(plan.search)
    if resume:
        if not tune.Tuner.can_restore(str(state)):
            raise RunFolderError(f"{plan.folder} was left before its first trial began; start anew with --overwrite")
        return tune.Tuner.restore(
            str(state), trainable, resume_unfinished=True, restart_errored=True, param_space=space
        )
    search = plan.search
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=search.trial_count if search.algorithm == "optuna" else search.samples,
            search_alg=search_algorithm(search, plan.concurrent),
            scheduler=scheduler(search),
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(plan.folder),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=_CHECKPOINTS_KEPT),
            callbacks=[TrialWatch(), *tune_loggers(plan.config.logger, plan.folder)],
            verbose=0,
        ),
    )


def _dirname(trial: TuneTrial) -> str:
    return trial_name(trial.trial_id, trial.config[SEED])


class TrialWatch(tune.Callback):
    """A Ray Tune callback that reports the progress of all trials. Stateless, because Ray Tune pickles it."""

    watcher: ClassVar[Callable[[list[TuneTrial]], None] | None] = None

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Passes the trials on."""
        if TrialWatch.watcher is not None:
            TrialWatch.watcher(trials)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        """Passes the trials on."""
        if TrialWatch.watcher is not None:
            TrialWatch.watcher(trials)


@contextmanager
def _watched(plan: SearchPlan, tell: Callable[[list[TrialResult]], None]) -> Iterator[list[TuneTrial]]:
    """Tells how the trials are doing, now and then; the list holds them all in the end."""
    latest: list[TuneTrial] = []
    last = 0.0

    def watch(trials: list[TuneTrial]) -> None:
        nonlocal last
        latest[:] = trials
        if time.monotonic() - last > _SECONDS_BETWEEN_LOOKS:
            last = time.monotonic()
            tell([_partial_result(plan, trial) for trial in trials])

    TrialWatch.watcher = watch
    try:
        yield latest
    finally:
        TrialWatch.watcher = None


def _partial_result(plan: SearchPlan, trial: TuneTrial) -> TrialResult:
    found = _trial_result(plan, trial.trial_id, trial.config)
    last = trial.last_result or {}
    found.iterations = last.get("training_iteration", 0)
    found.history = [last[plan.search.metric]] if plan.search.metric in last else []
    found.status = _STATUS.get(trial.status, "pending")
    if found.status == "finished" and not has_ended(plan.folder / TRIALS / found.name):
        found.status = "stopped"
    return found


def _trial_result(plan: SearchPlan, trial_id: str, config: dict[str, Any]) -> TrialResult:
    setting = {key: value for key, value in config.items() if key != SEED}
    name = trial_name(trial_id, config[SEED])
    return TrialResult(name, setting, config[SEED], plan.search.train.iterations)


def _result(plan: SearchPlan, tune_trials: Sequence[TuneTrial], seconds: float) -> SearchResult:
    trials = []
    for trial in tune_trials:
        found = _partial_result(plan, trial)
        folder = plan.folder / TRIALS / found.name
        rows = [reported(row) for row in read_metrics(folder)] if (folder / METRICS_FILE).exists() else []
        found.iterations = len(rows)
        found.history = [row[plan.search.metric] for row in rows if plan.search.metric in row]
        found.failure = str(trial.get_error()).strip().splitlines()[-1] if trial.get_error() else ""
        trials.append(found)
    search = plan.search
    ranking = rank(trials, search.mode, search.seeds, each_by_itself=search.scheduler.kind == "pbt")
    interrupted = any(trial.status in ("pending", "running", "paused") for trial in trials)
    interrupted |= len(trials) < plan.search.trial_count
    best = write_best(plan.folder, plan.search, ranking[0], plan.placement.runners) if ranking else None
    result = SearchResult(plan, trials, ranking, best, seconds, interrupted)
    facts = {"seconds": seconds, "trials": len(trials), "failed": len(result.failed), "interrupted": interrupted}
    write_ranking(plan.folder, plan.search, ranking, facts)
    return result


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keeps Ray Tune's own reports and log files out of the way of ours."""
    for name, value in _TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
