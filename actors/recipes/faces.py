"""One logic, two faces: how a recipe is written once and used with and without asyncio.

The logic of every recipe is a set of coroutines that make calls on a handle and wrap each in :func:`settled`. On an
``AsyncClient`` such a call returns a coroutine, which is awaited. On a ``Client`` the same call waits in the thread and
returns the result, so there is nothing left to await: the logic never suspends, and :func:`drive` runs it from
beginning to end with a single ``send``, in the caller's thread, with no event loop anywhere::

    drive(line.acquire(None))       # over a Client: the calling thread waits
    await line.acquire(None)        # over an AsyncClient: the coroutine waits; the same code

An interrupt (Ctrl-C here, a cancelled task there) surfaces where the logic waits, and is handled there once for both.
What goes on in the background is a daemon thread here and a task there (:func:`spawn`).
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

from ...errors import InvalidArgument, KeeperError, LockLost, RequestTimeout, Unavailable
from ...limits import CLEANUP_GRACE, RECIPE_MAX_PAUSE
from ..client import arguments as check
from ..client import parting
from ..client.aio import AsyncClient
from ..client.deadline import covering, uncovered
from ..client.handle import Client
from ..client.leases import AsyncLease, Lease
from ..client.operations import Op
from ..client.parting import end_lease_async
from ..client.requests import named
from ..client.results import KeyValue, TxnResult
from ..client.watch import AsyncWatch, Event, Watch

P = ParamSpec("P")
T = TypeVar("T")
Handle = Client | AsyncClient
"""What the logic makes its calls on."""

_tasks: set[asyncio.Task[None]] = set()


async def settled(result: T | Awaitable[T]) -> T:
    """The result of a call on either handle."""
    if inspect.isawaitable(result):
        value: T = await result
        return value
    return result


async def watching(
    handle: Handle,
    key: bytes | None = None,
    end: bytes | None = None,
    *,
    prefix: bytes | None = None,
    start_revision: int,
    only: str | None = None,
) -> Watch | AsyncWatch:
    """A watch on either handle, from a revision that the logic has seen."""
    if isinstance(handle, AsyncClient):
        return await handle.watch(key, end, prefix=prefix, start_revision=start_revision, only=only)
    return handle.watch(key, end, prefix=prefix, start_revision=start_revision, only=only)


async def leased_txn(
    handle: Handle, ttl: float, make: Callable[[int], Op]
) -> tuple[Lease | AsyncLease | None, TxnResult]:
    """A lease, and a transaction that uses it, on either handle."""
    if isinstance(handle, AsyncClient):
        return await handle.leased_txn(ttl, make)
    return handle.leased_txn(ttl, make)


async def end_lease(
    owner: Handle | Lease | AsyncLease,
    id: int,
    lasting: float,
    ending: Op | None = None,
    patience: float = CLEANUP_GRACE,
) -> None:
    """End a lease, on either kind of handle or lease; see ``parting``."""
    if isinstance(owner, (AsyncClient, AsyncLease)):
        await end_lease_async(owner, id, lasting, ending, patience)
    else:
        parting.end_lease(owner, id, lasting, ending, patience)


def once(handle: Handle, request_id: str | bytes | None, *meaning: bytes, held: int = 0) -> Any:
    """What a recipe passes on as the ``request_id`` of its write, which lies in another space than the caller's names.

    Args:
        handle: the user's, whose namespace the name belongs to.
        meaning: what the caller asks for.
        held: see ``RequestId``.
    """
    return None if request_id is None else named(handle._view.space, request_id, meaning, held)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the logic over a ``Client``, where it never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the logic of a recipe awaited something that is not done by a blocking handle")


def spawn(handle: Handle, coroutine: Coroutine[Any, Any, None], name: str) -> None:
    """Run the logic in the background: a daemon thread for a ``Client``, a task for an ``AsyncClient``."""
    if isinstance(handle, AsyncClient):
        with uncovered():
            task = asyncio.get_running_loop().create_task(coroutine, name=name)
        _tasks.add(task)  # loops hold their tasks weakly
        task.add_done_callback(_tasks.discard)
    else:
        threading.Thread(target=drive, args=(coroutine,), name=name, daemon=True).start()


async def pause(handle: Handle, seconds: float) -> None:
    """Wait."""
    if isinstance(handle, AsyncClient):
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)


async def news(watch: Watch | AsyncWatch, patience: float) -> Event | None:
    """The next event of a watch, ``None`` if there was none for so many seconds.

    Raises:
        CompactedError: the history that comes next is gone.
        Unavailable: the watch has ended, because this process gives the cluster up.
    """
    begun = time.monotonic()
    event = await settled(watch.next(timeout=None if patience == math.inf else patience))
    if event is None and time.monotonic() - begun < patience / 2:
        raise Unavailable("the watch has ended: the client was closed")
    return event


async def patiently(handle: Handle, look: Callable[[], Awaitable[T]], go_on: Callable[[], bool]) -> T:
    """Look at the cluster; while it cannot be reached, and ``go_on`` says so, look again. For reads only."""
    while True:
        try:
            return await look()
        except (Unavailable, RequestTimeout):
            if not go_on():
                raise
            await pause(handle, RECIPE_MAX_PAUSE)


async def stop(watch: Watch | AsyncWatch) -> None:
    """End a watch."""
    if isinstance(watch, AsyncWatch):
        await watch.cancel()
    else:
        watch.cancel()


class Deadline:
    """The end of a wait, and of all that it does on the way.

    Args:
        timeout: seconds; ``None`` is for ever.

    Raises:
        InvalidArgument: that is no time.
    """

    __slots__ = ("_at", "_timeout")

    def __init__(self, timeout: float | None) -> None:
        self._timeout = None if timeout is None else check.seconds("timeout", timeout)
        self._at = math.inf if self._timeout is None else time.monotonic() + self._timeout

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when it is over, infinite if there is no end."""
        return max(0.0, self._at - time.monotonic())

    def cut(self, error: KeeperError, *, began: bool) -> bool:
        """Whether a wait ended in this error for no other reason than that its time is over. That the cluster could
        not be reached from the beginning is another reason.

        Args:
            began: the cluster had answered before.
        """
        return not self.left and (began or isinstance(error, RequestTimeout))

    def covering(self, handle: Handle, grace: float = 0.0) -> AbstractContextManager[None]:
        """All requests inside end with this wait. One of 0 does not wait for others, but its requests need time: they
        have the handle's timeout together.

        Args:
            grace: seconds more, for a request that must come after the wait.
        """
        timeout = handle.timeout if self._timeout == 0 else self._timeout
        return covering(None if timeout is None else timeout + grace)


