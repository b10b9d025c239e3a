"""A checkpoint's policy on held-out hosts."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esper_ray.episode.host_cache import code_digest, numeric_provenance
from esper_ray.orchestration.config import CompareConfig, EvaluateConfig
from esper_ray.orchestration.held_out.episode_store import EpisodeStore, Outcome, play_missing, require_store
from esper_ray.orchestration.held_out.paired import means
from esper_ray.orchestration.learner.learned_policy import LearnedPolicy
from esper_ray.orchestration.run.checkpoint import (
    CheckpointManifest,
    held_out,
    read_manifest,
    require_same_spaces,
    require_same_task,
)
from esper_ray.orchestration.run.plan import RunObserver, RunPlan, started_actors
from esper_ray.orchestration.run.run_folder import HELD_OUT, is_run, write_json
from esper_ray.plugins import load_plugins, require_outside_folder
from esper_ray.tasks import TaskSpec, prepare_data

_ROOM = "orchestration/learner"
_POLICY_CODE = ("policies", *(f"{_ROOM}/{name}.py" for name in ("learned_policy", "policy_network", "rl_module")))
"""Parts of the package that a decision follows from."""


@dataclass
class EvaluationResult:
    """What the episodes came to.

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
        """Returns what the file holds."""
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
    """Plays the policy on held-out hosts; what the folder holds already is not played again.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another task, action space or version.
        EsperError: as `started_run`.
    """
    started = time.monotonic()
    manifest, task = opened(config.checkpoint, config)
    out = held_out_folder(config.checkpoint, config)
    seeds = held_out(manifest, config.episodes)
    name = policy_name(manifest, config.greedy)
    require_store(out)
    with started_actors(with_plugins(config, manifest), task, out) as (plan, algorithm, board):
        require_same_spaces(manifest, plan.action_names, plan.observation_names)
        with EpisodeStore(out, store_settings(manifest, plan, config.data_dir)) as store:
            observer.on_start(plan, board)
            policy = LearnedPolicy.from_checkpoint(config.checkpoint, config.greedy)
            outcomes = play_missing(
                store, algorithm, name, policy, seeds, on_episode=lambda done, n: observer.on_scripted(name, done, n)
            )
            board.close()
            file = out / f"evaluation-{name.replace(' ', '-')}.json"
            result = EvaluationResult(plan, manifest, outcomes, file, time.monotonic() - started, algorithm.losses)
            write_json(file, result.as_dict())
    return result


def opened(checkpoint: Path, config: EvaluateConfig | CompareConfig) -> tuple[CheckpointManifest, TaskSpec]:
    """Returns what a checkpoint says of itself, and its task; imports the plugins that it needs.

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


def policy_name(manifest: CheckpointManifest, greedy: bool) -> str:
    """Returns the name under which a checkpoint's episodes are stored."""
    return f"{'greedy' if greedy else 'sampled'} {manifest.digest}"


def common_task(manifest: CheckpointManifest) -> dict[str, Any]:
    """Returns what the episodes of comparable policies have in common: of the reward only what the score counts."""
    return {key: value for key, value in manifest.task.items() if key != "reward"} | {
        "rent": manifest.task["reward"]["rent"]
    }


def store_settings(manifest: CheckpointManifest, plan: RunPlan, data_dir: Path | None) -> dict[str, Any]:
    """Returns what all episodes of a store follow from, besides weights and seeds."""
    data = prepare_data(plan.task, data_dir).folder
    return {
        "task": common_task(manifest),
        "policy code": code_digest(*_POLICY_CODE),
        **numeric_provenance(plan.task, data, plan.placement.device_kind, plan.preflight.numerics),
    }
