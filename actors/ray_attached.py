"""Calls of Ray in a process that may leave Ray meanwhile: the user calls ``ray.shutdown()`` when the user likes.

A thread of ours may be about to call Ray at that moment. What Ray does then is to start a new Ray of its own accord, or
to end the process, because its core is gone. :func:`attached` and :func:`staying_attached` prevent that. A call that
waits for an answer of Ray's control service just then never returns: such a call is made with a deadline
(:mod:`ray_calls`).
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray

from ..errors import ClusterNotFound
from ..limits import RAY_LEAVING_S

T = TypeVar("T")


def attached(call: Callable[..., T]) -> Callable[..., T]:
    """One of Ray's functions without its habit of starting a Ray when this process is attached to none.

    To ask ``ray.is_initialized()`` first is not enough, as the user may leave Ray right afterwards, on another thread.
    What Ray's decorators add is that habit, and the way to a server where this process is Ray's client.
    """
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
