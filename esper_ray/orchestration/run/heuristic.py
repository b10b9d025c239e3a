"""Episodes of the heuristic policy, on the same actors and with the same run folder as training."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from esper_ray.episode import ActionTable, EpisodeRecord
from esper_ray.errors import RunFolderError
from esper_ray.orchestration.config import HeuristicConfig
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, assign
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.run.kept_hosts import KeptHosts
from esper_ray.orchestration.run.metrics import episode_metrics, mean_with_error
from esper_ray.orchestration.run.plan import RunObserver, RunPlan, started_run
from esper_ray.orchestration.run.run_folder import RunFolder
from esper_ray.policies import HeuristicPolicy

logger = logging.getLogger(__name__)


@dataclass
class HeuristicResult:
    """The result of a heuristic run.

    Attributes:
        records: of the episodes that were played to their end, by runner and number.
        means: their row of metrics.jsonl; empty if there are none.
        losses: actors that were lost and replaced, by cause, see `dispatch.CAUSES`.
        interrupted: the run was ended before its last episode.
    """

    plan: RunPlan
    records: list[EpisodeRecord] = field(default_factory=list)
    means: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def kept_val_accuracy(self) -> tuple[float, float | None]:
        """Mean kept validation accuracy, percent, and its standard error; None if that is not known."""
        return mean_with_error([record.kept_val_accuracy for record in self.records])


def play_heuristic(config: HeuristicConfig, observer: RunObserver) -> HeuristicResult:
    """Plays the episodes and records them. Ctrl-C ends the run early; finished episodes are recorded.

    Raises:
        EsperError: as `started_run`; before any actor starts, and nothing is written.
        EpisodeFailedError: an episode raised, or its actor was lost too often.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        plan, algorithm, board = stack.enter_context(started_run(config))
        folder = stack.enter_context(RunFolder(plan.out, plan.as_dict()))
        result = HeuristicResult(plan)
        observer.on_start(plan, board)
        finished: dict[int, EpisodeRecord] = {}
        try:
            _play(config, plan, algorithm, folder, observer, finished)
        except KeyboardInterrupt:
            result.interrupted = True
        finally:
            board.close()
            result.seconds = time.monotonic() - started
            result.losses = algorithm.losses
            result.records = [finished[number] for number in sorted(finished)]
            _write_means(folder, result)
    return result


def _play(
    config: HeuristicConfig,
    plan: RunPlan,
    algorithm: EpisodeAlgorithm,
    folder: RunFolder,
    observer: RunObserver,
    finished: dict[int, EpisodeRecord],
) -> None:
    """Plays the episodes, records each as it ends, and enters it in `finished` under its number in the run."""
    tickets = assign(plan.episodes, plan.placement.players, 0, config.seed)
    numbers = {ticket: number for number, ticket in enumerate(tickets, start=1)}
    kept = KeptHosts(folder.hosts, config.keep_hosts)
    algorithm.keep_from = kept.threshold

    def seen(episode: FinishedEpisode) -> None:
        number = numbers[episode.ticket]
        folder.add_episode(number, 1, episode)
        try:
            kept.offer(number, episode)
        except RunFolderError as error:
            logger.warning("%s", error)
        algorithm.keep_from = kept.threshold
        finished[number] = episode.record
        observer.on_scripted("heuristic", len(finished), plan.episodes)

    policy = HeuristicPolicy.of(plan.task, ActionTable.from_names(plan.action_names))
    algorithm.play_scripted(tickets, policy, seen)


def _write_means(folder: RunFolder, result: HeuristicResult) -> None:
    episodes = len(result.records)
    if episodes:
        result.means = episode_metrics(result.records, result.plan.action_names)
        folder.add_iteration({"iteration": 1, "episodes": episodes, "seconds": result.seconds, **result.means})
    summary = {
        "episodes": episodes,
        "kept_val_accuracy": result.kept_val_accuracy if episodes else None,
        "actors_lost": result.losses,
        "seconds": result.seconds,
        "interrupted": result.interrupted,
    }
    folder.write_summary(summary)
