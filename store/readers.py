"""Who reads a database on other threads, so that whoever closes it can wait for them."""

from __future__ import annotations

import threading

from ..errors import Unavailable


class Readers:
    """A gate that lets any number in at once, until it is closed for good."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._idle = threading.Condition(self._gate)
        self._inside = 0
        self.closed = False

    def enter(self) -> None:
        """Go in; ``leave`` must follow.

        Raises:
            Unavailable: it is closed.
        """
        with self._gate:
            if self.closed:
                raise Unavailable("the member's data is being closed or replaced")
            self._inside += 1

    def leave(self) -> None:
        """Go out."""
        with self._gate:
            self._inside -= 1
            if self.closed and not self._inside:
                self._idle.notify_all()

    def close(self) -> bool:
        """Let nobody in any more, and wait for those inside; False if somebody else has closed it."""
        with self._gate:
            if self.closed:
                return False
            self.closed = True
            self._idle.wait_for(lambda: not self._inside)
            return True
