"""`esper-ray tune`: searches settings and prints their ranking."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from typing_extensions import Self

from esper_ray.cli.display import FittingTable, make_console
from esper_ray.cli.summary import INTERRUPTED, next_command
from esper_ray.orchestration.config import TuneConfig
from esper_ray.orchestration.tuning.ranking import RankedSetting, TrialResult, describe
from esper_ray.orchestration.tuning.search import SearchPlan, SearchResult, run_search
from esper_ray.report import write_plots, write_report

_SECONDS_BETWEEN_LINES = 15.0
_ROWS = 20
"""Trials that the live table shows: those that run, then those that ended last."""
_FAILED = 1


def run_tune(config: TuneConfig) -> int:
    """Searches, prints the ranking, and returns the exit code: 1 if a trial failed, 130 if it was interrupted."""
    with LiveTrials() if sys.stdout.isatty() else PlainTrials() as display:
        result = run_search(config, display)
    console = make_console()
    console.print(FittingTable(_ranking_table(result)))
    pictures = write_plots(result.plan.folder) if result.ranking else []
    page = write_report(result.plan.folder)
    for line in _summary(result, [str(picture) for picture in pictures], str(page)):
        console.print(line, soft_wrap=True, markup=False)
    if result.interrupted:
        return INTERRUPTED
    return _FAILED if result.failed else 0


def plan_line(plan: SearchPlan) -> str:
    """Returns one line that describes the search."""
    search, placement = plan.search, plan.placement
    return (
        f"{search.train.task}: {search.settings_count} settings × {len(search.seeds)} seeds = {search.trial_count} "
        f"trials of {search.train.iterations} iterations, {plan.concurrent} at a time with {placement.runners} "
        f"runner{'s' * (placement.runners > 1)} each on {placement.device_kind}, scheduler {search.scheduler.kind}, "
        f"writing to {plan.folder}"
    )


class PlainTrials:
    """A line when a trial starts or ends, and one now and then. An observer of the search."""

    def __init__(self) -> None:
        self._plan: SearchPlan | None = None
        self._status: dict[str, str] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def on_start(self, plan: SearchPlan) -> None:
        """Prints a line that describes the search."""
        self._plan = plan
        print(plan_line(plan), flush=True)

    def on_trials(self, trials: Sequence[TrialResult]) -> None:
        """Prints a line for each trial that started or ended, and a status line now and then."""
        for trial in trials:
            if self._status.get(trial.name) != trial.status and trial.status not in ("pending", "paused"):
                self._print_line(f"{trial.name} {trial.status:<8} {describe(trial.setting)}{self._value(trial)}")
            self._status[trial.name] = trial.status
        if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            running = [trial for trial in trials if trial.status == "running"]
            parts = [f"{trial.name} {trial.iterations}/{trial.of}{self._value(trial)}" for trial in running]
            self._print_line("  " + "; ".join([_counts(trials), *parts]))

    def _value(self, trial: TrialResult) -> str:
        assert self._plan is not None
        return "" if trial.value is None else f"  {self._plan.search.metric} {trial.value:.4g}"

    def _print_line(self, line: str) -> None:
        self._last_line = time.monotonic()
        print(line, flush=True)


class LiveTrials:
    """One updating table of the trials. An observer of the search."""

    def __init__(self) -> None:
        self._plan: SearchPlan | None = None
        self._trials: Sequence[TrialResult] = ()
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._render, refresh_per_second=2, console=Console())

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_start(self, plan: SearchPlan) -> None:
        """Sets the search to display."""
        self._plan = plan

    def on_trials(self, trials: Sequence[TrialResult]) -> None:
        """Updates the progress of the trials."""
        with self._lock:
            self._trials = trials

    def _render(self) -> FittingTable | str:
        with self._lock:
            plan, trials = self._plan, self._trials
        if plan is None:
            return "starting Ray …"
        return FittingTable(trials_table(plan, trials))


def trials_table(plan: SearchPlan, trials: Sequence[TrialResult]) -> Table:
    """Returns the trials as a table: those that run first."""
    order = {"running": 0, "paused": 1, "failed": 2, "finished": 3, "stopped": 4, "pending": 5}
    shown = sorted(trials, key=lambda trial: (order[trial.status], trial.name))[:_ROWS]
    table = Table("trial", "status", "setting", "seed", "iterations", plan.search.metric, title=plan_line(plan))
    for trial in shown:
        value = "–" if trial.value is None else f"{trial.value:.4g}"
        iterations = f"{trial.iterations}/{trial.of}"
        table.add_row(trial.name, trial.status, describe(trial.setting), str(trial.seed), iterations, value)
    table.caption = _counts(trials)
    return table


def _counts(trials: Sequence[TrialResult]) -> str:
    return ", ".join(f"{count} {status}" for status, count in Counter(trial.status for trial in trials).items())


def _ranking_table(result: SearchResult) -> Table:
    search = result.plan.search
    table = Table(
        "rank",
        "setting",
        f"{search.metric}: mean",
        "standard deviation",
        "each seed",
        "iterations",
        title=f"{len(result.ranking)} settings by {search.metric} ({search.mode}), mean of the last fifth of a trial",
    )
    for place, entry in enumerate(result.ranking, start=1):
        table.add_row(*_row(place, entry))
    if any(not entry.complete for entry in result.ranking):
        table.caption = "* ended early: not all of its trials came to their end, so it ranks behind those whose did"
    return table


def _row(place: int, entry: RankedSetting) -> tuple[str, ...]:
    values = [f"{trial.value:.4g}" for trial in entry.trials if trial.value is not None]
    iterations = ", ".join(str(trial.iterations) for trial in entry.trials)
    return (
        f"{place}{'' if entry.complete else '*'}",
        describe(entry.setting),
        f"{entry.mean:.4g}",
        "not known" if entry.std is None else f"{entry.std:.3g}",
        ", ".join(values),
        iterations,
    )


def _resume_command(plan: SearchPlan) -> str:
    config = plan.config
    address = () if config.address is None else ("--address", config.address)
    logger = ("--logger", *config.logger) if config.logger else ()
    return next_command("esper-ray", "tune", config.file, "--out", plan.folder, "--resume", *address, *logger)


def _summary(result: SearchResult, pictures: Sequence[str], page: str) -> list[str]:
    plan = result.plan
    lines = [
        f"{'Interrupted' if result.interrupted else 'Done'}: {_counts(result.trials) or 'no trial began'}, "
        f"{result.seconds / 60:.1f} minutes."
    ]
    lines += [f"{trial.name} failed: {trial.failure}" for trial in result.failed]
    if pictures:
        lines.append(f"Plots: {', '.join(pictures)}")
    lines.append(f"Report: {page}")
    if result.interrupted or result.failed:
        lines.append(_resume_command(plan))
    if result.best is not None:
        lines.append(next_command("esper-ray", "train", "--config", result.best))
    return lines
