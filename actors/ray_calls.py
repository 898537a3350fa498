"""Calls to Ray, which may block for as long as Ray's control service does, within a deadline.

Ray's own calls (looking up an actor, listing nodes, creating or killing an actor, attaching to a cluster) have no
timeout: while the control service is frozen or cut off they wait, whatever timeout their caller has. So a call with a
deadline (``deadline.py``) hands each of them to a helper thread, which it abandons when the time is over. A helper
thread ends with its one call, the number of them is bounded, and none keeps the process alive. A caller without a
deadline (a member, the supervisor) calls Ray directly.

A forked child must not call Ray at all: its copy of Ray waits for threads that only the parent has.
:func:`check_not_forked` refuses, in every place that leads to Ray. Nor must Ray call itself there: what it does at the
end of a process hangs or crashes in the child, or ends the Ray that the parent has started. So the child disables it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ForkedProcess, Unavailable
from ..limits import MAX_RAY_HELPERS, POLL_PAUSE_S
from .deadline import at_most, time_left
from .interruptible import Places

T = TypeVar("T")

_helpers = Places(MAX_RAY_HELPERS)


class _Helper:
    """One call on a thread of its own."""

    def __init__(self, call: Callable[[], Any], name: str) -> None:
        self._call = call
        self.name = name
        self.over = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, helpers: Places) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.over.set()
            helpers.leave(self, None)


def in_time(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Make a call to Ray within the deadline of the current call; without one, directly.

    An abandoned call may still take effect, once Ray continues.

    Raises:
        ForkedProcess: see :func:`check_not_forked`.
        Unavailable: Ray did not answer in time; ``applied`` is ``None``.
        Exception: what the call raised.
    """
    check_not_forked()
    if time_left() == math.inf:
        return call(*arguments, **named)
    outcome: T = _outcome(_started(call, *arguments, **named))
    return outcome


class OneAtATime:
    """Calls to Ray of one that asks again and again: while one that was abandoned still waits, no other is made."""

    def __init__(self) -> None:
        self._last: _Helper | None = None

    def in_time(self, call: Callable[..., T], *arguments: Any) -> T:
        """As :func:`in_time`, with a deadline; for one thread.

        Raises:
            Unavailable: also if an earlier call waits still.
        """
        check_not_forked()
        last = self._last
        if last is not None and not last.over.wait(time_left()):
            raise Unavailable(f"Ray's control service has not answered yet ({last.name})")
        self._last = helper = _started(call, *arguments)
        outcome: T = _outcome(helper)
        return outcome


def _started(call: Callable[..., Any], *arguments: Any, **named: Any) -> _Helper:
    name = getattr(call, "__name__", "a call")
    helpers = _helpers
    helper = _Helper(lambda: call(*arguments, **named), name)
    try:
        while not helpers.take(helper):
            if not time_left():
                raise Unavailable(f"Ray does not answer: {MAX_RAY_HELPERS} calls already wait for it ({name})")
            time.sleep(at_most(POLL_PAUSE_S))
        threading.Thread(target=helper.run, args=(helpers,), name=f"raykeeper-ray-{name}", daemon=True).start()
    except BaseException:
        helpers.leave(helper, None)
        raise
    return helper


def _outcome(helper: _Helper) -> Any:
    if not helper.over.wait(time_left()):
        raise Unavailable(f"Ray's control service did not answer in time ({helper.name})", applied=None)
    if helper.error is not None:
        raise helper.error
    return helper.result


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
    _helpers = Places(MAX_RAY_HELPERS)


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
