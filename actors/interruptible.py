"""Places and locks that an interrupt (Ctrl-C, or a signal handler that raises) cannot leave taken.

Python runs signal handlers after a call, and when a function of Python's begins. So what is acquired just before a
``try`` stays taken if the handler raises right after that, and a flag that is set afterwards comes too late to tell.
Two rules help. *Take it inside the try*, so that who has taken it can be told by itself. *Let go of it by one call of a
function in C*, which does nothing if it was not taken: no handler runs between such a call and what it does.

- :class:`Places`, for those who do not wait::

      try:
          if not places.take(me):
              raise ...
          ...
      finally:
          places.leave(me, None)

- A lock that is waited for with a deadline is a ``threading.RLock``, which knows its owner::

      refuse_reentry(lock)
      try:
          if not lock.acquire(timeout=...):
              raise ...
          ...
      finally:
          try:
              lock.release()
          except RuntimeError:  # it was not taken
              pass

Without a deadline, ``with lock:`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ReentrantCall
from .finalizer_guard import held_by_this_thread


class Places:
    """A number of places, each for one, who is named by an object of its own. Nobody waits here.

    Args:
        most: how many there are. The first so many of those who are in ``_taken`` have one.
    """

    __slots__ = ("_most", "_taken", "leave")

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[Any, None] = {}
        self.leave: Callable[[object, None], None] = self._taken.pop
        """``leave(who, None)`` leaves the place; nothing happens if this one has none. In C."""

    def take(self, who: object) -> bool:
        """Take a place; whether there was one."""
        self._taken[who] = None
        if who in list(self._taken)[: self._most]:
            return True
        self.leave(who, None)
        return False

    def __len__(self) -> int:
        return len(self._taken)


def refuse_reentry(lock: Any) -> None:
    """To be called before a ``threading.RLock`` is waited for.

    Raises:
        ReentrantCall: a signal handler has interrupted this thread while it holds the lock.
    """
    if held_by_this_thread(lock):
        raise ReentrantCall()
