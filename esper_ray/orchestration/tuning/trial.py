"""One trial of a search: a training run inside a Ray Tune trial, an iteration a step."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from ray import tune

from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.run.claims import FolderInUseError, claimed
from esper_ray.orchestration.run.metrics import lookup
from esper_ray.orchestration.run.plan import RunPlan, built_actors, require_playable
from esper_ray.orchestration.run.run_folder import RunFolder, has_ended, read_metrics
from esper_ray.orchestration.run.run_result import RunTally
from esper_ray.orchestration.run.training_run import TrainingRun
from esper_ray.orchestration.tuning.search_file import STOP_KEYS, SearchFile
from esper_ray.orchestration.tuning.search_folder import TRIALS
from esper_ray.orchestration.tuning.searchers import SEED
from esper_ray.plugins import load_plugins
from esper_ray.tasks import get_task_spec, with_tokenizer

_STATE = "trial.json"
_POLICY = "policy"
_FORMER_ACTOR_MAY_TAKE = 600.0
"""Seconds. Ray Tune may start a trial's next actor while the one before it is still ending."""


@dataclass(frozen=True)
class TrialContext:
    """Settings that all trials of a search share.

    Attributes:
        folder: of the search; on a cluster a folder that every machine sees under this path.
        placement: of each trial's actors.
    """

    search: SearchFile
    folder: Path
    placement: Placement


class QuietObserver:
    """An observer that says nothing."""

    def on_start(self, run: RunPlan, board: Any) -> None:
        """Says nothing."""

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        """Says nothing."""

    def on_iteration(self, row: Any) -> None:
        """Says nothing."""


class Trial(tune.Trainable):
    """A training run with a run folder of its own, `trials/NAME` in the search's folder.

    Tune restores an unfinished trial from its last checkpoint; the run folder then drops what came after it. A trial
    whose run is complete, although Tune was killed before it took note, reports its rows again and plays nothing.
    """

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:
        """Reads the trial's configuration. The actors are built by the first step that needs them."""
        self._context = context
        self._setting = {key: value for key, value in config.items() if key != SEED}
        self._train_config: TrainConfig = context.search.trial_config(self._setting, config[SEED])
        self._path = context.folder / TRIALS / trial_name(self.trial_id, config[SEED])
        self._stack = ExitStack()
        self._run: TrainingRun | None = None
        self._run_is_written = False
        self._seconds = 0.0

    def step(self) -> dict[str, Any]:
        """Plays an iteration and returns the numbers that can rank or stop a trial, by dotted name."""
        if self._run is None and has_ended(self._path):
            rows = read_metrics(self._path)
            return {**reported(rows[self.iteration]), "done": self.iteration + 1 >= len(rows)}
        started = time.monotonic()
        run = self._run or self._build(None)
        row = run.iterate()
        self._seconds += time.monotonic() - started
        values = reported(row)
        done = run.is_over or any(values.get(key, -inf) >= limit for key, limit in self._context.search.stop.items())
        if done:
            run.finish(self._seconds)
            self._run_is_written = True
        return {**values, "done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes learner, optimizer, counters and the run's tally."""
        tally: dict[str, Any] = {}
        if self._run is not None:  # else it only reports what was played before
            folder = Path(checkpoint_dir) / _POLICY
            folder.mkdir()
            self._run.algorithm.write_checkpoint(folder)
            tally = self._run.result.tally.as_dict()
        state = {"trial": self._path.name, "seconds": self._seconds, "tally": tally}
        (Path(checkpoint_dir) / _STATE).write_text(json.dumps(state))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Loads a checkpoint: this trial's own, or that of another, whose policy it copies."""
        self._stack.close()
        self._run = None
        if not has_ended(self._path):
            started = time.monotonic()
            self._build(Path(checkpoint_dir))
            self._seconds += time.monotonic() - started

    def cleanup(self) -> None:
        """Writes the summary of a trial that ends early, and ends its actors."""
        if self._run is not None and not self._run_is_written:
            self._run.result.interrupted = True
            self._run.finish(self._seconds)
        self._stack.close()

    def _build(self, checkpoint: Path | None) -> TrainingRun:
        """Builds the actors and starts the run, or resumes it from a checkpoint."""
        config = self._train_config
        load_plugins(config.plugin)
        task = with_tokenizer(get_task_spec(config.task, config.task_overrides()), config.data_dir)
        require_playable(task, config.data_dir)
        built = built_actors(config, task, self._path, self._context.placement)
        plan, algorithm, _board = self._stack.enter_context(built)
        state: dict[str, Any] = {}
        if checkpoint is not None:
            algorithm.load(checkpoint / _POLICY)
            state = json.loads((checkpoint / _STATE).read_text())
            self._seconds = state["seconds"]
        own = state.get("trial") == self._path.name
        described = {**plan.as_dict(), "setting": self._setting}
        kept = algorithm.iteration if checkpoint is not None else None
        self._stack.enter_context(_claimed_after_former_actor(self._path))
        folder = RunFolder(self._path, described, keep_iterations=kept, keep_policies=own)
        self._run = TrainingRun(plan, algorithm, self._stack.enter_context(folder), QuietObserver())
        if checkpoint is not None:
            self._run.resume_from(RunTally(**state["tally"]))
        self._run.play_wait_only()
        return self._run


@contextmanager
def _claimed_after_former_actor(folder: Path) -> Iterator[None]:
    """Claims the trial's folder; waits, for a limited time, for an actor that writes there still."""
    give_up = time.monotonic() + _FORMER_ACTOR_MAY_TAKE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(folder))
                break
            except FolderInUseError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
        yield


def trial_name(trial_id: str, seed: int) -> str:
    """Returns the name of a trial's folder: the end of its identifier, and its seed."""
    return f"{trial_id.rpartition('_')[2]}_seed{seed}"


def reported(row: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a metrics row that can rank or stop a trial, by dotted name."""
    return {key: value for key in STOP_KEYS if (value := lookup(row, key)) is not None}
