"""Steps of what takes long, told to a listener: ``with step("starting members"): ...``

A command line shows them while they last. Without a listener a step costs next to nothing. The listener is a context
variable, so it hears of the steps of its own thread alone, however many calls run beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

StepListener = Callable[[str, bool], None]
"""Told of each step, when it begins (``True``) and when it has ended, well or not (``False``)."""

CountListener = Callable[[float, float | None], None]
"""Told how much of the present step is done, and of how much, if that is known: bytes, keys, entries."""

_listener: ContextVar[StepListener | None] = ContextVar("raykeeper_steps", default=None)
_counter: ContextVar[CountListener | None] = ContextVar("raykeeper_counts", default=None)


@contextmanager
def listening(listener: StepListener, counter: CountListener | None = None) -> Iterator[None]:
    """In this context the listener is told of all steps, and the counter of what is counted in them."""
    token, counting = _listener.set(listener), _counter.set(counter)
    try:
        yield
    finally:
        _listener.reset(token)
        _counter.reset(counting)


def is_counted() -> bool:
    """Whether anybody wants to know how much is done."""
    return _counter.get() is not None


def count(done: float, total: float | None = None) -> None:
    """So much of the present step is done."""
    counter = _counter.get()
    if counter is not None:
        counter(done, total)


@contextmanager
def step(what: str) -> Iterator[None]:
    """In this context a step is done; ``what`` says which, in a few words."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    listener(what, True)
    try:
        yield
    finally:
        listener(what, False)
