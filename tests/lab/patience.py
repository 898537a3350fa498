"""Waiting for another thread or process, however slow the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

PATIENCE = 60.0
"""Seconds. It only ends a test that hangs: no test waits for this time to pass, or says that something takes less."""


def until(condition: Callable[[], object], seconds: float = PATIENCE, what: str = "") -> None:
    """Wait until the condition holds.

    It must be one that cannot hold before what the test has begun is done: not "few connections" while they are still
    being accepted, or "nothing is held" while it is still to come.
    """
    deadline, pause = time.monotonic() + seconds, 0.0005
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(pause)
        pause = min(0.01, 2 * pause)


def until_still(look: Callable[[], T], seconds: float = 0.3) -> T:
    """Wait until what there is to see has not changed for this long, and return it."""
    seen, since = look(), time.monotonic()
    deadline = since + PATIENCE
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, "it goes on and on"
        time.sleep(0.01)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()
    return seen


def failure(call: Callable[[], object], kind: type[E], text: str) -> E:
    """The error that a call whose time runs out ends in, and that says this: on a slow machine the time may be over
    before anyone has answered why, so it is tried again."""
    found: list[E] = []

    def fails() -> bool:
        try:
            call()
        except Exception as error:
            if isinstance(error, kind) and text in str(error):
                found.append(error)
        return bool(found)

    until(fails, what=f"it does not fail by {kind.__name__}: ... {text} ...")
    return found[0]


class Slowness:
    """How long the machine kept a thread waiting at most, beyond what it had asked for, while something was done: for
    bounds on what depends on many such threads. A context manager."""

    def __init__(self) -> None:
        self.worst = 0.0
        """Seconds."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(0.01):
            now = time.monotonic()
            self.worst = max(self.worst, now - began - 0.01)
            began = now

    def __enter__(self) -> Slowness:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
