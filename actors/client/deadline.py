"""One deadline for everything that a call does.

A call with a timeout makes other calls on its way: requests to the cluster, questions to Ray, its own cleaning up. All
of them end when its time is over, whatever timeouts of their own they have: :func:`covering` says so once, at the top,
and whoever waits further down asks :func:`time_left`. The deadline belongs to the running thread or coroutine (it is a
context variable), so calls beside it know nothing of it; what goes on in the background begins with :func:`uncovered`.
"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from ...limits import CLEANUP_GRACE
from . import arguments as check

P = ParamSpec("P")
T = TypeVar("T")

_until: ContextVar[float] = ContextVar("raykeeper_deadline", default=math.inf)


@contextmanager
def covering(seconds: float | None) -> Iterator[None]:
    """Everything inside ends after so many seconds; a deadline from outside that is earlier stays.

    Args:
        seconds: ``None`` adds none.
    """
    until = math.inf if seconds is None else time.monotonic() + seconds
    token = _until.set(min(until, _until.get()))
    try:
        yield
    finally:
        # A coroutine that nobody ends is taken apart anywhere: its own context is gone, and the deadline with it.
        with suppress(ValueError):
            _until.reset(token)


@contextmanager
def uncovered() -> Iterator[None]:
    """What is inside goes on whatever becomes of the call that began it."""
    token = _until.set(math.inf)
    try:
        yield
    finally:
        _until.reset(token)


def at_most(seconds: float) -> float:
    """So many seconds, or what is left until the deadline of what runs here."""
    return min(seconds, time_left())


def covered(call: Callable[P, T]) -> Callable[P, T]:
    """For a call with a keyword argument ``timeout``: everything that it does ends by then. What looks at the time
    itself, and can say better why it was not enough, comes first."""
    default = inspect.signature(call).parameters["timeout"].default

    @functools.wraps(call)
    def in_time(*args: P.args, **kwargs: P.kwargs) -> T:
        named: Any = kwargs  # as it is: a number that is too large for Python's floats means for ever
        named["timeout"] = check.seconds("timeout", kwargs.get("timeout", default))
        with covering(named["timeout"] + CLEANUP_GRACE):
            return call(*args, **kwargs)

    return in_time


def time_left() -> float:
    """Seconds until the deadline of what runs here: infinite if there is none, 0 when it is over."""
    until = _until.get()
    return until if until == math.inf else max(0.0, until - time.monotonic())
