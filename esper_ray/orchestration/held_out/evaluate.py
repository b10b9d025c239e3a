"""A checkpoint's policy on held-out hosts."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esper_ray.episode.provenance import code_digest, numeric_provenance
from esper_ray.orchestration.config import CompareConfig, EvaluateConfig
from esper_ray.orchestration.held_out.episode_store import EpisodeStore, Outcome, play_missing, require_store
from esper_ray.orchestration.held_out.paired import means
from esper_ray.orchestration.run.checkpoint import (
    CheckpointManifest,
    held_out,
    read_manifest,
    require_same_task,
)
from esper_ray.orchestration.run.claims import claimed
from esper_ray.orchestration.run.plan import RunObserver, RunPlan, started_actors
from esper_ray.orchestration.run.run_folder import HELD_OUT, is_run, write_json
from esper_ray.plugins import load_plugins, require_outside_folder
from esper_ray.policies import Acting, LearnedPolicy
from esper_ray.tasks import TaskSpec, prepare_data


@dataclass
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        outcomes: one per held-out host, in the order of their seeds.
        file: where the numbers were written.
        losses: actors that were lost and replaced, by cause.
    """

    plan: RunPlan
    manifest: CheckpointManifest
    outcomes: list[Outcome]
    file: Path
    seconds: float = 0.0
    losses: dict[str, int] = field(default_factory=dict)
    means: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.means = means(self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of the file."""
        return {
            "task": self.manifest.task["name"],
            "checkpoint_digest": self.manifest.digest,
            "episodes": len(self.outcomes),
            "actors_lost": self.losses,
            "means": self.means,
            "kept_blueprints": dict(Counter(str(outcome.kept_blueprint) for outcome in self.outcomes)),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }


def evaluate_checkpoint(config: EvaluateConfig, observer: RunObserver) -> EvaluationResult:
    """Plays the policy on held-out hosts, except the episodes that the folder already holds.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another task, action space or version.
        EsperError: as `started_run`.
    """
    started = time.monotonic()
    manifest, task = opened(config.checkpoint, config)
    out = held_out_folder(config.checkpoint, config)
    seeds = held_out(manifest, config.episodes)
    name = policy_name(manifest, config.acting)
    require_store(out)
    with claimed(out), started_actors(with_plugins(config, manifest), task, out) as (plan, algorithm, board):
        manifest.require_spaces(plan.action_names, plan.observation_names)
        with EpisodeStore(out, store_settings(manifest, plan, config.data_dir)) as store:
            observer.on_start(plan, board)
            policy = LearnedPolicy.from_checkpoint(config.checkpoint, config.acting)
            outcomes = play_missing(
                store, algorithm, name, policy, seeds, on_episode=lambda done, n: observer.on_scripted(name, done, n)
            )
            board.close()
            file = out / f"evaluation-{name.replace(' ', '-')}.json"
            result = EvaluationResult(plan, manifest, outcomes, file, time.monotonic() - started, algorithm.losses)
            write_json(file, result.as_dict())
    return result


def opened(checkpoint: Path, config: EvaluateConfig | CompareConfig) -> tuple[CheckpointManifest, TaskSpec]:
    """Returns the manifest and the task of a checkpoint; imports the plugins that it needs.

    Raises:
        CheckpointError: it is damaged, or of another task or version.
        ConfigurationError: a plugin does not import.
    """
    manifest = read_manifest(checkpoint)
    require_same_task(manifest, config.task)
    run = checkpoint.absolute().parent.parent
    require_outside_folder(manifest.plugins, run if is_run(run) else checkpoint)
    load_plugins(with_plugins(config, manifest).plugin)
    return manifest, manifest.task_spec()


def with_plugins(
    config: EvaluateConfig | CompareConfig, manifest: CheckpointManifest
) -> EvaluateConfig | CompareConfig:
    """Returns the configuration with the checkpoint's plugins in front of its own."""
    return config.model_copy(update={"plugin": tuple(dict.fromkeys([*manifest.plugins, *config.plugin]))})


def held_out_folder(checkpoint: Path, config: EvaluateConfig | CompareConfig) -> Path:
    """Returns where the episodes go unless --out says otherwise: into the checkpoint's run folder, or beside it."""
    checkpoint = checkpoint.absolute()
    if config.out is not None:
        return config.out
    if is_run(checkpoint.parent.parent):
        return checkpoint.parent.parent / HELD_OUT / checkpoint.name
    return checkpoint.with_name(f"{checkpoint.name}-{HELD_OUT}")


def policy_name(manifest: CheckpointManifest, acting: Acting) -> str:
    """Returns the name under which a checkpoint's episodes are stored."""
    return f"{acting} {manifest.digest}"


def common_task(manifest: CheckpointManifest) -> dict[str, Any]:
    """Returns the task settings that comparable policies must share: of the reward only the rent."""
    return {key: value for key, value in manifest.task.items() if key != "reward"} | {
        "rent": manifest.task["reward"]["rent"]
    }


def store_settings(manifest: CheckpointManifest, plan: RunPlan, data_dir: Path | None) -> dict[str, Any]:
    """Returns the settings that determine the episodes of a store, besides weights and seeds."""
    data = prepare_data(plan.task, data_dir).folder
    return {
        "task": common_task(manifest),
        "policy code": code_digest("policies"),
        **numeric_provenance(plan.task, data, plan.placement.device_kind, plan.preflight.numerics),
    }
