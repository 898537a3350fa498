"""One thread of the process for what may take its time, and must not be done where others wait.

It runs what leads into code of the user's: the garbage collector with its destructors (:mod:`litter`), and handlers of
logging. Nobody waits for it. It is started when it is first needed, and sleeps for good while there is nothing to do.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import threading
from collections.abc import Callable

from ...limits import MAX_ERRANDS

_log = logging.getLogger(__name__)


class Errands:
    """The thread, and what waits for it."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def do(self, errand: Callable[[], object]) -> None:
        """Have something done soon, unless too much waits already. Never blocks, and is safe under any lock."""
        if self._waiting.qsize() >= MAX_ERRANDS:
            return
        self._waiting.put(errand)
        # Whoever finds somebody at it, in this thread even, need not start it.
        if not self._started and self._starting.acquire(blocking=False):
            try:
                if not self._started:
                    threading.Thread(target=self._run, name="raykeeper-errands", daemon=True).start()
                    self._started = True
            finally:
                self._starting.release()

    def log(self, logger: logging.Logger, level: int, message: str, *values: object, error: object = None) -> None:
        """Log something soon."""
        if logger.isEnabledFor(level):
            info = error if isinstance(error, BaseException) else None
            self.do(lambda: logger.log(level, message, *values, exc_info=info))

    def _run(self) -> None:
        while True:
            errand = self._waiting.get()
            try:
                errand()
            except Exception:
                with contextlib.suppress(Exception):
                    _log.exception("an errand failed")
            del errand


def collect_young() -> None:
    """Collect what was made lately, as automatic collection would have done by now."""
    gc.collect(1)


errands = Errands()


def _in_child() -> None:
    errands.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)
