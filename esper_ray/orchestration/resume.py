"""Going on with a run that ended before its time, and beginning one with the policy of another."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esper_ray.errors import CheckpointError, ConfigurationError, RunFolderError
from esper_ray.orchestration.checkpoint import CheckpointFacts, read_facts, require_same_spaces
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.plan import ORIGIN, RunPlan
from esper_ray.orchestration.run_folder import METRICS_FILE, checkpoints_of, has_ended, read_config, read_metrics
from esper_ray.orchestration.run_result import RunTally, read_tally
from esper_ray.orchestration.training_run import TrainingRun

logger = logging.getLogger(__name__)

_WITH_RESUME = {"resume", "address", "logger"}
"""What may be said beside --resume: where to go on, not with what."""


@dataclass(frozen=True)
class Resumption:
    """Where a run is taken up.

    Attributes:
        config: of the run, with the folder that it is in and the number of actors that it has.
        checkpoint: the last good one; None if the run has to begin again, because it ended before the first.
        tally: what it had come to.
        stored: what config.json of the run holds.
    """

    config: TrainConfig
    checkpoint: Path | None
    tally: RunTally
    stored: dict[str, Any]

    @property
    def iteration(self) -> int | None:
        """Iterations that are over; None if the run has to begin again."""
        return read_facts(self.checkpoint).iteration if self.checkpoint is not None else None


def find_resumption(asked: TrainConfig) -> Resumption:
    """Finds out how to go on with the run that `asked.resume` names, without changing anything.

    Raises:
        ConfigurationError: something was asked for that the run has decided already.
        RunFolderError: it is no training run, it is over, or a part of it is missing.
        CheckpointError: none of its checkpoints can be read.
    """
    assert asked.resume is not None
    run = asked.resume
    for name, value in asked:
        if name not in _WITH_RESUME and value != TrainConfig.model_fields[name].get_default(call_default_factory=True):
            raise ConfigurationError(
                f"leave out --{name.replace('_', '-')} with --resume: a run goes on with the settings that it has; "
                f"a new one can begin with its policy: --from-checkpoint {run}/checkpoints/iteration_N"
            )
    stored = read_config(run)
    command = dict(stored["command"])
    if command.pop("name") != "train":
        raise RunFolderError(f"{run} is no training run: only those can be resumed")
    if has_ended(run):
        raise RunFolderError(f"the run in {run} is over, after all {stored['iterations']} iterations")
    try:
        config = TrainConfig.model_validate(command)
    except ValidationError as error:
        raise RunFolderError(f"{run} was written by another version of esper_ray: {error.errors()[0]['msg']}") from None
    update = {"out": run, "runners": stored["runners"], "address": asked.address, "config": None}
    update |= {"logger": asked.logger or config.logger}
    checkpoint = _last_good(run)
    tally = read_tally(checkpoint) if checkpoint is not None else RunTally()
    return Resumption(config.model_copy(update=update), checkpoint, tally, stored)


def _last_good(run: Path) -> Path | None:
    """Returns the last checkpoint of a run that is as it was written; None if the run ended before its first.

    Raises:
        CheckpointError: there are some, and all are damaged.
        RunFolderError: rows of earlier iterations are missing.
    """
    checkpoints = checkpoints_of(run)
    damaged = []
    for checkpoint in reversed(checkpoints):
        try:
            iteration = read_facts(checkpoint).iteration
        except CheckpointError as error:
            damaged.append(error)
            logger.warning("%s", error)
            continue
        there = [row["iteration"] for row in read_metrics(run)]
        if there[:iteration] != list(range(1, iteration + 1)):
            raise RunFolderError(f"{run / METRICS_FILE} lacks iterations before {iteration}; begin a new run")
        return checkpoint
    if damaged:
        raise damaged[0]
    return None


def described(plan: RunPlan, resumption: Resumption | None) -> dict[str, Any]:
    """Returns what config.json holds: where and when a run began, and where and when it went on."""
    values = plan.as_dict()
    if resumption is None:
        return values
    began = {name: resumption.stored.get(name) for name in ORIGIN}
    here = {name: values[name] for name in ORIGIN}
    went_on = [*resumption.stored.get("went_on", []), {"iteration": resumption.iteration or 0, **here}]
    return {**values, **began, "went_on": went_on}


def take_up(run: TrainingRun, plan: RunPlan, resumption: Resumption) -> None:
    """Puts a training run to where it was at the checkpoint.

    Raises:
        CheckpointError: task, actions or observation are others here and now.
    """
    assert resumption.checkpoint is not None
    facts = read_facts(resumption.checkpoint)
    require_same_spaces(facts, plan.action_names, plan.observation_names)
    if facts.task != plan.task.model_dump(mode="json"):
        raise CheckpointError(f"the task of the run in {plan.out} has other settings here and now; begin a new run")
    run.algorithm.take_up(resumption.checkpoint)
    run.take_up(resumption.tally)


def read_start(config: TrainConfig) -> CheckpointFacts | None:
    """Returns what the checkpoint says of itself that a new run is to begin with; None if it begins with none.

    Raises:
        CheckpointError: it is damaged, or another version's.
    """
    return read_facts(config.from_checkpoint) if config.from_checkpoint is not None else None


def start_from(run: TrainingRun, plan: RunPlan, facts: CheckpointFacts) -> None:
    """Gives a new training run the policy of a checkpoint; optimizer, schedules and counters begin anew.

    Raises:
        CheckpointError: its actions, observation or network are others.
    """
    require_same_spaces(facts, plan.action_names, plan.observation_names)
    assert isinstance(plan.config, TrainConfig) and plan.config.from_checkpoint is not None
    run.algorithm.start_from(plan.config.from_checkpoint)
