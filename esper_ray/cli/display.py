"""Displays of a running command: a live table on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typing_extensions import Self

from esper_ray.orchestration.config import WAYS, HeuristicConfig, TrainConfig
from esper_ray.orchestration.fleet.progress import BoardReader, HostProgress
from esper_ray.orchestration.run.plan import RunPlan

_REFRESH_PER_SECOND = 4
_SECONDS_BETWEEN_STATUS_LINES = 30.0
_WIDTH_ELSEWHERE = 160
"""Characters of a line of a table where no terminal says how many there are."""


def make_display() -> "LiveDisplay | PlainDisplay":
    """Returns the display that fits standard output."""
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay()


def make_console() -> Console:
    """Returns a console for tables; in a file or a pipe, which have no width, they get room for long cells."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_ELSEWHERE)


class FittingTable:
    """A table whose cells are folded where they are too long; where not even its headings fit, a line per cell."""

    def __init__(self, table: Table) -> None:
        self._table = table
        for column in table.columns:
            column.overflow = "fold"
            column.min_width = max(map(len, str(column.header).split()))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table
        needed = 1 + sum(3 + (column.min_width or 0) for column in table.columns)
        if needed <= options.max_width:
            yield table
            return
        for text in (table.title, *self._records(), table.caption):
            if text:
                yield text

    def _records(self) -> Iterator[Text]:
        headings = [str(column.header) for column in self._table.columns]
        for cells in zip(*(column.cells for column in self._table.columns), strict=True):
            lines = [f"{heading}: {cell}" for heading, cell in zip(headings, cells, strict=True)]
            yield Text("\n  ".join(lines))


class PlainDisplay:
    """A line per iteration, and a status line every half minute while one is running. An observer of the run."""

    def __init__(self) -> None:
        self._plan: RunPlan | None = None
        self._board: BoardReader | None = None
        self._last_line = time.monotonic()
        self._stop = threading.Event()
        self._status: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._stop.clear()
        self._status = threading.Thread(target=self._print_status, daemon=True)
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._status is not None:
            self._status.join()

    def on_start(self, run: RunPlan, board: BoardReader) -> None:
        """Prints a line that describes the run."""
        self._plan, self._board = run, board
        self._print_line(plan_line(run))

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        """Says when the episodes of a policy that does not learn have been played."""
        if done == total:
            self._print_line(f"{total} {policy} episodes played")

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """Prints the iteration's line."""
        assert self._plan is not None
        learner = row["learner"]
        self._print_line(
            f"iteration {row['iteration']:>3}/{self._plan.iterations}  episodes {row['episodes']:>5}  "
            f"return {row['return']:6.2f}  kept val accuracy {row['kept_val_accuracy']:5.1f} %  "
            f"fossilized {row['fossilized_share']:4.0%}  entropy {share(learner['entropy_share'])}  "
            f"kl {number(learner['kl'], 4)}  explained variance {number(learner['explained_variance'], 2)}  "
            f"{row['episodes_per_second']:.2f} episodes/s"
        )
        if "evaluation" in row:
            self._print_line("  " + evaluation_line(row["evaluation"]))
        for warning in row.get("warnings", ()):
            self._print_line(f"  warning: {warning}")

    def _print_line(self, line: str) -> None:
        self._last_line = time.monotonic()
        print(line, flush=True)

    def _print_status(self) -> None:
        while not self._stop.wait(1.0):
            if self._board is None or time.monotonic() - self._last_line < _SECONDS_BETWEEN_STATUS_LINES:
                continue
            hosts = self._board.read()
            if hosts:
                self._print_line("  " + "; ".join(host_line(host) for host in hosts))


