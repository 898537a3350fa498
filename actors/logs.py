"""The log lines of a member: which cluster and member they are about, and how many there may be.

``log_files.py`` says where they go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ..limits import LOG_LINES_PER_WINDOW, LOG_WINDOW_S


class RateLimit:
    """Lets at most ``lines`` lines of each kind pass in ``LOG_WINDOW_S`` seconds, and counts the others.

    A kind is a message without its values. Those are constants in the code, so there are few. Any thread: a line too
    many or too few in a race does no harm.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, lines: int = LOG_LINES_PER_WINDOW) -> None:
        self._clock = clock
        self._lines = lines
        self._windows: dict[str, tuple[float, int]] = {}
        """By kind: when its window began, and how many lines it has seen since."""

    def admit(self, kind: str) -> int | None:
        """``None`` if a line of that kind is one too many; else how many were left out in the window before this one,
        mostly 0."""
        now = self._clock()
        began, count = self._windows.get(kind, (now, 0))
        left_out = 0
        if now - began >= LOG_WINDOW_S:
            left_out = max(0, count - self._lines)
            began, count = now, 0
        self._windows[kind] = began, count + 1
        return left_out if count < self._lines else None


def prefix(cluster: str, member: str) -> str:
    """How each line begins."""
    return f"cluster {cluster}, {member}"


class MemberLog(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic only for type checkers before Python 3.11
    """A room's logger, for one member or supervisor: each line begins with cluster and member, and no kind of line
    floods the log.

    Records also carry ``cluster`` and ``member`` as attributes, for handlers that write JSON.
    """

    def __init__(self, room: str, cluster: str, member: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.getLogger(f"raykeeper.{room}"), {"cluster": cluster, "member": member})
        self._who = prefix(cluster, member)
        self._rate = RateLimit(clock)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line, unless its kind has had its share; all other methods come here."""
        if not self.logger.isEnabledFor(level):
            return
        left_out = self._rate.admit(str(msg))
        if left_out is None:
            return
        if left_out:
            msg, args = f"{msg} (and %d more lines like it)", (*args, left_out)
        kwargs["extra"] = self.extra
        self.logger.log(level, f"%s: {msg}", self._who, *args, **kwargs)
