"""What the user holds of a lease: ``with kv.lease(10) as lease: kv.put("here", "me", lease=lease)``

Keys that are put under a lease are deleted, in one revision, when the lease ends: when it is revoked, or when nothing
was heard of its holder for its TTL. While the object lives the lease is kept alive in the background, together with all
others of the process; when the object is collected, that stops, and the lease runs out.

``lost`` tells when the lease can no longer be guaranteed. Its time is counted here, from the *sending* of the last
keep-alive that was confirmed, less a margin for drift; so it is set no later than the cluster ends the lease, also in
a process that is cut off. Only a process that does not run cannot be told: what a lease protects needs a fence as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import weakref
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from ...errors import InvalidArgument, KeeperError, LeaseLost, LeaseNotFound, Unavailable
from ...limits import LEASE_ID_BITS
from ..protocol import Leases, LeaseStatus
from . import arguments as check
from .frames import LeaseQuestion
from .hub import Hub, Listener, clock, this_process
from .leasing import Held
from .operations import Op
from .requests import Ask, Steps, View, grant_command, lease_seconds, revoke_command
from .results import TxnResult
from .undisturbed import Bell

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .handle import Client


class LeaseInfo(msgspec.Struct, frozen=True):
    """A lease as the cluster's leader sees it.

    Attributes:
        id: its id.
        ttl: seconds that each keep-alive gives it.
        remaining: seconds that it has left.
        keys: what is attached to it, if that was asked for: the keys that the asking handle sees.
    """

    id: int
    ttl: float
    remaining: float
    keys: tuple[bytes, ...] = ()


# --- steps of calls --------------------------------------------------------------------------------------------------


def granting(view: View, ttl: object, deadline: float) -> Steps[tuple[int, float, float]]:
    """Steps that make a lease: its id, its TTL, and when it was asked for.

    A lease that was so long in the making that little is left of it is given back, and another one asked for: nothing
    hangs on it yet.

    Args:
        deadline: clock time until which that is worth trying.
    """
    seconds = lease_seconds(ttl)
    while True:
        asked_at = clock()
        answer = yield from view.grant(grant_command(0, seconds))
        now = clock()
        if now - asked_at < answer.ttl / 2 or now >= deadline:
            return answer.id, answer.ttl, asked_at
        yield from revoking(answer.id)


def fresh_id() -> int:
    """An id for a lease, from the system's randomness: a process that seeds its own ``random``, or was forked, must not
    draw what another one draws."""
    return secrets.randbits(LEASE_ID_BITS) | 1


def granting_in_txn(
    view: View, ttl: object, make: Callable[[int], Op]
) -> Steps[tuple[tuple[int, float, float] | None, TxnResult]]:
    """Steps that make a lease in a transaction: what ``granting`` gives, or ``None`` if the comparisons did not hold,
    and the result.

    It runs once, however long it takes: what else is in the transaction must not happen twice. A lease that was too
    long in the making is lost when the caller gets it, and says so.

    Args:
        make: the transaction, from the id of the lease, which is chosen here. A repeated request finds its answer by
            its place in the session; another lease of that id is as likely as a collision of random numbers.
    """
    seconds = lease_seconds(ttl)
    id = fresh_id()
    txn = make(id)
    if not isinstance(txn, Op) or txn.kind != "txn":
        raise InvalidArgument(f"what makes the transaction of a lease must return Op.txn(...), not {check.shown(txn)}")
    parts = dict(txn.arguments)
    parts["success"] = (Op.grant(id, seconds), *check.each("success", parts["success"]))
    asked_at = clock()
    result = yield from view.txn(**parts, request_id=None)
    if not result.succeeded:
        return None, result
    granted, *responses = result.responses
    assert isinstance(granted, float)
    return (id, granted, asked_at), TxnResult(True, tuple(responses), result.revision)


def revoking(lease: object) -> Steps[None]:
    """Steps that end a lease; it is no error if it has ended already."""
    with contextlib.suppress(LeaseNotFound):
        yield Ask(revoke_command(lease))


def asking(view: View, lease: object, keys: object) -> Steps[LeaseInfo]:
    """Steps that ask how one lease stands."""
    id = check.whole_number("a lease id", getattr(lease, "id", lease), 1)
    answer = yield Ask(LeaseQuestion((id,), check.flag("keys", keys)))
    found = _statuses(answer)
    if not found:
        raise LeaseNotFound(f"lease {id:x} does not exist, or has expired")
    return _info(view, found[0])


def listing(view: View) -> Steps[list[LeaseInfo]]:
    """Steps that ask for all leases of the cluster."""
    answer = yield Ask(LeaseQuestion())
    return [_info(view, status) for status in _statuses(answer)]


def _statuses(answer: object) -> tuple[LeaseStatus, ...]:
    if not isinstance(answer, Leases):
        raise Unavailable(f"the cluster answered {type(answer).__name__} to a question about leases")
    return answer.leases


def _info(view: View, status: LeaseStatus) -> LeaseInfo:
    space = view.space
    keys = tuple([key[len(space) :] for key in status.keys if key.startswith(space)])
    return LeaseInfo(status.id, status.ttl, status.remaining, keys)


# --- losses ----------------------------------------------------------------------------------------------------------


class Loss(Bell):
    """Set the moment that a lease can no longer be guaranteed; it never becomes unset.

    A ``threading.Event`` that also looks at the clock, so that ``is_set`` is right even where the process was not given
    the time to set it; and in a coroutine, ``await lease.lost`` waits for it. Setting it gives the lease up, and may be
    done anywhere, in destructors and handlers of signals too.
    """

    def __init__(self, tell: Callable[[Listener], None] = lambda loss: loss.flush()) -> None:
        super().__init__()
        self._tell = tell
        self._process = this_process()
        self._held: Held | None = None
        self._awaited: deque[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = deque()

    def belong_to(self, held: Held) -> None:
        """This is the loss of that lease."""
        self._held = held
        if held.lost:
            self.set()

    def wake(self) -> None:
        """The hub says, with its lock held, that the lease is lost."""
        if self._held is not None:
            self._held.keep = False
        super().set()
        if self._awaited:
            self._tell(self)

    def is_set(self) -> bool:
        """Whether the lease is lost. A forked child has nobody who would tell it, so there it always is."""
        if super().is_set() or self._process != this_process():
            return True
        held = self._held
        return held is not None and clock() >= held.good_until

    def set(self) -> None:
        """Give the lease up: it counts as lost, and is kept alive no longer."""
        if self._held is not None:
            self._held.keep = False
        super().set()
        self.flush()

    def flush(self) -> None:
        """Wake the coroutines that wait."""
        while self._awaited:
            with contextlib.suppress(IndexError, RuntimeError):  # the loop was closed, and whoever waited in it is gone
                loop, event = self._awaited.popleft()
                loop.call_soon_threadsafe(event.set)

    def clear(self) -> NoReturn:
        """Not possible: what is lost is lost."""
        raise TypeError("a lost lease cannot be found again")

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        event = asyncio.Event()
        entry = (asyncio.get_running_loop(), event)
        self._awaited.append(entry)
        try:
            while not self.is_set():
                await event.wait()
        finally:
            with contextlib.suppress(ValueError, IndexError):
                self._awaited.remove(entry)


class _Lease:
    """What a sync and an async lease have in common."""

    def __init__(self, hub: Hub, id: int, ttl: float, asked_at: float, keep_alive: bool) -> None:
        self.id = id
        """The lease's id, which other processes may use too."""
        self.ttl = ttl
        """Seconds that each keep-alive gives it."""
        self.lost = loss = Loss(hub.tell)
        """Set the moment that the lease can no longer be guaranteed."""
        self._hub = hub
        self._held: Held = hub.do(
            lambda now: hub.leasing.hold(id, ttl, asked_at, keep=keep_alive, signal=loss, now=now)
        )
        loss.belong_to(self._held)
        weakref.finalize(self, hub.leasing.drop, self._held).atexit = False

    def remaining(self) -> float:
        """Seconds for which the lease is guaranteed if nothing more is heard of the cluster; 0 once it is lost."""
        return 0.0 if self.lost.is_set() else max(0.0, self._held.good_until - clock())

    @property
    def keep_alives(self) -> int:
        """How many keep-alives that this object has sent the cluster has confirmed."""
        return self._held.keep_alives

    def _check(self) -> None:
        if self.lost.is_set():
            raise LeaseLost(f"lease {self.id:x} is lost: {self.why_lost()}")

    def why_lost(self) -> str:
        """What is known of how it was lost, for messages."""
        if self._hub.process != this_process():
            return "it belongs to the process that this one was forked from"
        return str(self._held.error or "it was given up")

    def revoked(self) -> None:
        """It has been ended elsewhere, as by a transaction (``Op.revoke``): note that here."""
        if self._hub.process == os.getpid():
            self._hub.now_or_soon(lambda now: self._hub.leasing.end(self._held, LeaseLost("it was revoked")))
        self.lost.set()

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else f"{self.remaining():.1f} s left"
        return f"<{type(self).__name__} {self.id:x} of {self.ttl:g} s, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease does not pickle: it is kept alive by this process. Pass its .id")


