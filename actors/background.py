"""One background thread of the process, for work that may take its time and that no caller waits for.

It runs what may lead into the user's code: the garbage collector with its destructors (:mod:`finalizer_guard`), and
logging handlers. It starts when it is first needed, and sleeps while its queue is empty.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
from collections.abc import Callable

from ..limits import MAX_BACKGROUND_TASKS
from .one_thread import NoThreadLeft, OneThread

_log = logging.getLogger("raykeeper.client")


class LazyThread:
    """A daemon thread that starts when it is first needed.

    Args:
        run: what it does; never returns.
    """

    def __init__(self, run: Callable[[], None], name: str) -> None:
        self._run = run
        self._name = name
        self._thread = OneThread()

    def ensure_started(self) -> None:
        """Start the thread unless it runs. Never blocks, and is safe under any lock.

        Raises:
            NoThreadLeft: there is none to be had.
        """
        if not self._thread.start(self._run, self._name):
            raise NoThreadLeft(f"no thread is to be had for {self._name}")


class BackgroundQueue:
    """The thread, and the tasks that wait for it."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread = LazyThread(self._run, "raykeeper-background")

    def submit(self, task: Callable[[], object]) -> None:
        """Run a task soon; dropped if ``MAX_BACKGROUND_TASKS`` wait. Never blocks, and is safe under any lock."""
        if self._waiting.qsize() >= MAX_BACKGROUND_TASKS:
            return
        self._waiting.put(task)
        with contextlib.suppress(NoThreadLeft):  # it waits for the next task that finds one
            self._thread.ensure_started()

    def log(self, logger: logging.Logger, level: int, message: str, *values: object, error: object = None) -> None:
        """Log a message soon, with the traceback of ``error`` if that is an exception."""
        if logger.isEnabledFor(level):
            info = error if isinstance(error, BaseException) else None
            self.submit(lambda: logger.log(level, message, *values, exc_info=info))

    def _run(self) -> None:
        while True:
            task = self._waiting.get()
            try:
                task()
            except Exception:
                with contextlib.suppress(Exception):
                    _log.exception("a background task failed")
            del task  # not to keep alive what it refers to while the thread sleeps


def collect_young() -> None:
    """Collect the two younger generations, as automatic collection would have done by now."""
    gc.collect(1)


background = BackgroundQueue()


def _in_child() -> None:
    background.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)
