"""Resumption of a run that ended early, and the start of a run with the policy of another."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esper_ray.errors import CheckpointError, ConfigurationError, PlacementError, RunFolderError
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.cluster import quiet_logging
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.learner_state import read_learner_state
from esper_ray.orchestration.run.checkpoint import CheckpointManifest, read_manifest
from esper_ray.orchestration.run.claims import claimed_again
from esper_ray.orchestration.run.plan import ORIGIN, RunPlan
from esper_ray.orchestration.run.run_folder import (
    EPISODES_FILE,
    METRICS_FILE,
    checkpoints_of,
    has_ended,
    iteration_of,
    read_config,
    read_episodes,
    read_metrics,
)
from esper_ray.orchestration.run.run_result import RunTally, read_tally
from esper_ray.plugins import require_outside_folder
from esper_ray.policies.network import load_policy
from esper_ray.shell import pasteable

logger = logging.getLogger(__name__)

_WITH_RESUME = {"resume", "address", "logger"}
"""Flags allowed beside --resume: they say where to go on, not with what."""


@dataclass(frozen=True)
class Resumption:
    """The point at which a run is resumed.

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
        return iteration_of(self.checkpoint) if self.checkpoint is not None else None


@contextmanager
def locked_resumption(asked: TrainConfig) -> Iterator[Resumption]:
    """Finds the point of `find_resumption`, and keeps other processes from writing the run in the meantime.

    Raises:
        ConfigurationError: something was asked for that the run has decided already.
        RunFolderError: another process writes it.
    """
    assert asked.resume is not None
    _require_nothing_decided(asked)
    read_config(asked.resume)
    with claimed_again(asked.resume):
        yield find_resumption(asked)


def _require_nothing_decided(asked: TrainConfig) -> None:
    assert asked.resume is not None
    for name, value in asked:
        if name not in _WITH_RESUME and value != TrainConfig.model_fields[name].get_default(call_default_factory=True):
            raise ConfigurationError(
                f"leave out --{name.replace('_', '-')} with --resume: a run goes on with the settings that it has; "
                "a new one can begin with its policy: "
                f"{pasteable('--from-checkpoint', asked.resume / 'checkpoints' / 'iteration_N')}"
            )


def find_resumption(asked: TrainConfig) -> Resumption:
    """Finds the point at which the run `asked.resume` can be resumed, without changing anything.

    Raises:
        RunFolderError: it is no training run, it is over, or a part of it is missing.
        CheckpointError: none of its checkpoints can be read.
    """
    assert asked.resume is not None
    run = asked.resume
    quiet_logging()  # RLlib warns about its own networks
    stored = read_config(run)
    config = _config_of(run, stored)
    require_outside_folder(config.plugin, run)
    if has_ended(run):
        raise RunFolderError(f"the run in {run} is over, after all {stored.get('iterations')} iterations")
    if config.address is not None and asked.address is None:
        logger.warning("the run played on the cluster at %s; without --address it goes on here", config.address)
    update = {"address": asked.address, "logger": asked.logger or config.logger}
    checkpoint = _last_valid_checkpoint(run)
    tally = read_tally(checkpoint) if checkpoint is not None else RunTally()
    return Resumption(config.model_copy(update=update), checkpoint, tally, stored)


def _config_of(run: Path, stored: dict[str, Any]) -> TrainConfig:
    """Returns the configuration that config.json of a run holds.

    Raises:
        RunFolderError: it is no training run, or another version's.
    """
    command = dict(stored["command"])
    if command.pop("name", None) != "train":
        raise RunFolderError(f"{run} is no training run: only those can be resumed")
    try:
        config = TrainConfig.model_validate({**command, "out": run, "runners": stored.get("runners"), "config": None})
    except ValidationError as error:
        raise RunFolderError(f"{run} was written by another version of esper_ray: {error.errors()[0]['msg']}") from None
    if config.runners is None:
        raise RunFolderError(f"{run} was written by another version of esper_ray: it does not say how many runners")
    return config