class LiveDisplay:
    """One updating table of the actors' hosts and of the learner. An observer of the run."""

    def __init__(self) -> None:
        self._plan: RunPlan | None = None
        self._board: BoardReader | None = None
        self._scripted = ("", 0, 0)
        self._row: Mapping[str, Any] | None = None
        self._live = Live(get_renderable=self._render, refresh_per_second=_REFRESH_PER_SECOND, console=Console())

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_start(self, run: RunPlan, board: BoardReader) -> None:
        """Sets the run to display."""
        self._plan, self._board = run, board

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        """Updates the number of episodes played with a policy that does not learn."""
        self._scripted = (policy, done, total)

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """Sets the latest iteration's row."""
        self._row = row

    def _render(self) -> Group | Text:
        if self._plan is None or self._board is None:
            return Text("starting Ray and the actors …")
        tables = self._host_table(self._board.read()), self._learner_table()
        return Group(Text(plan_line(self._plan)), *map(FittingTable, tables))

    def _host_table(self, hosts: list[HostProgress]) -> Table:
        several = any(host.host for host in hosts)
        table = Table(
            "runner", *["host"] * several, "epoch", "stage", "val accuracy", "last decision", "episodes", title="hosts"
        )
        for host in hosts:
            table.add_row(
                str(host.runner),
                *[str(host.host + 1)] * several,
                f"{host.epoch}/{host.max_epochs}",
                host.stage,
                f"{host.val_accuracy:.1f} %",
                host.last_decision,
                str(host.episodes_done),
            )
        return table

    def _learner_table(self) -> Table:
        names = ("return", "kept val acc.", "fossilized", "entropy", "KL", "expl. variance", "episodes/s")
        assert self._plan is not None
        row = self._row
        if row is None:
            policy, done, total = self._scripted
            playing = done < total or self._plan.iterations == 0
            title = f"{policy} episodes: {done}/{total}" if playing else "learner: waiting for the first iteration"
            return Table(*names, title=title)
        title = f"learner: iteration {row['iteration']}/{self._plan.iterations}, {row['episodes']} episodes"
        table = Table(*names, title=title)
        learner = row["learner"]
        table.add_row(
            f"{row['return']:.2f}",
            f"{row['kept_val_accuracy']:.1f} %",
            f"{row['fossilized_share']:.0%}",
            share(learner["entropy_share"]),
            number(learner["kl"], 4),
            number(learner["explained_variance"], 2),
            f"{row['episodes_per_second']:.2f}",
        )
        notes = [f"warning: {warning}" for warning in row.get("warnings", ())]
        if "evaluation" in row:
            notes.insert(0, evaluation_line(row["evaluation"]))
        table.caption = "\n".join(notes) or None
        return table


def plan_line(run: RunPlan) -> str:
    """Returns one line that describes the run."""
    what = f"{run.iterations} iterations of " if run.iterations else f"{run.config.command}, "
    each = f" of {run.placement.hosts_per_runner} hosts" if run.placement.hosts_per_runner > 1 else ""
    seed = f"seed {run.config.seed}, " if isinstance(run.config, TrainConfig | HeuristicConfig) else ""
    return (
        f"{run.task.name}: {what}{run.episodes} episodes of {run.task.max_epochs} epochs, "
        f"{run.placement.runners} runners{each} on {run.placement.device_kind}, {seed}writing to {run.out}"
    )


def evaluation_line(evaluation: Mapping[str, Any]) -> str:
    """Returns the results of an evaluation during training in one line."""
    found = ", ".join(
        f"{way} {evaluation[way]['kept_val_accuracy']:.1f} % (score {evaluation[way]['score']:.1f})" for way in WAYS
    )
    return f"on {evaluation['episodes']} held-out hosts: kept val accuracy {found}"


def host_line(host: HostProgress) -> str:
    """Returns a host's progress in a few words."""
    which = f", host {host.host + 1}" if host.host else ""
    return (
        f"runner {host.runner}{which}: epoch {host.epoch}/{host.max_epochs}, {host.stage}, {host.val_accuracy:.1f} %, "
        f"last {host.last_decision}, {host.episodes_done} episodes done"
    )


def share(value: float | None) -> str:
    """Returns a share in percent, or a dash where there is none."""
    return "–" if value is None else f"{value:.0%}"


def number(value: float | None, digits: int) -> str:
    """Returns a number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
