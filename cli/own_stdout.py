"""Standard output for what a command prints, and nothing else.

Ray, in a process that is attached to it, prints what its raylets report ("10 worker processes have been started...") to
standard output, from a thread of its own and at any moment. In the midst of a command's JSON nobody could read that any
more. So what Ray's threads print goes to standard error.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from .stdio import open_closed_streams

_RAYS_THREADS = "ray_"
"""How the names of Ray's own threads begin (``ray/_private/worker.py``)."""


class OwnStdout:
    """Standard output, as any thread but Ray's sees it.

    Args:
        own: where the command's threads print.
        other: where Ray's do.
    """

    def __init__(self, own: Any, other: Any) -> None:
        self._own = own
        self._other = other

    def write(self, text: str) -> int:
        """Write a text; the number of its characters."""
        ray_prints = threading.current_thread().name.startswith(_RAYS_THREADS)
        written: int = (self._other if ray_prints else self._own).write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def keep_stdout() -> None:
    """From now on, only the command prints to this process's standard output. Where standard error was closed when the
    process started, what Ray's threads print is discarded."""
    other: Any = sys.stderr
    open_closed_streams()  # first: otherwise the next file would get the descriptor of a closed one
    if other is None:
        other = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (for good)
    sys.stdout = OwnStdout(sys.stdout, other)
