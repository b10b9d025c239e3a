"""Handles Ctrl-C and SIGTERM while episodes are played, and defers them while the policy is updated."""

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """State of deferral: whether interrupts are deferred, and whether one is pending."""

    holding = False
    pending = False
    uses = 0
    original: ClassVar[dict[signal.Signals, Any]] = {}


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """Lets SIGINT and SIGTERM raise KeyboardInterrupt, unless `deferred_interrupts` holds them back.

    Ray's start installs a handler that exits at once on SIGTERM, so this comes after it. Python delivers signals to the
    main thread only; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    if _State.uses == 0:
        _State.original = before
        _State.holding = _State.pending = False
    _State.uses += 1
    try:
        yield
    finally:
        _State.uses -= 1
        # Uses may end in another order than they began.
        for number, handler in (before if _State.uses else _State.original).items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_sigint() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C, on which Ray Tune ends a search with its state saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Defers interrupts to the end of the block, so that the block is never left half done."""
    _State.holding = True
    try:
        yield
    finally:
        _State.holding = False
    _raise_pending()


@contextmanager
def allowed_interrupts() -> Iterator[None]:
    """Allows interrupts inside a block that defers them."""
    held, _State.holding = _State.holding, False
    try:
        _raise_pending()
        yield
    finally:
        _State.holding = held


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupts the block after so many seconds, in the main thread; in another one this does nothing.

    Raises:
        TimeoutError: the block has not ended by then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over = threading.Event()

    def interrupt() -> None:
        is_over.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if is_over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def _raise_pending() -> None:
    if _State.pending:
        _State.pending = False
        raise KeyboardInterrupt


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    if _State.holding:
        _State.pending = True
    else:
        raise KeyboardInterrupt
