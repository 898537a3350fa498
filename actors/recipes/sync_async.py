"""How a recipe is written once, for the sync and the async handle.

The logic of every recipe is a set of coroutines that make calls on a handle and wrap each in :func:`resolved`. On an
``AsyncClient`` such a call returns a coroutine, which is awaited. On a ``Client`` the same call blocks and returns the
result, so there is nothing left to await. The logic then never suspends, and :func:`run_sync` runs it from start to end
with a single ``send``, in the calling thread, without an event loop::

    run_sync(holder.acquire(None))  # on a Client: the calling thread waits
    await holder.acquire(None)      # on an AsyncClient: the coroutine waits; the same code

An interrupt (Ctrl-C, or the cancellation of a task) is raised where the logic waits, and handled there once for both.
Background work is a daemon thread for a ``Client`` and a task for an ``AsyncClient`` (:func:`spawn`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, NoReturn, ParamSpec, TypeVar

from ...errors import DecodeError, InvalidArgument, KeeperError, LockLost, ReentrantCall, RequestTimeout, Unavailable
from ...limits import CLEANUP_GRACE_S, RECIPE_MAX_PAUSE_S
from .. import arguments as check
from ..client import lease_release
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.lease_release import end_lease_async
from ..client.leases import AsyncLease, Lease
from ..client.results import Event, KeyValue, TxnResult
from ..client.txn_parts import Op
from ..client.view import named
from ..client.watch import AsyncWatch, Watch
from ..deadline import covering, time_left, uncovered
from ..finalizer_guard import held_by_this_thread

P = ParamSpec("P")
T = TypeVar("T")
AnyHandle = KeyValueClient | AsyncKeyValueClient
"""The handle that the logic makes its calls on."""

_tasks: set[asyncio.Task[None]] = set()


async def resolved(result: T | Awaitable[T]) -> T:
    """The result of a call on either handle."""
    if inspect.isawaitable(result):
        value: T = await result
        return value
    return result


async def open_watch(
    handle: AnyHandle,
    key: bytes | None = None,
    end: bytes | None = None,
    *,
    prefix: bytes | None = None,
    start_revision: int,
    only: str | None = None,
) -> Watch | AsyncWatch:
    """Open a watch on either kind of handle."""
    if isinstance(handle, AsyncKeyValueClient):
        return await handle.watch(key, end, prefix=prefix, start_revision=start_revision, only=only)
    return handle.watch(key, end, prefix=prefix, start_revision=start_revision, only=only)


async def leased_txn(
    handle: AnyHandle, ttl: float, make: Callable[[int], Op], bound_to: Any = None
) -> tuple[Lease | AsyncLease | None, TxnResult]:
    """Make a lease and run a transaction that uses it, on either kind of handle."""
    if isinstance(handle, AsyncKeyValueClient):
        return await handle.leased_txn(ttl, make, bound_to=bound_to)
    return handle.leased_txn(ttl, make, bound_to=bound_to)


async def end_lease(
    owner: AnyHandle | Lease | AsyncLease,
    id: int,
    lasting: float,
    ending: Op | None = None,
    max_wait: float = CLEANUP_GRACE_S,
) -> None:
    """End a lease, on either kind of handle or lease; see :mod:`lease_release`."""
    if isinstance(owner, (AsyncKeyValueClient, AsyncLease)):
        await end_lease_async(owner, id, lasting, ending, max_wait)
    else:
        lease_release.end_lease(owner, id, lasting, ending, max_wait)


def recipe_request_id(handle: AnyHandle, request_id: str | bytes | None, *meaning: bytes, held: int = 0) -> Any:
    """The ``request_id`` of a recipe's write, from the one that the user gave for the recipe's call.

    The write goes to the reserved space, but the user's name belongs to the namespace of the user's handle.

    Args:
        handle: the user's.
        meaning: the call and its arguments: the name is good for these only.
        held: see ``RequestId``.
    """
    return None if request_id is None else named(handle._view.space, request_id, meaning, held)


def run_sync(coroutine: Coroutine[Any, Any, T], gate: Gate | None = None) -> T:
    """Run a recipe's logic on a ``Client``, where it never suspends.

    Args:
        gate: that the logic enters. An interrupt (Ctrl-C) may strike where it is held and nothing says so yet, or where
            it is about to be left: it is free after that.
    """
    held = isinstance(gate, _ThreadGate) and gate.is_held_here()
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        if isinstance(gate, _ThreadGate) and not held:
            gate.recover()
        raise
    coroutine.close()
    raise RuntimeError("the logic of a recipe awaited something else than a call of a blocking handle")


class _ThreadGate:
    """A lock of threads, in the form of one of coroutines. It is held through whole requests, so it is entered within a
    deadline.

    A signal handler or a destructor that has interrupted this thread inside, or inside what a thread in there waits
    for, is refused: see :mod:`finalizer_guard`.
    """

    def __init__(self, handle: KeyValueClient) -> None:
        self._handle = handle
        self._lock = threading.RLock()

    def is_held_here(self) -> bool:
        """Whether this thread holds it."""
        return held_by_this_thread(self._lock)

    def recover(self) -> None:
        """Let go of it, after an interrupt that may have skipped ``__aexit__``."""
        while held_by_this_thread(self._lock):
            self._lock.release()

    async def __aenter__(self) -> None:
        if self.is_held_here():
            raise ReentrantCall()
        if self._lock.acquire(blocking=False):
            return
        check_may_wait(self._handle)
        if not self._lock.acquire(timeout=min(time_left(), threading.TIMEOUT_MAX)):
            raise RequestTimeout("another thread was busy with it all the time", applied=False)

    async def __aexit__(self, *error: object) -> None:
        self._lock.release()


Gate = _ThreadGate | asyncio.Lock
"""A lock for a recipe's logic, of threads or of coroutines."""


