"""Assigns tickets to actors, detects actors that die, hang or fail, and makes sure that every ticket is played."""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from esper_ray.errors import EpisodeFailedError
from esper_ray.orchestration.fleet.env_runner import PlayedEpisode
from esper_ray.orchestration.fleet.interrupts import allowed_interrupts
from esper_ray.orchestration.fleet.progress import silent_seconds
from esper_ray.orchestration.fleet.tickets import Ticket

logger = logging.getLogger(__name__)

_MAX_LOSSES_PER_TICKET = 3
_RETURN_SECONDS = 600.0
"""Longest wait while no actor at all is there: importing torch and Ray takes minutes on a machine with too much to do.
"""
_SECONDS_BETWEEN_PROBES = 0.5

CAUSES = ("died", "raised", "hung")
"""Why an actor can be lost: its process or machine died, its episode raised, or it finished no epoch for too long."""

Start = Callable[[ActorHandle, Sequence[Ticket]], ray.ObjectRef]


class TicketQueue(ABC):
    """A queue of tickets and of the episodes that were played for them.

    Attributes:
        start: has an actor play tickets at the same time.
        finished: episodes that are over and have not been taken yet.
    """

    def __init__(self, start: Start) -> None:
        self.start = start
        self.finished: deque[PlayedEpisode] = deque()

    @abstractmethod
    def take(self, runner: int, away: Iterable[int]) -> Ticket | None:
        """Returns the next ticket for an idle actor; None if it has none. Those in `away` cannot play their own now."""

    @abstractmethod
    def requeue(self, ticket: Ticket) -> None:
        """Takes back a ticket whose actor was lost; it comes first again."""

    def end(self, episode: PlayedEpisode) -> None:
        """Takes an episode that is over."""
        self.finished.append(episode)


class PendingTickets(TicketQueue):
    """A fixed set of tickets. Each actor plays its own, and in the end also those of actors that are away."""

    def __init__(self, tickets: Iterable[Ticket], start: Start) -> None:
        super().__init__(start)
        self._owed: dict[int, deque[Ticket]] = {}
        for ticket in tickets:
            self._owed.setdefault(ticket.runner, deque()).append(ticket)

    def take(self, runner: int, away: Iterable[int]) -> Ticket | None:
        """Returns the actor's next ticket, or else one of an actor that is away."""
        for owner in (runner, *away):
            if owed := self._owed.get(owner):
                return owed.popleft()
        return None

    def requeue(self, ticket: Ticket) -> None:
        """Takes back a ticket; it comes first again."""
        self._owed.setdefault(ticket.runner, deque()).appendleft(ticket)


class SeriesTickets(TicketQueue):
    """An endless series of tickets for each actor.

    Attributes:
        consumed: for each actor, episodes of its series that were counted.

    Args:
        ticket: gives the ticket of a runner index (from 1) and a number (from 0).
        runners: number of actors.
        start: see `TicketQueue`.
    """

    def __init__(self, ticket: Callable[[int, int], Ticket], runners: int, start: Start) -> None:
        super().__init__(start)
        self._ticket = ticket
        self.consumed = (0,) * runners
        self._next = [0] * runners
        self._again: dict[int, deque[Ticket]] = {}
        self._ended: dict[Ticket, PlayedEpisode] = {}
        self._due = [0] * runners

    def take(self, runner: int, away: Iterable[int]) -> Ticket | None:
        """Returns the ticket that the actor was lost over, or its next one."""
        if again := self._again.get(runner):
            return again.popleft()
        number = self._next[runner - 1]
        self._next[runner - 1] += 1
        return self._ticket(runner, number)

    def requeue(self, ticket: Ticket) -> None:
        """Takes back a ticket; its actor plays it again."""
        self._again.setdefault(ticket.runner, deque()).appendleft(ticket)

    def end(self, episode: PlayedEpisode) -> None:
        """Takes an episode that is over. Of each actor they come in their order, even if one is played again.

        So `consumed` says which ones were learned from.
        """
        self._ended[episode.ticket] = episode
        runner = episode.ticket.runner
        while (ticket := self._ticket(runner, self._due[runner - 1])) in self._ended:
            self.finished.append(self._ended.pop(ticket))
            self._due[runner - 1] += 1

    def count(self, episodes: Iterable[PlayedEpisode]) -> None:
        """Counts episodes as learned from."""
        counted = Counter(episode.ticket.runner for episode in episodes)
        self.consumed = tuple(count + counted[runner] for runner, count in enumerate(self.consumed, start=1))

    def resume_from(self, consumed: tuple[int, ...]) -> None:
        """Begins each actor's series behind the episodes that were learned from."""
        assert len(consumed) == len(self.consumed), "as many actors as before"
        self.consumed, self._next, self._due = consumed, list(consumed), list(consumed)


