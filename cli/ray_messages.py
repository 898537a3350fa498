"""What Ray logs in a command's process: told after the command's own lines, each message in one line.

Ray's messages have several lines, come on threads of its own, and would stand in the middle of what the command prints.
They are kept until the command has printed its result. A command that runs for longer than ``RAY_MESSAGES_WAIT_S``
tells them at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from ..limits import MAX_RAY_MESSAGES, RAY_MESSAGE_LETTERS, RAY_MESSAGES_WAIT_S
from .stdio import tell


class RayMessages(logging.Handler):
    """In the place of Ray's own handler, which writes to stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[str] = []
        self._more = 0
        self._began = time.monotonic()
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, on any thread."""
        said = " ".join(record.getMessage().split())
        cut = f"{said[:RAY_MESSAGE_LETTERS]} ..." if len(said) > RAY_MESSAGE_LETTERS else said
        line = f"{record.levelname.lower()} of Ray: {cut}"
        if time.monotonic() - self._began >= RAY_MESSAGES_WAIT_S:
            tell(line)
            return
        with self._guard:
            if line in self._kept:
                return
            if len(self._kept) < MAX_RAY_MESSAGES:
                self._kept.append(line)
            else:
                self._more += 1

    def tell_kept(self) -> None:
        """Tell what was kept; later messages are told at once."""
        with self._guard:
            kept, self._kept = self._kept, []
            more, self._more = self._more, 0
            self._began = -RAY_MESSAGES_WAIT_S
        for line in kept:
            tell(line)
        if more:
            tell(f"and {more} more messages of Ray")


def keep_ray_messages() -> None:
    """Have Ray's messages kept; to be called when Ray is loaded, before it is attached to."""
    logger = logging.getLogger("ray")
    if not any(isinstance(each, RayMessages) for each in logger.handlers):
        logger.handlers[:] = [RayMessages()]
        logger.propagate = False


@contextlib.contextmanager
def ray_messages_last() -> Iterator[None]:
    """At the end of this context, tell what Ray has said in it."""
    try:
        yield
    finally:
        for handler in logging.getLogger("ray").handlers:
            if isinstance(handler, RayMessages):
                handler.tell_kept()