def gate(handle: AnyHandle) -> Gate:
    """A lock for a recipe's logic: of threads for a ``Client``, of coroutines for an ``AsyncClient``."""
    return asyncio.Lock() if isinstance(handle, AsyncKeyValueClient) else _ThreadGate(handle)


def check_may_wait(handle: AnyHandle) -> None:
    """Raise ``ReentrantCall`` if no call of the process is answered while this thread waits: it was interrupted in the
    client's own work, or is a thread that all wait for."""
    hub = handle._known_hub()
    if hub is not None and hub.cannot_wait():
        raise ReentrantCall()


def spawn(
    handle: AnyHandle, coroutine: Coroutine[Any, Any, None], name: str, at_end: Callable[[], object] | None = None
) -> None:
    """Run a recipe's logic in the background: on a daemon thread for a ``Client``, in a task for an ``AsyncClient``.

    Args:
        at_end: called when a task ends, also one that was cancelled before it has begun, of which no ``finally`` runs.
    """
    if isinstance(handle, AsyncKeyValueClient):
        with uncovered():
            task = asyncio.get_running_loop().create_task(coroutine, name=name)
        _tasks.add(task)  # event loops hold their tasks weakly
        task.add_done_callback(_tasks.discard)
        if at_end is not None:
            task.add_done_callback(lambda task: at_end())
    else:
        try:
            threading.Thread(target=run_sync, args=(coroutine,), name=name, daemon=True).start()
        except RuntimeError:  # no thread is to be had
            coroutine.close()
            raise


async def pause(handle: AnyHandle, seconds: float) -> None:
    """Sleep, on either kind of handle."""
    if isinstance(handle, AsyncKeyValueClient):
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)


async def next_event(watch: Watch | AsyncWatch, max_wait: float) -> Event | None:
    """The next event of a watch; ``None`` if there was none for ``max_wait`` seconds.

    Raises:
        CompactedError: the events that come next have been compacted.
        Unavailable: the watch has ended, because the client was closed.
    """
    begun = time.monotonic()
    event = await resolved(watch.next(timeout=None if max_wait == math.inf else max_wait))
    if event is None and time.monotonic() - begun < max_wait / 2:
        raise Unavailable("the watch has ended: the client was closed")
    return event


async def retry_while_unreachable(handle: AnyHandle, look: Callable[[], Awaitable[T]], go_on: Callable[[], bool]) -> T:
    """Read from the cluster; while it cannot be reached and ``go_on()`` holds, read again. For reads only."""
    while True:
        try:
            return await look()
        except (Unavailable, RequestTimeout):
            if not go_on():
                raise
            await pause(handle, RECIPE_MAX_PAUSE_S)