def bounded(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A call of a recipe's logic that has no timeout of its own: however many requests it makes, it takes the timeout
    of its handle (``self.space``) at most."""

    @functools.wraps(call)
    async def within_timeout(*args: P.args, **kwargs: P.kwargs) -> T:
        logic: Any = args[0]
        with covering(logic.space.timeout):
            return await call(*args, **kwargs)

    return within_timeout


class NotHeld(LockLost, AttributeError):
    """Nothing is held, so there is no token. Also an ``AttributeError``: whoever looks at all attributes of an object,
    as Ray does to say why it does not pickle, finds that this one is not there."""


class Unpicklable:
    """Base of what belongs to the process that made it."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} does not pickle: it belongs to this process. Pass its .token, or a .guard(), "
            "or make another with the client over there"
        )


def quoted(name: str | bytes) -> bytes:
    """A name as one step of a key's path: without a slash, and no two names alike."""
    data = check.text_or_bytes("a name", name)
    if not data:
        raise InvalidArgument("a name must not be empty")
    return data.replace(b"%", b"%25").replace(b"/", b"%2F")


def unquoted(step: bytes) -> bytes:
    """The name again."""
    return step.replace(b"%2F", b"/").replace(b"%25", b"%")


def folder(handle: Handle, name: str | bytes) -> bytes:
    """Where a recipe of this name keeps its keys: the handle's namespace tells names apart, as it does keys."""
    check.text_or_bytes("a name", name)
    if not name:
        raise InvalidArgument("a name must not be empty")
    return quoted(handle.prefix + check.text_or_bytes("a name", name)) + b"/"


def seconds_to_live(ttl: object) -> float:
    """A TTL. The cluster has the last word on how short it may be."""
    value = check.seconds("ttl", ttl)
    if not 0 < value < math.inf:
        raise InvalidArgument(f"ttl must be a positive number of seconds, not {check.shown(ttl)}")
    return value


def whoami() -> bytes:
    """This process, for people who look at who holds what."""
    return f"{socket.gethostname()}:{os.getpid()}".encode()


def encoded(handle: Handle, value: object) -> bytes:
    """The bytes of a user's value, by the handle's codec."""
    return check.encode_value(value, handle.codec)


def decoded(handle: Handle, raw: bytes) -> Any:
    """A user's value again. Raises ``DecodeError`` if the handle's codec cannot read it."""
    return KeyValue(b"", raw, 0, 0, 0, codec=handle.codec).value
