"""Where the log lines of a member or supervisor go: into a file of its own among Ray's log files.

Ray sends an actor's standard error to the driver that started it, so elections there would fill a user's terminal. The
file's name does not begin with ``worker``: Ray lists it (dashboard, ``ray logs``) but sends it nowhere. Only WARNING
and above also go to standard error, and few of them.

Logging must never hurt a member. A thread of its own writes; what a disk does not take is dropped, with no trace but
the gap; and files, lines and queue are bounded (``limits.py``).
"""

from __future__ import annotations

import copy
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from typing import Any

import ray

from ..limits import (
    LOG_FILE_BYTES,
    LOG_FLUSH_TIMEOUT_S,
    LOG_OLD_FILES,
    LOG_STDERR_LINES_PER_WINDOW,
    MAX_LOG_LINE_CHARS,
    MAX_LOG_LINES_WAITING,
)
from .logs import RateLimit, prefix
from .one_thread import start_thread

_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"


class LogFile(RotatingFileHandler):
    """A file of bounded size, and the older ones with a number after the name.

    After an error the line is lost, and the next one opens the file again: the old handle may be of no use any more.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            maxBytes=LOG_FILE_BYTES,
            backupCount=LOG_OLD_FILES,
            encoding="utf-8",
            errors="backslashreplace",
            delay=True,
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line to the file that has the name now: another process of this member may have rotated it."""
        if self._was_moved():
            self._drop_stream()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """The disk is full, or the folder is gone. The base class would print a traceback."""
        self._drop_stream()

    def _was_moved(self) -> bool:
        if self.stream is None:
            return False
        try:
            return not os.path.samestat(os.stat(self.baseFilename), os.fstat(self.stream.fileno()))
        except (OSError, ValueError):
            return True

    def _drop_stream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()


class StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic only for type checkers
    """Writes to standard error; says nothing about a stream that takes no more."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost."""


class WarningHandler(logging.Handler):
    """Passes WARNING and above on to where a driver reads it, at most ``LOG_STDERR_LINES_PER_WINDOW`` of them in
    ``LOG_WINDOW_S``; and CRITICAL always.

    Args:
        handlers: where they go.
        path: the file that has all of them.
    """

    def __init__(
        self, handlers: Sequence[logging.Handler], path: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(logging.WARNING)
        self._handlers = handlers
        self._path = path
        self._rate = RateLimit(clock, LOG_STDERR_LINES_PER_WINDOW)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, unless there were too many."""
        if record.levelno < logging.CRITICAL:
            left_out = self._rate.admit("")
            if left_out is None:
                return
            if left_out:
                record = copy.copy(record)
                record.msg, record.args = f"{record.getMessage()} (and {left_out} more lines, in {self._path})", None
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


class BackgroundHandler(logging.Handler):
    """Hands records on to other handlers on a thread of its own; what they do not take in time is dropped.

    A line that does not say which member it is about, as the client's inside a member, gets that here, and a bound on
    how many there may be.
    """

    def __init__(self, cluster: str, member: str, *targets: logging.Handler) -> None:
        super().__init__()
        self._cluster, self._member = cluster, member
        self._targets = targets
        self._rate = RateLimit()
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(MAX_LOG_LINES_WAITING)
        start_thread(threading.Thread(target=self._run, name="raykeeper-log", daemon=True))

    def emit(self, record: logging.LogRecord) -> None:
        """Make the text here, because the values may change; write it there."""
        try:
            prepared = self._prepare(record)
            if prepared is not None:
                self._records.put_nowait(prepared)
        except queue.Full:
            pass
        except Exception:  # a line that cannot be formatted is a bug, but not one to end a member with
            with suppress(Exception):
                self.handleError(record)

    def _prepare(self, record: logging.LogRecord) -> logging.LogRecord | None:
        """A record that is nothing but text and attributes; ``None`` if there were too many of its kind."""
        named = hasattr(record, "cluster")
        if not named and self._rate.admit(f"{record.name} {record.levelname}") is None:
            return None
        text = self.format(record)
        if not named:
            text = f"{prefix(self._cluster, self._member)}: {text}"
        if len(text) > MAX_LOG_LINE_CHARS:
            text = f"{text[:MAX_LOG_LINE_CHARS]} ... ({len(text) - MAX_LOG_LINE_CHARS} more characters)"
        prepared = copy.copy(record)
        prepared.msg, prepared.args = text, None
        prepared.exc_info = prepared.exc_text = prepared.stack_info = None
        if not named:
            prepared.__dict__.update(cluster=self._cluster, member=self._member)
        return prepared

    def flush(self) -> None:
        """Wait until what was logged is written, but no longer than ``LOG_FLUSH_TIMEOUT_S``."""
        until = time.monotonic() + LOG_FLUSH_TIMEOUT_S
        with self._records.all_tasks_done:
            while self._records.unfinished_tasks and (left := until - time.monotonic()) > 0:
                self._records.all_tasks_done.wait(left)

    def _run(self) -> None:
        while True:
            record = self._records.get()
            for target in self._targets:
                if record.levelno >= target.level:
                    with suppress(Exception):  # nothing that a handler meets may end this thread
                        target.handle(record)
            self._records.task_done()


def log_file_name(cluster: str, member: str) -> str:
    """The name of the file, the same after a restart, so that there are not more and more of them."""
    return f"raykeeper-{cluster}-{member}.log"


def ray_log_folder() -> str | None:
    """The folder of Ray's log files on this node; ``None`` if Ray has not started this process for an actor.

    Ray has no public call for it: Serve asks the same object. Should that change, the file to which Ray redirects
    standard error lies there.
    """
    try:
        worker: Any = ray._private.worker
        if worker.global_worker.mode != ray.WORKER_MODE:
            return None
        folder = worker._global_node.get_logs_dir_path()
    except AttributeError:
        folder = _folder_of_stderr()
    return folder if folder and os.path.isdir(folder) else None


def _folder_of_stderr() -> str | None:
    with suppress(OSError):
        folder, name = os.path.split(os.readlink("/proc/self/fd/2"))
        if name.startswith("worker-") and name.endswith(".err"):
            return folder
    return None


def log_to_ray(cluster: str, member: str) -> None:
    """Have the lines of this process, an actor of ours, written to Ray's log files, from INFO on.

    Where there is no such folder they go to standard error. Changes nothing if the logger ``raykeeper`` has a handler
    already, and leaves a level that was set.
    """
    logger, root = logging.getLogger("raykeeper"), logging.getLogger()
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if logger.handlers:
        return
    folder = ray_log_folder()
    if folder is not None:
        path = os.path.join(folder, log_file_name(cluster, member))
        # The root logger has handlers if the job was given a LoggingConfig; they write to standard error.
        handlers: list[logging.Handler] = root.handlers or [_formatted(StderrHandler())]
        targets = [_formatted(LogFile(path)), WarningHandler(handlers, path)]
        logger.propagate = False
    elif not root.handlers:
        targets = [_formatted(StderrHandler())]
    else:
        return
    logger.addHandler(BackgroundHandler(cluster, member, *targets))


def _formatted(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


def flush_log() -> None:
    """Wait briefly until what was logged is written: the process is about to end."""
    for handler in logging.getLogger("raykeeper").handlers:
        handler.flush()