async def cancel_watch(watch: Watch | AsyncWatch) -> None:
    """End a watch."""
    if isinstance(watch, AsyncWatch):
        await watch.cancel()
    else:
        watch.cancel()


class TimeLimit:
    """The deadline of a wait and of all requests that it makes.

    Args:
        timeout: seconds; ``None`` means no deadline.

    Raises:
        InvalidArgument: ``timeout`` is negative or not a number.
    """

    __slots__ = ("_at", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = None if timeout is None else check.seconds("timeout", timeout)
        self._at = math.inf if self._timeout is None else time.monotonic() + self._timeout

    @property
    def left(self) -> float:
        """The seconds that are left; 0 when the time is over, infinity if there is no deadline."""
        return max(0.0, self._at - time.monotonic())

    def caused(self, error: KeeperError, *, answered: bool) -> bool:
        """Whether the only reason for this error is that the wait's time is over.

        If the cluster could not be reached from the start, that is another reason.

        Args:
            answered: whether the cluster had answered before.
        """
        return not self.left and (answered or isinstance(error, RequestTimeout))

    def covering(self, handle: AnyHandle, grace: float = 0.0) -> AbstractContextManager[None]:
        """A context in which all requests end with this wait.

        A wait with timeout 0 does not wait for other contenders, but its requests take time: together they have the
        handle's timeout.

        Args:
            grace: seconds more, for a request that must come after the wait.
        """
        timeout = handle.timeout if self._timeout == 0 else self._timeout
        return covering(None if timeout is None else timeout + grace)


def bounded(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorates a call of a recipe's logic that has no timeout of its own: all its requests together take at most the
    timeout of its handle (``self.space``)."""

    @functools.wraps(call)
    async def within_timeout(*args: P.args, **kwargs: P.kwargs) -> T:
        logic: Any = args[0]
        with covering(logic.space.timeout):
            return await call(*args, **kwargs)

    return within_timeout


class NotHeld(LockLost, AttributeError):
    """Nothing is held, so there is no token.

    It is also an ``AttributeError``, so that code that inspects all attributes of an object, as Ray does to explain why
    it does not pickle, treats the token as missing.
    """


class Unpicklable:
    """Base of objects that belong to the process that made them."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} does not pickle: it belongs to this process. Pass its .token, or a .guard(), "
            "or make another one with a client there"
        )


def quoted(name: str | bytes) -> bytes:
    """A name as one part of a key: without a slash, and different for different names."""
    data = check.text_or_bytes("a name", name)
    if not data:
        raise InvalidArgument("a name must not be empty")
    return data.replace(b"%", b"%25").replace(b"/", b"%2F")


def unquoted(step: bytes) -> bytes:
    """The name that :func:`quoted` was given."""
    return step.replace(b"%2F", b"/").replace(b"%25", b"%")


def folder(handle: AnyHandle, name: str | bytes) -> bytes:
    """The prefix under which a recipe of this name keeps its keys. The handle's namespace is part of the name."""
    check.text_or_bytes("a name", name)
    if not name:
        raise InvalidArgument("a name must not be empty")
    return quoted(handle.prefix + check.text_or_bytes("a name", name)) + b"/"


def seconds_to_live(ttl: object) -> float:
    """A TTL in seconds, checked to be positive and finite; the cluster has a minimum of its own."""
    value = check.seconds("ttl", ttl)
    if not 0 < value < math.inf:
        raise InvalidArgument(f"ttl must be a positive number of seconds, not {check.shown(ttl)}")
    return value


def whoami() -> bytes:
    """The host and process id, for users who look at who holds what."""
    return f"{socket.gethostname()}:{os.getpid()}".encode()


def encoded(handle: AnyHandle, value: object) -> bytes:
    """The bytes of a user's value, by the handle's codec."""
    return check.encode_value(value, handle.codec)


def decoded(handle: AnyHandle, raw: bytes) -> Any:
    """A user's value, decoded. Raises ``DecodeError`` if the handle's codec cannot read it."""
    return KeyValue(b"", raw, 0, 0, 0, codec=handle.codec).value


def number_in(raw: bytes, whose: str) -> int:
    """A whole number that a recipe keeps: other programs may have written anything there.

    Raises:
        DecodeError: it is none.
    """
    try:
        return int(raw)
    except ValueError:
        raise DecodeError(f"what {whose} keeps is not a number: {raw[:40]!r}") from None
