"""Counts the readers of a database on other threads, so that closing it can wait for them."""

from __future__ import annotations

import threading

from ...errors import Unavailable


class ReadGate:
    """Admits any number of readers at once, until it is closed for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._readers = 0
        self.closed = False

    def enter(self) -> None:
        """Start reading; ``leave`` must follow.

        Raises:
            Unavailable: it is closed.
        """
        with self._lock:
            if self.closed:
                raise Unavailable("the member's data is being closed or replaced")
            self._readers += 1

    def leave(self) -> None:
        """End reading."""
        with self._lock:
            self._readers -= 1
            if self.closed and not self._readers:
                self._idle.notify_all()

    def close(self) -> bool:
        """Admit no more readers, and wait until all have left. Returns False if it was closed before."""
        with self._lock:
            if self.closed:
                return False
            self.closed = True
            self._idle.wait_for(lambda: not self._readers)
            return True
