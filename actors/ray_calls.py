"""Calls to Ray that may block for as long as Ray's control service does, inside a deadline.

Ray's own calls (looking up an actor, listing nodes, creating or killing an actor, attaching to a cluster) have no
timeout: while the control service is frozen or cut off they wait, whatever patience the caller has. So a call that has
a deadline (:mod:`.client.deadline`) hands each of them to a helper thread and leaves that behind when the time is over.
A helper ends with its one call; there are never more than a bound of them, and none keeps the process alive. Who has no
deadline (a member, the supervisor) calls Ray directly.

A forked child must not call Ray at all: its copy of Ray waits for threads that only the parent has.
:func:`check_not_forked` refuses, in every place that leads to Ray. Nor must Ray call itself there: what it does at the
end of a process hangs or crashes in the child, or ends the Ray that the parent has started, so the child forgets it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ForkedProcess, Unavailable
from ..limits import MAX_RAY_HELPERS
from .client.deadline import time_left

T = TypeVar("T")

_helpers = threading.BoundedSemaphore(MAX_RAY_HELPERS)


class _Helper:
    """One call on a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.over = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, helpers: threading.BoundedSemaphore) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()
            helpers.release()


def in_time(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Make a call to Ray inside the deadline of what runs here; without one, directly.

    A call that was left behind may still have its effect, once Ray goes on.

    Raises:
        ForkedProcess: see :func:`check_not_forked`.
        Unavailable: Ray did not answer in time; ``applied`` is ``None``.
        Exception: what the call raised.
    """
    check_not_forked()
    left = time_left()
    if left == math.inf:
        return call(*arguments, **named)
    name = getattr(call, "__name__", "a call")
    helpers = _helpers
    if not helpers.acquire(timeout=left):
        raise Unavailable(f"Ray does not answer: {MAX_RAY_HELPERS} calls wait for it already ({name})")
    helper = _Helper(lambda: call(*arguments, **named))
    threading.Thread(target=helper.run, args=(helpers,), name=f"raykeeper-ray-{name}", daemon=True).start()
    if not helper.over.wait(time_left()):
        raise Unavailable(f"Ray's control service did not answer in time ({name})", applied=None)
    if helper.error is not None:
        raise helper.error
    result: T = helper.result
    return result


# --- forks -----------------------------------------------------------------------------------------------------------

_ray_at_fork = False
"""Whether the process was attached to Ray when it forked last."""
_forked = False
"""Whether this process is the forked child of one that was attached to Ray, or such a child's own."""


def check_not_forked() -> None:
    """Refuse where Ray cannot be called.

    Raises:
        ForkedProcess: this process is the forked child of one that was attached to Ray.
    """
    if _forked:
        raise ForkedProcess()


def _before_fork() -> None:
    global _ray_at_fork
    ray = sys.modules.get("ray")
    _ray_at_fork = False
    with contextlib.suppress(Exception):  # while it is being imported it has no such function yet
        _ray_at_fork = ray is not None and bool(ray.is_initialized())


def _leave_ray_alone(ray: Any) -> None:
    """At the child's end nothing of Ray's is to run: not what Ray has asked Python to call then, or for an exception
    that nobody catches, not the destructors of its objects, and not those of its library, which run when the process
    exits."""
    worker = ray._private.worker
    atexit.unregister(ray.shutdown)
    if sys.excepthook is worker.custom_excepthook:  # which tells Ray, and waits for ever
        sys.excepthook = worker.normal_excepthook
    for kept in (worker.global_worker, worker._global_node, ray._private.state.state):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # never given back
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # Python has ended itself, and flushed its files, by then


def _in_child() -> None:
    global _forked, _helpers
    if _ray_at_fork:
        _forked = True
        with contextlib.suppress(Exception):  # parts of this are no part of what Ray promises
            _leave_ray_alone(sys.modules["ray"])
    _helpers = threading.BoundedSemaphore(MAX_RAY_HELPERS)


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
