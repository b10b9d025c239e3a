"""A board to which actors report the progress of their hosts: for displays, and to tell slow actors from hung ones."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_MIN_SECONDS_BETWEEN_REPORTS = 0.25
_MIN_SECONDS_BETWEEN_HEARTBEATS = 1.0
_READ_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True)
class HostProgress:
    """Progress of one host of an actor; `host` is its number, from 0. Accuracy in percent."""

    runner: int
    host: int
    epoch: int
    max_epochs: int
    stage: str
    val_accuracy: float
    last_decision: str
    episodes_done: int


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the latest report of every host, and when an actor was last heard of."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], HostProgress] = {}
        self._heard: dict[int, float] = {}
        self._started = time.monotonic()

    def report(self, progress: HostProgress) -> None:
        """Replaces the host's last report."""
        self._latest[progress.runner, progress.host] = progress

    def read(self) -> list[HostProgress]:
        """Returns the latest report of every host, by runner."""
        return [self._latest[place] for place in sorted(self._latest)]

    def heartbeat(self, runner: int) -> None:
        """Notes that an actor has just finished an epoch."""
        self._heard[runner] = time.monotonic()

    def silent_seconds(self, runner: int) -> float:
        """Returns for how long an actor has finished no epoch, as far as this board knows."""
        return time.monotonic() - self._heard.get(runner, self._started)


def start_board(name: str) -> ray.actor.ActorHandle:
    """Starts a board beside this process: the machines that actors sit on come and go. Ray restarts one that died."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ProgressBoard.options(name=name, scheduling_strategy=here, max_restarts=-1).remote()  # type: ignore[attr-defined]


class BoardReader:
    """Reads the board for a display, from any thread, for as long as the run lasts.

    A call to an actor after Ray's end would start another Ray, so `close` waits for a read in progress and makes
    later ones answer with what was last read.
    """

    def __init__(self, board: ray.actor.ActorHandle) -> None:
        self._board = board
        self._open = True
        self._lock = threading.Lock()
        self._last: list[HostProgress] = []

    def read(self) -> list[HostProgress]:
        """Returns the latest report of every host, by runner; the ones before if the board does not answer at once."""
        with self._lock:
            if self._open:
                ready, _ = ray.wait([answer := self._board.read.remote()], timeout=_READ_TIMEOUT_SECONDS)
                with suppress(RayError):  # the board's process died: the run can do without
                    self._last = ray.get(answer) if ready else self._last
            return self._last

    def close(self) -> None:
        """Ends reading."""
        with self._lock:
            self._open = False


def silent_seconds(board: ray.actor.ActorHandle | None, runner: int) -> float:
    """Returns for how long an actor has finished no epoch: infinity without a board, 0 if it does not answer."""
    if board is None:
        return inf
    ready, _ = ray.wait([answer := board.silent_seconds.remote(runner)], timeout=_READ_TIMEOUT_SECONDS)
    try:
        return float(ray.get(answer)) if ready else 0.0
    except RayError:  # the board's process died; the next one counts from its own start
        return 0.0


class ProgressReporter:
    """Sends a host's reports to the board, a few times a second at most, and never waits for it.

    Args:
        board_name: name of the board actor; None: report nothing. Nor is anything reported if the board is gone: a
            checkpoint names the board of a run that is over.
        runner: index of this actor.
        host: which of its hosts, from 0.
    """

    def __init__(self, board_name: str | None, runner: int, host: int) -> None:
        self._board = find_board(board_name)
        self.runner, self.host = runner, host
        self.episodes_done = 0
        self._last = self._last_heartbeat = 0.0

    def heartbeat(self) -> None:
        """Says that an epoch is over."""
        now = time.monotonic()
        if self._board is not None and now - self._last_heartbeat >= _MIN_SECONDS_BETWEEN_HEARTBEATS:
            self._last_heartbeat = now
            self._board.heartbeat.remote(self.runner)

    def report(self, epoch: int, max_epochs: int, stage: str, val_accuracy: float, decision: str) -> None:
        """Reports the host's state after an epoch."""
        self.episodes_done += epoch == max_epochs
        now = time.monotonic()
        if self._board is None or now - self._last < _MIN_SECONDS_BETWEEN_REPORTS:
            return
        self._last = now
        progress = HostProgress(
            self.runner, self.host, epoch, max_epochs, stage, val_accuracy, decision, self.episodes_done
        )
        self._board.report.remote(progress)


def find_board(name: str | None) -> ray.actor.ActorHandle | None:
    """Returns the board of that name; None without a name, or if it is gone."""
    try:
        return ray.get_actor(name) if name else None
    except ValueError:
        return None
