"""Waiting for another thread or process, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

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
