"""The main job: wait-only hosts for comparison, then iterations of episodes and learner updates, all written down."""

import copy
import time
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from esper_ray.orchestration.algorithm import EpisodePPO
from esper_ray.orchestration.checkpoint import CheckpointFacts, present_versions, write_facts
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.health import warnings_of
from esper_ray.orchestration.kept_hosts import KeptHosts
from esper_ray.orchestration.learned_policy import LearnedPolicy
from esper_ray.orchestration.metrics import episode_metrics, learner_metrics, mean_with_error
from esper_ray.orchestration.plan import RunObserver, RunPlan, started_run
from esper_ray.orchestration.progress import BoardReader
from esper_ray.orchestration.run_folder import RunFolder
from esper_ray.orchestration.tickets import FinishedEpisode, assign, development_seeds, spread
from esper_ray.policies import WaitPolicy
from esper_ray.seeding import Stream, derive_seed

_LAST_SHARE = 0.2


@dataclass
class RunResult:
    """What a run came to. Accuracies are kept validation accuracies in percent.

    Attributes:
        wait_only: of the hosts that never grew a seed.
        trained: of every training episode, in the order of the iterations.
        stage_counts: episodes that were in each stage at some time.
        host_epochs: trained for the learner, twins of the reward included.
        forced_epochs: host epochs before the first real choice of an episode; `taken_over_epochs` of them were not
            trained, because the host pool had them.
        interrupted: the run was ended before its last iteration.
    """

    plan: RunPlan
    checkpoint: Path | None = None
    wait_only: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    stage_counts: dict[str, int] = field(default_factory=dict)
    fossilized: int = 0
    host_epochs: int = 0
    forced_epochs: int = 0
    taken_over_epochs: int = 0
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
            "host_epochs": self.host_epochs,
            "host_epochs_before_first_choice": self.forced_epochs,
            "host_epochs_taken_over": self.taken_over_epochs,
            "actors_lost": self.actors_lost,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "complete": self.iterations == self.plan.iterations,
        }


def train(config: TrainConfig, observer: RunObserver) -> RunResult:
    """Runs the main job and returns what it came to. Ctrl-C ends it early, with a checkpoint.

    Raises:
        EsperError: as `started_run`; before any actor starts, and nothing is written.
        EpisodeFailedError: an episode raised, or its actor was lost too often; there is a checkpoint.
    """
    started = time.monotonic()
    with started_run(config) as (plan, algorithm, board), RunFolder(plan.out, plan.as_dict()) as folder:
        result = RunResult(plan)
        observer.on_start(plan, board)
        try:
            result.wait_only = _play_wait_only(config, plan, algorithm, observer)
            _iterate(config, plan, algorithm, folder, observer, result)
        except KeyboardInterrupt:
            result.interrupted = True
        finally:
            _finish(algorithm, board, folder, result, time.monotonic() - started)
    return result


def _finish(algorithm: EpisodePPO, board: BoardReader, folder: RunFolder, result: RunResult, seconds: float) -> None:
    board.close()
    result.iterations = algorithm.iteration
    result.actors_lost = algorithm.actors_lost
    result.checkpoint = _save(result.plan, algorithm, folder, result)
    result.seconds = seconds
    folder.write_summary(result.as_dict())


def _save(plan: RunPlan, algorithm: EpisodePPO, folder: RunFolder, result: RunResult) -> Path:
    config, iteration = plan.config, algorithm.iteration
    facts = CheckpointFacts(
        versions=present_versions(),
        task=plan.task.model_dump(mode="json"),
        actions=plan.action_names,
        observation=plan.observation_names,
        seed=config.seed,
        runners=plan.placement.runners,
        episodes_per_iteration=plan.episodes,
        host_pool=config.host_pool,
        iteration=iteration,
        host_epochs=result.host_epochs,
        plugins=config.plugin,
    )

    def save(path: str) -> None:
        algorithm.save_to_path(path)
        write_facts(Path(path), facts)

    return folder.save_checkpoint(iteration, save)