def _last_valid_checkpoint(run: Path) -> Path | None:
    """Returns the last checkpoint of a run that can be read; None if the run ended before its first.

    Raises:
        CheckpointError: there are some, and all are damaged.
        RunFolderError: rows of earlier iterations are missing.
    """
    damaged = []
    for checkpoint in reversed(checkpoints_of(run)):
        try:
            _require_whole(run, checkpoint)
        except CheckpointError as error:
            damaged.append(error)
            continue
        for reason in damaged:
            logger.warning("%s: going on from %s", reason, checkpoint.name)
        return checkpoint
    if damaged:
        raise damaged[0]
    if (run / METRICS_FILE).exists() and len(read_metrics(run)) > 1:  # of one, it may have ended within
        raise RunFolderError(f"{run} has iterations that are over, and no checkpoint; begin a new run")
    return None


def _require_whole(run: Path, checkpoint: Path) -> None:
    """Checks that a run can be resumed from one of its checkpoints.

    Raises:
        CheckpointError: it cannot be read.
        RunFolderError: rows of earlier iterations are missing.
    """
    manifest, state, tally = read_manifest(checkpoint), read_learner_state(checkpoint), read_tally(checkpoint)
    load_policy(checkpoint)
    counts = {manifest.iteration, state.iteration, iteration_of(checkpoint)}
    if len(counts) > 1 or len(tally.trained) != manifest.iteration * manifest.episodes_per_iteration:
        raise CheckpointError(
            f"the checkpoint {checkpoint} is damaged: its files disagree about how many iterations are over"
        )
    iterations = [row.get("iteration") for row in read_metrics(run)]
    for file, numbers, count in (
        (METRICS_FILE, iterations, manifest.iteration),
        (EPISODES_FILE, list(read_episodes(run)), len(tally.trained)),
    ):
        if numbers[:count] != list(range(1, len(numbers[:count]) + 1)) or len(numbers) < count:
            raise RunFolderError(f"{run / file} lacks rows before iteration {manifest.iteration}; begin a new run")


def described(plan: RunPlan, resumption: Resumption | None) -> dict[str, Any]:
    """Returns the content of config.json, with the provenance of the start and of each resumption."""
    values = plan.as_dict()
    if resumption is None:
        return values
    began = {name: resumption.stored.get(name) for name in (*ORIGIN, "numerics")}
    here = {name: values[name] for name in began}
    went_on = [*resumption.stored.get("went_on", []), {"iteration": resumption.iteration or 0, **here}]
    return {**values, **began, "went_on": went_on}


def resume_run(algorithm: EpisodeAlgorithm, plan: RunPlan, resumption: Resumption) -> None:
    """Puts actors and learner to where they were at the checkpoint.

    Raises:
        PlacementError: hosts would be trained on another kind of device than before.
        CheckpointError: task, actions or observation are others here and now, or it is of another network.
    """
    checkpoint, before, now = resumption.checkpoint, resumption.stored.get("device"), plan.placement.device_kind
    assert checkpoint is not None
    if before != now:
        raise PlacementError(
            f"the run in {plan.out} trained its hosts on {before}, here it would on {now}; resume it on such a machine"
        )
    manifest = read_manifest(checkpoint)
    manifest.require_spaces(plan.action_names, plan.observation_names)
    if manifest.task != plan.task.model_dump(mode="json"):
        raise CheckpointError(f"the task of the run in {plan.out} has other settings here and now; begin a new run")
    algorithm.load(checkpoint)


def read_start(config: TrainConfig) -> CheckpointManifest | None:
    """Returns the manifest of the checkpoint that a new run starts from; None without one.

    Raises:
        CheckpointError: it is damaged, or another version's.
    """
    if config.from_checkpoint is None:
        return None
    quiet_logging()
    manifest = read_manifest(config.from_checkpoint)
    load_policy(config.from_checkpoint)
    return manifest


def warm_start(algorithm: EpisodeAlgorithm, plan: RunPlan, manifest: CheckpointManifest) -> None:
    """Gives a new training run the policy of a checkpoint; optimizer, schedules and counters begin anew.

    Raises:
        CheckpointError: its actions, observation or network are others.
    """
    manifest.require_spaces(plan.action_names, plan.observation_names)
    assert isinstance(plan.config, TrainConfig) and plan.config.from_checkpoint is not None
    algorithm.warm_start(plan.config.from_checkpoint)
