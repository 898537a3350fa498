"""One deadline for everything that a call does.

A call with a timeout makes other calls on its way: requests to the cluster, calls of Ray, its own clean-up. All of them
end when its time is over, whatever timeouts they have themselves: :func:`covering` sets the deadline once, at the top,
and code that waits further down asks :func:`time_left`. The deadline is a context variable, so it belongs to the
running thread or coroutine and does not affect others; background work starts with :func:`uncovered`.

Two waits that ask for it are here, too: :func:`wait_for`, and the pause between two checks of a condition.
"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, ParamSpec, TypeVar

from ..errors import RequestTimeout
from ..limits import CLEANUP_GRACE_S, POLL_PAUSE_S
from . import arguments as check

P = ParamSpec("P")
T = TypeVar("T")

_until: ContextVar[float] = ContextVar("raykeeper_deadline", default=math.inf)


@contextmanager
def covering(seconds: float | None) -> Iterator[None]:
    """A deadline for everything inside the ``with`` block; an earlier one that is set already stays.

    Args:
        seconds: until the deadline; ``None`` sets none.
    """
    until = math.inf if seconds is None else time.monotonic() + seconds
    tokens: list[Token[float]] = []
    try:
        tokens.extend(map(_until.set, (min(until, _until.get()),)))  # one call: an interrupt (Ctrl-C) finds the token
        yield
    finally:
        try:
            if tokens:
                _until.reset(tokens[0])
        except ValueError:  # an abandoned coroutine is finalized in any context: its own is gone, and the deadline too
            pass


@contextmanager
def uncovered() -> Iterator[None]:
    """No deadline for what is inside the ``with`` block: it goes on after the call that started it."""
    token = _until.set(math.inf)
    try:
        yield
    finally:
        _until.reset(token)


def at_most(seconds: float) -> float:
    """This many seconds, or the time until the current deadline if that is less."""
    return min(seconds, time_left())


def covered(call: Callable[P, T]) -> Callable[P, T]:
    """Decorates a call with a keyword argument ``timeout``: everything that it does ends by then.

    The deadline is ``CLEANUP_GRACE_S`` later than the timeout, so that code which looks at the timeout itself, and can
    say better why the time was not enough, fails first.
    """
    default = inspect.signature(call).parameters["timeout"].default

    @functools.wraps(call)
    def in_time(*args: P.args, **kwargs: P.kwargs) -> T:
        named: Any = kwargs
        named["timeout"] = check.seconds("timeout", kwargs.get("timeout", default))
        with covering(named["timeout"] + CLEANUP_GRACE_S):
            return call(*args, **kwargs)

    return in_time


def time_left() -> float:
    """The seconds until the current deadline: infinity if there is none, 0 when it is over."""
    until = _until.get()
    return until if until == math.inf else max(0.0, until - time.monotonic())


def wait_for(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait until the condition holds; False if it does not before ``deadline`` (by ``time.monotonic``)."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        pause_between_checks(POLL_PAUSE_S)
    return True


def pause_between_checks(seconds: float) -> None:
    """Wait before a condition is checked again.

    Raises:
        RequestTimeout: the deadline of the current call has passed: there is no further check.
    """
    if not time_left():
        raise RequestTimeout("the time for this call is over; what it has started may still take effect", applied=None)
    time.sleep(at_most(seconds))