def _play_wait_only(config: TrainConfig, plan: RunPlan, algorithm: EpisodePPO, observer: RunObserver) -> list[float]:
    """Plays hosts that never grow a seed, on seeds that no training episode has."""
    total = plan.wait_only_episodes
    if total == 0:
        return []
    base_seed = derive_seed(config.seed, Stream.WAIT_ONLY)
    tickets = assign(total, min(plan.placement.runners, total), 0, base_seed)
    done = 0

    def count(_episode: FinishedEpisode) -> None:
        nonlocal done
        done += 1
        observer.on_scripted("wait-only", done, total)

    return [episode.record.kept_val_accuracy for episode in algorithm.play_scripted(tickets, WaitPolicy(), count)]


def _evaluate(config: TrainConfig, plan: RunPlan, algorithm: EpisodePPO) -> dict[str, Any]:
    """Plays the present policy on held-out hosts, sampled and greedy. The test split stays out of it."""
    seeds = development_seeds(config.evaluation_episodes)
    assert not set(seeds) & algorithm.training_seeds(plan.iterations), "held-out seeds must not occur in training"
    tickets = spread(seeds, min(plan.placement.runners, len(seeds)))
    algorithm.keep_from = inf
    found: dict[str, Any] = {"episodes": len(seeds)}
    for way in ("sampled", "greedy"):
        policy = LearnedPolicy(copy.deepcopy(algorithm.policy_network), greedy=way == "greedy")
        records = [episode.record for episode in algorithm.play_scripted(tickets, policy)]
        found[way] = {
            "kept_val_accuracy": fmean(record.kept_val_accuracy for record in records),
            "score": fmean(record.val_score for record in records),
            "added_parameters": fmean(record.added_parameters for record in records),
            "fossilized_share": fmean(record.kept_blueprint is not None for record in records),
        }
    return found


def _iterate(
    config: TrainConfig,
    plan: RunPlan,
    algorithm: EpisodePPO,
    folder: RunFolder,
    observer: RunObserver,
    result: RunResult,
) -> None:
    started = time.monotonic()
    kept = KeptHosts(folder.hosts, config.keep_hosts)
    for iteration in range(1, plan.iterations + 1):
        iteration_started = time.monotonic()
        algorithm.keep_from = kept.threshold
        rllib_result = algorithm.train()
        for number, episode in enumerate(algorithm.episodes, start=len(result.trained) + 1):
            folder.add_episode(number, iteration, episode)
            kept.offer(number, episode)
        records = [episode.record for episode in algorithm.episodes]
        result.trained += [record.kept_val_accuracy for record in records]
        result.fossilized += sum(record.final_stage == "FOSSILIZED" for record in records)
        learner = learner_metrics(rllib_result) | algorithm.learner_figures
        result.host_epochs += sum(record.trained_epochs for record in records)
        result.forced_epochs += sum(record.forced_beginning for record in records)
        result.taken_over_epochs += sum(record.taken_over for record in records)
        row = {
            "iteration": iteration,
            "episodes": len(result.trained),
            "host_epochs": result.host_epochs,
            "seconds": time.monotonic() - started,
            "episodes_per_second": len(records) / (time.monotonic() - iteration_started),
            **episode_metrics(records, plan.action_names),
            "learner": learner,
            "warnings": warnings_of(learner, iteration, plan.iterations),
            "actors_lost": algorithm.actors_lost,
        }
        for stage, count in row["episodes_reaching"].items():
            result.stage_counts[stage] = result.stage_counts.get(stage, 0) + count
        try:
            if config.evaluate_every and iteration % config.evaluate_every == 0:
                row["evaluation"] = _evaluate(config, plan, algorithm)
        finally:  # the iteration counts, whether its evaluation was interrupted or not
            folder.add_iteration(row)
            observer.on_iteration(row)
        if iteration % config.checkpoint_every == 0:
            _save(plan, algorithm, folder, result)