@dataclass(frozen=True)
class _Play:
    """Tickets that an actor plays at the same time."""

    tickets: tuple[Ticket, ...]
    runner: int
    queue: TicketQueue
    deadline: float


@dataclass
class _AbsentActor:
    """An actor that is being restarted.

    Attributes:
        since: when it was lost.
        process: that was lost, if it is known: it may still answer.
        probe: a call that it answers once it is there again; None between two of them.
        next_probe: when to call it again.
    """

    since: float
    process: str | None
    probe: ray.ObjectRef | None
    next_probe: float


class Dispatcher:
    """Assigns tickets to idle actors, as many at a time as an actor has hosts, and replaces lost actors.

    An actor that dies, that raises, or that finishes no epoch for longer than the timeout is replaced, and its tickets
    are played again, one at a time: an episode depends on its ticket and the policy's weights alone, so nothing is lost
    but time. One that goes on, however slowly, is let be: the machine may have become slow in mid-run.
    While an actor is away the others play what it owes, once they have played their own.

    Attributes:
        losses: actors lost so far, by cause, see `CAUSES`.
        timeout_s: longest time for what an actor plays at a time, seconds, since it began or last finished an epoch.

    Args:
        actors: the actors by runner index, from 1.
        hosts_per_runner: episodes that an actor plays at the same time, at most.
        timeout_s: see above.
        board: knows when an actor last finished an epoch; None: all that counts is when it began.
    """

    def __init__(
        self,
        actors: Mapping[int, ActorHandle],
        hosts_per_runner: int = 1,
        timeout_s: float = inf,
        board: ActorHandle | None = None,
    ) -> None:
        self.losses: Counter[str] = Counter()
        self.timeout_s = timeout_s
        self._actors = dict(actors)
        self._hosts_per_runner = hosts_per_runner
        self._board = board
        self._playing: dict[ray.ObjectRef, _Play] = {}
        self._away: dict[int, _AbsentActor] = {}
        self._abandoned: dict[int, ray.ObjectRef] = {}
        self._losses_of: Counter[Ticket] = Counter()

    def next_episode(self, queue: TicketQueue) -> PlayedEpisode:
        """Waits for the next episode of a queue that still has one, and returns it. Interrupts come through.

        Raises:
            EpisodeFailedError: its actor was lost three times over an episode, or no actor is left.
        """
        while not queue.finished:
            self._start_idle(queue)  # not to be interrupted: a ticket that was taken would be lost
            with allowed_interrupts():
                done = self._wait()
            self._collect_finished(done)
        return queue.finished.popleft()

    def abandon(self, queue: TicketQueue) -> None:
        """Ignores the results of a queue's running episodes. The actors still play them to the end."""
        for reference, play in list(self._playing.items()):
            if play.queue is queue:
                self._abandoned[play.runner] = reference
                del self._playing[reference]

    def _start_idle(self, queue: TicketQueue) -> None:
        busy = {play.runner for play in self._playing.values()}
        for runner, actor in self._actors.items():
            if runner in busy or runner in self._away:
                continue
            if tickets := self._take(queue, runner):
                deadline = time.monotonic() + self.timeout_s * (1 + self._is_behind(runner))
                self._playing[queue.start(actor, tickets)] = _Play(tickets, runner, queue, deadline)

    def _take(self, queue: TicketQueue, runner: int) -> tuple[Ticket, ...]:
        """Returns the next tickets of an idle actor. A ticket whose actor was lost is played alone."""
        taken: list[Ticket] = []
        while len(taken) < self._hosts_per_runner and (ticket := queue.take(runner, self._away)) is not None:
            if taken and self._losses_of[ticket]:
                queue.requeue(ticket)
                break
            taken.append(ticket)
            if self._losses_of[ticket]:
                break
        return tuple(taken)

    def _is_behind(self, runner: int) -> bool:
        """Returns whether an actor is still playing an abandoned episode."""
        reference = self._abandoned.get(runner)
        if reference is not None and ray.wait([reference], timeout=0)[0]:
            del self._abandoned[runner]
            return False
        return reference is not None

    def _wait(self) -> list[ray.ObjectRef]:
        """Waits until an episode is over, an absent actor answers, or an actor is due to be called or given up."""
        now = time.monotonic()
        for runner, absence in self._away.items():
            if absence.probe is None and absence.next_probe <= now:
                absence.probe = self._actors[runner].process.remote()
        if not self._playing and all(now - absence.since > _RETURN_SECONDS for absence in self._away.values()):
            raise EpisodeFailedError(
                f"all {len(self._actors)} runners are lost and none came back in {_RETURN_SECONDS:.0f} s"
            )
        probes = [absence.probe for absence in self._away.values() if absence.probe is not None]
        moments = [play.deadline for play in self._playing.values()]
        moments += [absence.next_probe for absence in self._away.values() if absence.probe is None]
        moments += [absence.since + _RETURN_SECONDS + 1 for absence in self._away.values()] if not self._playing else []
        until = min(moments, default=inf)
        timeout = None if until == inf else max(0.0, until - now)
        done, _ = ray.wait([*probes, *self._playing], num_returns=1, timeout=timeout)  # who is back comes first
        return list(done)

    def _collect_finished(self, done: Iterable[ray.ObjectRef]) -> None:
        for reference in done:
            if (play := self._playing.pop(reference, None)) is not None:
                self._end(play, reference)
            else:
                self._handle_probe_reply(reference)
        now = time.monotonic()
        for reference, play in list(self._playing.items()):
            if play.deadline <= now:
                del self._playing[reference]
                if ray.wait([reference], timeout=0)[0]:  # over in time: nobody has looked for as long
                    self._end(play, reference)
                elif (silent := silent_seconds(self._board, play.runner)) < self.timeout_s:
                    self._playing[reference] = replace(play, deadline=now + self.timeout_s - silent)
                else:
                    reason = f"it finished no epoch for {self.timeout_s:.0f} s"
                    self._handle_lost_actor(play, play.tickets, "hung", reason)

    def _end(self, play: _Play, reference: ray.ObjectRef) -> None:
        try:
            episodes: list[PlayedEpisode] = ray.get(reference)
        except RayError as error:
            self._handle_lost_actor(play, play.tickets, "died", f"{type(error).__name__}: {error}")
            return
        failed = [episode for episode in episodes if episode.failure is not None]
        for episode in episodes:
            if episode.failure is None:
                del self._losses_of[episode.ticket]
                play.queue.end(episode)
        if failed:
            tickets = [episode.ticket for episode in failed]
            self._handle_lost_actor(play, tickets, "raised", str(failed[0].failure), failed[0].process)

    def _handle_lost_actor(
        self, play: _Play, tickets: Sequence[Ticket], cause: str, reason: str, process: str | None = None
    ) -> None:
        """Replaces a lost actor, of a process that is known or not, and takes its tickets back.

        Raises:
            EpisodeFailedError: that happened too often over one of them.
        """
        self.losses[cause] += 1
        named = ", ".join(f"episode {ticket.number} of runner {ticket.runner}" for ticket in tickets)
        logger.warning("runner %d %s in %s", play.runner, cause, named)
        if cause != "died":
            ray.kill(self._actors[play.runner], no_restart=False)
        for ticket in reversed(tickets):
            self._losses_of[ticket] += 1
            play.queue.requeue(ticket)
        self._abandoned.pop(play.runner, None)
        now = time.monotonic()
        self._away[play.runner] = _AbsentActor(now, process, None, now)
        for ticket in tickets:
            if self._losses_of[ticket] >= _MAX_LOSSES_PER_TICKET:
                del self._losses_of[ticket]
                raise EpisodeFailedError(
                    f"episode {ticket.number} of runner {ticket.runner} (seed {ticket.episode_seed}) failed "
                    f"{_MAX_LOSSES_PER_TICKET} times; the last time its actor {cause}: {reason}"
                )

    def _handle_probe_reply(self, probe: ray.ObjectRef) -> None:
        (runner,) = [runner for runner, absence in self._away.items() if absence.probe == probe]
        absence = self._away[runner]
        try:
            is_back = ray.get(probe) != absence.process
        except RayError:
            is_back = False
        if is_back:
            del self._away[runner]
        else:
            absence.probe, absence.next_probe = None, time.monotonic() + _SECONDS_BETWEEN_PROBES
