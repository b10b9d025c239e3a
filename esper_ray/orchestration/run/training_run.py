"""A training run in progress: wait-only hosts for comparison, then an iteration at a time, all written down."""

import time
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from esper_ray.errors import RunFolderError
from esper_ray.orchestration.config import WAYS, TrainConfig
from esper_ray.orchestration.fleet.interrupts import deferred_interrupts
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, assign, development_seeds, spread
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.health import warnings_of
from esper_ray.orchestration.run.checkpoint import CheckpointManifest, present_versions
from esper_ray.orchestration.run.kept_hosts import KeptHosts
from esper_ray.orchestration.run.metrics import episode_metrics, learner_metrics
from esper_ray.orchestration.run.plan import RunObserver, RunPlan
from esper_ray.orchestration.run.run_folder import RunFolder
from esper_ray.orchestration.run.run_result import RunResult, RunTally, write_tally
from esper_ray.policies import LearnedPolicy, WaitPolicy
from esper_ray.policies.manifest import write_manifest
from esper_ray.seeding import Stream, derive_seed
from esper_ray.shell import pasteable


class TrainingRun:
    """Runs the iterations of a training. The caller owns actors and folder, and closes them.

    An interrupt while episodes are played abandons the iteration: `iterate` may be called again and plays the same one.
    One that comes later, while the policy is updated, is held back until the iteration is over and written down. One
    that comes during its evaluation on held-out hosts leaves the row without that evaluation.

    Attributes:
        algorithm: actors and learner.
        result: what the run came to so far.

    Args:
        plan: the run, of `esper-ray train`.
        algorithm: actors and learner, at the iteration at which the run goes on.
        folder: where it writes.
        observer: sees every iteration.
    """

    def __init__(self, plan: RunPlan, algorithm: EpisodeAlgorithm, folder: RunFolder, observer: RunObserver) -> None:
        assert isinstance(plan.config, TrainConfig)
        self.config = plan.config
        self.result = RunResult(plan)
        self._plan = plan
        self.algorithm = algorithm
        self._folder = folder
        self._observer = observer
        self._kept = KeptHosts(folder.hosts, self.config.keep_hosts)
        self._losses_before: dict[str, int] = {}
        self._has_waited = False
        self._is_written_down = True

    @property
    def iteration(self) -> int:
        """Iterations that are over."""
        return int(self.algorithm.iteration)

    @property
    def is_over(self) -> bool:
        """True once the last iteration is over."""
        return self.iteration >= self._plan.iterations

    def resume_from(self, tally: RunTally) -> None:
        """Resumes a run with the totals `tally`, whose rows and hosts are in the folder."""
        self.result.tally = tally
        self._has_waited = True
        self._losses_before = tally.losses
        self._kept.resume_from(tally.trained)

    def play_wait_only(self) -> None:
        """Plays hosts that never grow a seed, on seeds that no training episode has; only once in a run."""
        total = self._plan.wait_only_episodes
        if total == 0 or self._has_waited:
            return
        base_seed = derive_seed(self.config.seed, Stream.WAIT_ONLY)
        tickets = assign(total, min(self._plan.placement.players, total), 0, base_seed)
        done = 0

        def count(_episode: FinishedEpisode) -> None:
            nonlocal done
            done += 1
            self._observer.on_scripted("wait-only", done, total)

        played = self.algorithm.play_scripted(tickets, WaitPolicy(), count)
        self.result.tally.wait_only = [episode.record.kept_val_accuracy for episode in played]
        self._has_waited = True
        self.save()

    def iterate(self) -> dict[str, Any]:
        """Plays an iteration's episodes, updates the policy, and returns the row of metrics.jsonl.

        Raises:
            EpisodeFailedError: an episode raised, or its actor was lost too often.
            RunFolderError: a row cannot be written, as on a full disk. The run is then at its last checkpoint.
        """
        started = time.monotonic()
        self._require_written_down()
        with deferred_interrupts():
            self.algorithm.keep_from = self._kept.threshold
            rllib_result = self.algorithm.train()
            self._is_written_down = False
            row = self._row(rllib_result, started)
            try:
                if self.config.evaluate_every and self.iteration % self.config.evaluate_every == 0:
                    row["evaluation"] = self._evaluate()
            finally:  # the iteration counts, whether its evaluation was interrupted or not
                self.result.tally.seconds += time.monotonic() - started
                self._folder.add_iteration(row)  # before the checkpoint: a row too many can be dropped, none made up
                self._is_written_down = True
                try:
                    self.save()
                except RunFolderError as error:
                    row["warnings"].append(str(error))
                self._observer.on_iteration(row)
        return row

    def _require_written_down(self) -> None:
        """Refuses to continue, or to write a checkpoint, after an iteration whose rows could not be written.

        Raises:
            RunFolderError: the rows of one are missing.
        """
        if not self._is_written_down:
            path = self._folder.path
            raise RunFolderError(
                f"the rows of iteration {self.iteration} in {path} could not be written; go on with "
                f"{pasteable('--resume', path)}"
            )

    def _row(self, rllib_result: dict[str, Any], started: float) -> dict[str, Any]:
        algorithm, tally, iteration = self.algorithm, self.result.tally, self.iteration
        unwritten = []
        for number, episode in enumerate(algorithm.episodes, start=len(tally.trained) + 1):
            self._folder.add_episode(number, iteration, episode)
            try:
                self._kept.offer(number, episode)
            except RunFolderError as error:
                unwritten.append(str(error))
        records = [episode.record for episode in algorithm.episodes]
        seconds = time.monotonic() - started
        means = episode_metrics(records, self._plan.action_names)
        tally.add(records, means["episodes_reaching"])
        tally.losses = self._losses()
        learner = learner_metrics(rllib_result) | algorithm.learner_figures
        return {
            "iteration": iteration,
            "episodes": len(tally.trained),
            "host_epochs": tally.host_epochs,
            "seconds": tally.seconds + seconds,
            "episodes_per_second": len(records) / seconds,
            **means,
            "learner": learner,
            "warnings": [*warnings_of(learner, iteration, self._plan.iterations), *unwritten],
            "actors_lost": tally.losses,
        }

    def _losses(self) -> dict[str, int]:
        return {cause: count + self._losses_before.get(cause, 0) for cause, count in self.algorithm.losses.items()}

    def _evaluate(self) -> dict[str, Any]:
        """Plays the present policy on held-out hosts, sampled and deterministic, without the test split."""
        algorithm = self.algorithm
        seeds = development_seeds(self.config.evaluation_episodes)
        training = algorithm.training_seeds(self._plan.iterations)
        assert not set(seeds) & training, "held-out seeds must not occur in training"
        tickets = spread(seeds, min(self._plan.placement.players, len(seeds)))
        algorithm.keep_from = inf
        network = algorithm.acting_network()
        found: dict[str, Any] = {"episodes": len(seeds)}
        for way in WAYS:
            policy = LearnedPolicy(network, self._plan.action_names, self._plan.observation_names, way)
            records = [episode.record for episode in algorithm.play_scripted(tickets, policy)]
            found[way] = {
                "kept_val_accuracy": fmean(record.kept_val_accuracy for record in records),
                "score": fmean(record.val_score for record in records),
                "added_parameters": fmean(record.added_parameters for record in records),
                "fossilized_share": fmean(record.kept_blueprint is not None for record in records),
            }
        return found

    def save(self) -> Path:
        """Writes a checkpoint of the present iteration into the run folder, unless it is there, and returns it.

        Raises:
            RunFolderError: it could not be written; the earlier ones are as they were.
        """
        self._require_written_down()
        manifest = CheckpointManifest(
            versions=present_versions(),
            task=self._plan.task.model_dump(mode="json"),
            actions=self._plan.action_names,
            observation=self._plan.observation_names,
            seed=self.config.seed,
            runners=self._plan.placement.players,
            episodes_per_iteration=self._plan.episodes,
            host_pool=self.config.host_pool,
            consumed=self.algorithm.consumed,
            iteration=self.iteration,
            host_epochs=self.result.tally.host_epochs,
            plugins=self.config.plugin,
        )

        def save(folder: Path) -> None:
            self.algorithm.write_checkpoint(folder)
            write_tally(folder, self.result.tally)
            write_manifest(folder, manifest)

        return self._folder.save_checkpoint(self.iteration, save, self.config.checkpoint_every)

    def finish(self, seconds: float) -> RunResult:
        """Writes checkpoint and summary, and returns the result after `seconds` of wall time.

        After an iteration whose rows could not be written, it writes neither: the run is at its last checkpoint.

        Raises:
            RunFolderError: one of them could not be written, as on a full disk.
        """
        self.result.iterations, self.result.seconds = self.iteration, seconds
        self.result.tally.losses = self._losses()
        if self._is_written_down:
            self.result.checkpoint = self.save()
            self._folder.write_summary(self.result.as_dict())
        else:
            self.result.checkpoint = next(reversed(self._folder.checkpoints()), None)
        return self.result
