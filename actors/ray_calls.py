"""Calls to Ray, which may block for as long as Ray's control service does, within a deadline.

Ray's own calls (looking up an actor, listing nodes, creating or killing an actor, attaching to a cluster) have no
timeout: while the control service is frozen or cut off they wait, whatever timeout their caller has. So a call with a
deadline (``deadline.py``) hands each of them to a helper thread, which it abandons when the time is over. A helper
thread ends with its one call, the number of them is bounded, and none keeps the process alive. A caller without a
deadline (a member, the supervisor) calls Ray directly.

The user may leave Ray, by ``ray.shutdown()``, while a thread of ours is about to call it. Ray then starts a new Ray of
its own accord, or ends the process, because its core is gone: :func:`attached` and :func:`staying_attached` prevent it.

A forked child must not call Ray at all: its copy of Ray waits for threads that only the parent has.
:func:`check_not_forked` refuses, in every place that leads to Ray. Nor must Ray call itself there: what it does at the
end of a process hangs or crashes in the child, or ends the Ray that the parent has started. So the child disables it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import ClusterNotFound, ForkedProcess, Unavailable
from ..limits import MAX_RAY_HELPERS, RAY_LEAVING_S
from .deadline import time_left

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
    """Make a call to Ray within the deadline of the current call; without one, directly.

    An abandoned call may still take effect, once Ray continues.

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
        raise Unavailable(f"Ray does not answer: {MAX_RAY_HELPERS} calls already wait for it ({name})")
    helper = _Helper(lambda: call(*arguments, **named))
    threading.Thread(target=helper.run, args=(helpers,), name=f"raykeeper-ray-{name}", daemon=True).start()
    if not helper.over.wait(time_left()):
        raise Unavailable(f"Ray's control service did not answer in time ({name})", applied=None)
    if helper.error is not None:
        raise helper.error
    result: T = helper.result
    return result


# --- leaving Ray ------------------------------------------------------------------------------------------------------


def attached(call: Callable[..., T]) -> Callable[..., T]:
    """One of Ray's functions without its habit of starting a Ray when this process is attached to none.

    To ask ``ray.is_initialized()`` first is not enough, as the user may leave Ray right afterwards, on another thread.
    What Ray's decorators add is that habit, and the way to a server where this process is Ray's client.
    """
    import ray

    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        return call
    own: Callable[..., T] = inspect.unwrap(call)

    def in_this_ray(*arguments: Any, **named: Any) -> T:
        try:
            return own(*arguments, **named)
        except Exception as error:
            if ray.is_initialized():
                raise
            raise ClusterNotFound("this process has left its Ray cluster") from error

    in_this_ray.__name__ = getattr(call, "__name__", "a call")
    return in_this_ray


_ours = threading.RLock()


@contextlib.contextmanager
def staying_attached() -> Iterator[None]:
    """While the ``with`` block runs, this process does not leave Ray: ``ray.shutdown()`` waits. For calls that do not
    wait for Ray. Without this, a call that reaches Ray's core while it is taken down ends the process.

    Ray's own lock is used, which it holds while it attaches and leaves.

    Raises:
        ClusterNotFound: this process has left Ray, or is just leaving it.
    """
    import ray

    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        yield  # there is no such core, and a call may wait for the server
        return
    lock = getattr(ray._private.worker, "_connect_or_shutdown_lock", _ours)
    if not lock.acquire(timeout=RAY_LEAVING_S):
        raise ClusterNotFound("this process is leaving its Ray cluster")
    try:
        if not ray.is_initialized():  # or the call would start a Ray of its own
            raise ClusterNotFound("this process has left its Ray cluster")
        yield
    finally:
        lock.release()


# --- forks -----------------------------------------------------------------------------------------------------------

_ray_at_fork = False
"""Whether the process was attached to Ray when it last forked."""
_forked = False
"""Whether this process is the forked child of one that was attached to Ray, or a child of such a child."""


def check_not_forked() -> None:
    """Refuse in a process in which Ray cannot be called.

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


def _disable_ray(ray: Any) -> None:
    """Let nothing of Ray run when the child ends: neither its exit and exception hooks, nor the destructors of its
    objects, nor those of its library, which run when the process exits."""
    worker = ray._private.worker
    atexit.unregister(ray.shutdown)
    if sys.excepthook is worker.custom_excepthook:  # which reports to Ray, and waits forever
        sys.excepthook = worker.normal_excepthook
    for kept in (worker.global_worker, worker._global_node, ray._private.state.state):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # never released
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # by then Python has shut down and flushed its files


def _in_child() -> None:
    global _forked, _helpers
    if _ray_at_fork:
        _forked = True
        with contextlib.suppress(Exception):  # some of these are not part of Ray's public interface
            _disable_ray(sys.modules["ray"])
    _helpers = threading.BoundedSemaphore(MAX_RAY_HELPERS)


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
