"""Standard output for what a command prints, and nothing else.

Ray, in a process that is attached to it, prints what its raylets report ("10 worker processes have been started...") to
standard output, from a thread of its own and at any moment. In the midst of a command's JSON nobody could read that any
more. So what Ray's threads print goes to standard error.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

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
    """From now on, only the command prints to this process's standard output."""
    if sys.stdout is not None and sys.stderr is not None:  # as they are where they were closed
        sys.stdout = OwnStdout(sys.stdout, sys.stderr)
