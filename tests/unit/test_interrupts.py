"""Interrupts: held back where they would break something, raised where they would not."""

import os
import signal

import pytest

from esper_ray.orchestration.fleet.interrupts import allowed_interrupts, deferred_interrupts, interrupts_raise


def test_an_interrupt_is_held_back_where_it_would_break_something_and_raised_where_it_would_not() -> None:
    reached = []

    def interrupted_in(moment: str) -> None:
        with deferred_interrupts():
            if moment == "held":
                os.kill(os.getpid(), signal.SIGINT)
                reached.append("the end of the block")
                return
            with allowed_interrupts():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("too far")

    with interrupts_raise():
        for moment in ("held", "allowed"):
            with pytest.raises(KeyboardInterrupt):
                interrupted_in(moment)
    assert reached == ["the end of the block"]


def test_the_handlers_of_before_are_back_in_whatever_order_the_uses_end() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    first, second = interrupts_raise(), interrupts_raise()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