class Lease(_Lease):
    """A lease that is kept alive while this object lives. Made by ``Client.lease``; see the module.

    As a context manager it is revoked at the end.
    """

    def __init__(self, client: Client, hub: Hub, granted: tuple[int, float, float], keep_alive: bool) -> None:
        self._client = client
        super().__init__(hub, *granted, keep_alive)

    def keys(self, *, timeout: float | None = None) -> list[bytes]:
        """The keys attached to it, as far as the handle that made it sees them.

        Raises:
            LeaseNotFound: it has ended.
        """
        return list(self._client.time_to_live(self.id, keys=True, timeout=timeout).keys)

    def revoke(self, *, timeout: float | None = None) -> None:
        """End the lease and delete its keys, in one revision. It is no error if it has ended already."""
        self._client._run(revoking(self.id), timeout)
        self.revoked()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.revoke()
        except KeeperError:  # it runs out by itself, and what happened inside matters more
            self.lost.set()


class AsyncLease(_Lease):
    """The same as :class:`Lease` for asyncio."""

    def __init__(self, client: AsyncClient, hub: Hub, granted: tuple[int, float, float], keep_alive: bool) -> None:
        self._client = client
        super().__init__(hub, *granted, keep_alive)

    async def keys(self, *, timeout: float | None = None) -> list[bytes]:
        """The keys attached to it: see ``Lease.keys``."""
        return list((await self._client.time_to_live(self.id, keys=True, timeout=timeout)).keys)

    async def revoke(self, *, timeout: float | None = None) -> None:
        """End the lease: see ``Lease.revoke``."""
        await self._client._run(revoking(self.id), timeout)
        self.revoked()

    async def __aenter__(self) -> AsyncLease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.revoke()
        except KeeperError:
            self.lost.set()
