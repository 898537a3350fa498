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

_listener: ContextVar[StepListener | None] = ContextVar("raykeeper_steps", default=None)


@contextmanager
def listening(listener: StepListener) -> Iterator[None]:
    """In this context the listener is told of all steps."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


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
