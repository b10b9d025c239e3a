"""Notebook display of a running command: one output that updates itself, instead of log lines."""

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from html import escape
from math import nan
from typing import Any

import pandas as pd
from typing_extensions import Self

from esper_ray.cli.display import PlainDisplay, number, plan_line, share
from esper_ray.cli.tune import PlainTrials
from esper_ray.cli.tune import plan_line as search_line
from esper_ray.notebook.frames import trials_frame
from esper_ray.orchestration.fleet.progress import BoardReader
from esper_ray.orchestration.run.plan import RunPlan
from esper_ray.orchestration.tuning.ranking import TrialResult
from esper_ray.orchestration.tuning.search import SearchPlan

_SECONDS_BETWEEN_UPDATES = 1.0
_LEARNED, _WAITING = "#0072B2", "#D55E00"


def in_notebook() -> bool:
    """Returns whether this process is a notebook's kernel, whose outputs can be updated."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class NotebookDisplay:
    """One updating output. An observer of runs and of searches; use it as a context manager around each.

    Attributes:
        rows: of the iterations that were seen, in order; kept over several uses.
        wait_only: kept validation accuracy of hosts that only waited, percent, if it is known.
    """

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.wait_only: float | None = None
        self._title = "starting the actors …"
        self._board: BoardReader | None = None
        self._scripted = ""
        self._trials: Sequence[TrialResult] = ()
        self._plot: tuple[int, str] = (-1, "")
        self._handle: Any = None
        self._stop = threading.Event()
        self._updates: threading.Thread | None = None

    def __enter__(self) -> Self:
        from IPython.display import HTML, display

        self._handle = display(HTML(self._html()), display_id=True)
        self._stop.clear()
        self._updates = threading.Thread(target=self._keep_updating, daemon=True)
        self._updates.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._updates is not None
        self._updates.join()
        self._board = None
        self._update()

    def on_start(self, run: RunPlan | SearchPlan, board: BoardReader | None = None) -> None:
        """Sets the run, with the board on which its actors report, or the search to display."""
        self._title = plan_line(run) if isinstance(run, RunPlan) else search_line(run)
        self._board = board

    def on_scripted(self, policy: str, done: int, total: int) -> None:
        """Updates the number of episodes played with a policy that does not learn."""
        self._scripted = f"{policy}: {done} of {total} episodes" if done < total else ""

    def on_iteration(self, row: Mapping[str, Any]) -> None:
        """Adds the iteration's row."""
        self.rows.append(row)

    def on_trials(self, trials: Sequence[TrialResult]) -> None:
        """Updates the progress of the trials of a search."""
        self._trials = trials

    def _keep_updating(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_UPDATES):
            self._update()

    def _update(self) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(self._html()))

    def _html(self) -> str:
        parts = [f"<div>{escape(self._title)}</div>"]
        if self._scripted:
            parts.append(f"<div>{escape(self._scripted)}</div>")
        hosts = self._board.read() if self._board is not None else []
        if hosts:
            parts.append(_table([vars(host) for host in hosts]))
        if self.rows:
            parts += [_table([_learner(self.rows[-1])]), self._learning_curve()]
            parts += [f"<div>warning: {escape(warning)}</div>" for warning in self.rows[-1].get("warnings", ())]
        if self._trials:
            parts.append(trials_frame(self._trials).to_html(float_format="%.4g", na_rep="–", border=0))
        return "\n".join(parts)

    def _learning_curve(self) -> str:
        """Returns the curve as an image, drawn anew only when there is another iteration; empty without matplotlib."""
        if self._plot[0] != len(self.rows):
            self._plot = (len(self.rows), _curve_image(self.rows, self.wait_only))
        return self._plot[1]


class PlainSessionDisplay(PlainDisplay):
    """Display of a session outside a notebook: plain lines."""

    def __init__(self) -> None:
        super().__init__()
        self._trials = PlainTrials()
        self.wait_only: float | None = None

    def on_start(self, run: RunPlan | SearchPlan, board: BoardReader | None = None) -> None:
        """Prints a line that describes the run or the search."""
        if isinstance(run, SearchPlan):
            self._trials.on_start(run)
        else:
            assert board is not None
            super().on_start(run, board)

    def on_trials(self, trials: Sequence[TrialResult]) -> None:
        """Prints the progress of the trials of a search."""
        self._trials.on_trials(trials)


def make_session_display() -> NotebookDisplay | PlainSessionDisplay:
    """Returns the display that fits this process, in a notebook or not."""
    return NotebookDisplay() if in_notebook() else PlainSessionDisplay()


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    frame = pd.DataFrame(rows).rename(columns=lambda name: str(name).replace("_", " "))
    html: str = frame.to_html(index=False, float_format="%.1f", border=0)
    return html


def _learner(row: Mapping[str, Any]) -> dict[str, str]:
    learner = row["learner"]
    return {
        "iteration": str(row["iteration"]),
        "episodes": str(row["episodes"]),
        "return": f"{row['return']:.2f}",
        "kept val accuracy": f"{row['kept_val_accuracy']:.1f} %",
        "fossilized": f"{row['fossilized_share']:.0%}",
        "entropy": share(learner["entropy_share"]),
        "KL": number(learner["kl"], 4),
        "explained variance": number(learner["explained_variance"], 2),
        "episodes/s": f"{row['episodes_per_second']:.2f}",
    }


def _curve_image(rows: Sequence[Mapping[str, Any]], wait_only: float | None) -> str:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return ""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    iterations = [row["iteration"] for row in rows]
    means = [row["kept_val_accuracy"] for row in rows]
    known = [row["kept_val_accuracy_std"] for row in rows]
    spread = [nan if deviation is None else deviation for deviation in known]
    low, high = [m - s for m, s in zip(means, spread, strict=True)], [m + s for m, s in zip(means, spread, strict=True)]
    axes.fill_between(iterations, low, high, color=_LEARNED, alpha=0.2, label="± 1 standard deviation")
    axes.plot(iterations, means, color=_LEARNED, marker="o", markersize=3, label="learned policy")
    if wait_only is not None:
        axes.axhline(wait_only, color=_WAITING, linestyle="--", label="hosts that only wait")
    axes.set_xlabel("iteration")
    axes.set_ylabel("kept validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    image = io.BytesIO()
    figure.savefig(image, dpi=110)
    return f'<img alt="learning curve" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'
