"""Leases as the user sees them: ``with kv.lease(10) as lease: kv.put("here", "me", lease=lease)``

Keys that are attached to a lease are deleted, in one revision, when the lease ends: when it is revoked, or when the
cluster has not heard from its holder for its TTL. As long as the object exists, the lease is kept alive in the
background, together with all others of the process. When the object is collected, that stops, and the lease expires.

``lost`` says when the lease can no longer be guaranteed. Its time is counted in this process, from the *sending* of the
last keep-alive that was confirmed, less a margin for clock drift. So ``lost`` is set no later than the cluster ends the
lease, even in a process that is cut off. Only a process that is paused cannot notice in time; therefore what a lease
protects needs a fence as well (``guard()`` of a lock).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from ...errors import InvalidArgument, KeeperError, LeaseLost, LeaseNotFound, Unavailable
from ...limits import LEASE_ID_BITS, MAX_LEASES_IN_FRAME
from ...schema.frames import LeaseStatus, LeaseStatuses
from .. import arguments as check
from ..finalizer_guard import LockFreeEvent
from ..this_process import current_task
from .client_info import Owner, owner_info
from .core.in_flight import LeaseQuestion
from .core.lease_core import HeldLease, LeaseCore
from .hub import Hub, Listener, clock, this_process
from .life_monitor import life_monitor
from .results import TxnResult
from .txn_parts import Op
from .view import Call, Steps, View, grant_command, lease_seconds, revoke_command

if TYPE_CHECKING:
    from ..ray_lives import Life
    from .aio import AsyncKeyValueClient
    from .handle import KeyValueClient


class LeaseInfo(msgspec.Struct, frozen=True):
    """A lease as the cluster's leader sees it.

    Attributes:
        id: the lease's id.
        ttl: the seconds that each keep-alive gives it.
        remaining: the seconds that it has left.
        keys: the keys that are attached to it, if they were asked for, as far as the handle sees them.
        owner: who made it; ``None`` if that is not known, or was not asked for.
    """

    id: int
    ttl: float
    remaining: float
    keys: tuple[bytes, ...] = ()
    owner: Owner | None = None


# --- steps of calls --------------------------------------------------------------------------------------------------


Granted = tuple[int, float, float, bool]
"""The id of a lease, its TTL, the time at which it was asked for, and whether it is owned by this process's session."""


def grant_steps(view: View, ttl: object, deadline: float, owned: bool = False) -> Steps[Granted]:
    """Steps that make a lease.

    If granting took so long that little of the lease is left, it is revoked, and another one is asked for: nothing is
    attached to it yet.

    Args:
        deadline: clock time until which to try again.
        owned: whether the session that makes it owns it.
    """
    seconds = lease_seconds(ttl)
    while True:
        asked_at = clock()
        answer = yield from view.grant(grant_command(0, seconds, current_task(), time.time(), owned))
        now = clock()
        if now - asked_at < answer.ttl / 2 or now >= deadline:
            return answer.id, answer.ttl, asked_at, owned
        yield from revoke_steps(answer.id)


def fresh_id() -> int:
    """A random id for a lease, drawn by the system: processes that seed ``random``, or were forked, must not draw the
    same ids."""
    return secrets.randbits(LEASE_ID_BITS) | 1


def leased_txn_steps(
    view: View, ttl: object, make: Callable[[int], Op], owned: bool = True
) -> Steps[tuple[Granted | None, TxnResult]]:
    """Steps that make a lease in a transaction, and return what ``grant_steps`` does (``None`` if the comparisons did
    not hold), and the result of the transaction.


    The transaction runs once, however long it takes: what else it does must not happen twice. A lease that took too
    long to grant is lost when the caller gets it, and says so.

    Args:
        make: makes the transaction from the lease's id. The id is drawn here, at random, because the transaction must
            know it before the cluster does.
        owned: whether the session that makes it owns it.
    """
    seconds = lease_seconds(ttl)
    id = fresh_id()
    txn = make(id)
    if not isinstance(txn, Op) or txn.kind != "txn":
        raise InvalidArgument(f"what makes the transaction of a lease must return Op.txn(...), not {check.shown(txn)}")
    parts = dict(txn.arguments)
    parts["success"] = (_grant_for_task(id, seconds, owned), *check.each("success", parts["success"]))
    asked_at = clock()
    result = yield from view.txn(**parts, request_id=None)
    if not result.succeeded:
        return None, result
    granted, *responses = result.responses
    assert isinstance(granted, float)
    return (id, granted, asked_at, owned), TxnResult(True, tuple(responses), result.revision)


def _grant_for_task(id: int, seconds: float, owned: bool) -> Op:
    """``Op.grant``, with what is to be shown of the lease, and whether this process owns it. A user's own ``Op.grant``
    has none of it: under a ``request_id`` the same operation must be the same bytes."""
    shown = {"task": current_task(), "at": time.time()}
    return Op("grant", {**Op.grant(id, seconds).arguments, **shown, "owned": owned})


def revoke_steps(lease: object) -> Steps[None]:
    """Steps that revoke a lease; that it has ended already is not an error."""
    with contextlib.suppress(LeaseNotFound):
        yield Call(revoke_command(lease))


def lease_info_steps(view: View, lease: object, keys: object) -> Steps[LeaseInfo]:
    """Steps that ask for the status of one lease."""
    id = check.whole_number("a lease id", getattr(lease, "id", lease), check.MIN_LEASE_ID)
    answer = yield Call(LeaseQuestion((id,), check.flag("keys", keys), owners=True))
    found = _statuses(answer)
    if not found:
        raise LeaseNotFound(f"lease {id:x} does not exist, or has expired")
    return _info(view, found[0])


def list_lease_steps(view: View) -> Steps[list[LeaseInfo]]:
    """Steps that ask for the status of all leases of the cluster."""
    answer = yield Call(LeaseQuestion(owners=True))
    return [_info(view, status) for status in _statuses(answer)]


def lease_owner_steps(view: View, leases: Sequence[int]) -> Steps[dict[int, LeaseInfo]]:
    """Steps that ask for the status of some leases, with their owners; by id, those that exist."""
    found: dict[int, LeaseInfo] = {}
    for start in range(0, len(leases), MAX_LEASES_IN_FRAME):
        some = tuple(leases[start : start + MAX_LEASES_IN_FRAME])
        answer = yield Call(LeaseQuestion(some, owners=True))
        found.update({status.id: _info(view, status) for status in _statuses(answer)})
    return found


def _statuses(answer: object) -> tuple[LeaseStatus, ...]:
    if not isinstance(answer, LeaseStatuses):
        raise Unavailable(f"the cluster answered {type(answer).__name__} to a question about leases")
    return answer.leases


def _info(view: View, status: LeaseStatus) -> LeaseInfo:
    space = view.space
    keys = tuple([key[len(space) :] for key in status.keys if key.startswith(space)])
    return LeaseInfo(status.id, status.ttl, status.remaining, keys, owner_info(status.owner))


# --- the loss of a lease ---------------------------------------------------------------------------------------------


class LossEvent(LockFreeEvent):
    """Set when a lease can no longer be guaranteed, and never cleared again.

    It is a ``threading.Event`` that also looks at the clock, so ``is_set()`` is right even if the process had no time
    to set it. In a thread ``lost.wait(timeout)`` waits for it, in a coroutine ``await lease.lost``. To set it is to
    give the lease up, as this process's own doing: ``released`` says so. That may be done anywhere, in destructors and
    signal handlers too.
    """

    def __init__(self, tell: Callable[[Listener], None] = lambda loss: loss.flush()) -> None:
        super().__init__()
        self._tell = tell
        self._process = this_process()
        self._held: HeldLease | None = None
        self._awaited: deque[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = deque()

    def belong_to(self, held: HeldLease) -> None:
        """Tie the event to its lease."""
        self._held = held
        if held.lost:
            self.lose()

    def wake(self) -> None:
        """The lease is lost. Called by the hub, with its lock held."""
        if self._held is not None:
            self._held.keep = False
        super().set()
        if self._awaited:
            self._tell(self)

    def is_set(self) -> bool:
        """Whether the lease is lost. In a forked child it always is: nothing there keeps it alive."""
        if super().is_set() or self._process != this_process():
            return True
        held = self._held
        return held is not None and clock() >= held.good_until

    @property
    def released(self) -> bool:
        """Whether this process has let go of the lease by itself."""
        return self._held is not None and self._held.released

    def set(self) -> None:
        """Give the lease up: this process lets go of it, it counts as lost, and is kept alive no longer."""
        if self._held is not None and not self.is_set():
            self._held.released = True
        self.lose()

    def lose(self) -> None:
        """The lease, or the key that it held, is gone through no doing of this process."""
        if self._held is not None:
            self._held.keep = False
        super().set()
        self.flush()

    def flush(self) -> None:
        """Wake the coroutines that wait."""
        while self._awaited:
            with contextlib.suppress(IndexError, RuntimeError):  # another thread took it, or the loop is closed
                loop, event = self._awaited.popleft()
                loop.call_soon_threadsafe(event.set)

    def clear(self) -> NoReturn:
        """Refused: a lease that is lost stays lost."""
        raise TypeError("a lost lease stays lost: its event cannot be cleared")

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


def _drop_lease(core: LeaseCore, held: HeldLease) -> None:
    core.drop_lease(held, clock())


class _Lease:
    """What the sync and the async lease have in common."""

    def __init__(
        self, hub: Hub, id: int, ttl: float, asked_at: float, owned: bool, keep_alive: bool, life: Life | None = None
    ) -> None:
        self.id = id
        """The lease's id; other processes may use it too."""
        self.ttl = ttl
        """The seconds that each keep-alive gives it."""
        self.lost = loss = LossEvent(hub.flush_later)
        """Set when the lease can no longer be guaranteed."""
        self._hub = hub
        self.life_over = False
        """Whether the actor, job or driver that it is bound to is dead."""

        def hold(now: float) -> HeldLease:
            if owned:
                hub.monitor_core.lease_owned(now)
            return hub.lease_core.hold_lease(id, ttl, asked_at, keep=keep_alive, signal=loss, now=now, owned=owned)

        self._held: HeldLease = hub.run_locked(hold)
        loss.belong_to(self._held)
        weakref.finalize(self, _drop_lease, hub.lease_core, self._held).atexit = False
        if life is not None:
            life_monitor.end_with(life, self)

    def remaining(self) -> float:
        """The seconds for which the lease is guaranteed even if the cluster cannot be reached; 0 once it is lost."""
        return 0.0 if self.lost.is_set() else max(0.0, self._held.good_until - clock())

    @property
    def keep_alives(self) -> int:
        """How many keep-alives of this object the cluster has confirmed."""
        return self._held.keep_alives

    def _check(self) -> None:
        if self.lost.is_set():
            raise LeaseLost(f"lease {self.id:x} is lost: {self.why_lost()}")

    def why_lost(self) -> str:
        """How it was lost, in words, for messages."""
        if self._hub.process != this_process():
            return "it belongs to the process that this one was forked from"
        return str(self._held.error or "it was given up")

    def revoked(self) -> None:
        """Note that the lease was ended in another way, as by a transaction with ``Op.revoke``.

        A keep-alive may cross the transaction, and find the lease gone before this is called. Where that must not count
        as a loss, set ``lost`` before the transaction.
        """
        self._held.let_go(clock())
        self._end(LeaseLost("it was revoked"))

    @contextlib.contextmanager
    def _revoking(self) -> Iterator[None]:
        """While this process revokes the lease, and from then on, its end is this process's own doing.

        That is noted before the revocation is sent, because the answer to a keep-alive may say first that the lease is
        gone. It is taken back if the revocation was certainly not applied, and the lease is still held.
        """
        before = self._held.released
        if not self.lost.is_set():
            self._held.released = True
        try:
            yield
        except KeeperError as error:
            if error.applied is False and not self.lost.is_set():
                self._held.released = before
            raise
        self.revoked()

    def _life_ended(self, error: LeaseLost) -> None:
        """The life is over that it is bound to: it is lost, and kept alive no longer."""
        self.life_over = True
        self._end(error)

    def _end(self, error: LeaseLost) -> None:
        """It is lost, and kept alive no longer."""
        if self._hub.process == os.getpid():
            self._hub.run_now_or_soon(lambda now: self._hub.lease_core.lease_ended(self._held, error))
        self.lost.lose()

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else f"{self.remaining():.1f} s left"
        return f"<{type(self).__name__} {self.id:x} of {self.ttl:g} s, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease does not pickle: it is kept alive by this process. Pass its .id")


class Lease(_Lease):
    """A lease that is kept alive as long as this object exists. Made by ``Client.lease``.

    ::

        with kv.lease(10) as lease:                  # revoked at the end
            kv.put("workers/7", "10.0.0.7:5000", lease=lease)
            while not lease.lost.wait(1):
                work()

    It does not pickle: it is kept alive by this process. Another process may use its ``id``.
    """

    def __init__(
        self, client: KeyValueClient, hub: Hub, granted: Granted, keep_alive: bool, life: Life | None = None
    ) -> None:
        self._client = client
        super().__init__(hub, *granted, keep_alive, life)

    def keys(self, *, timeout: float | None = None) -> list[bytes]:
        """The keys that are attached to it, as far as the handle that made it sees them.

        Args:
            timeout: seconds; ``None`` is the handle's default.

        Raises:
            LeaseNotFound: the lease has ended.
        """
        return list(self._client.time_to_live(self.id, keys=True, timeout=timeout).keys)

    def revoke(self, *, timeout: float | None = None) -> None:
        """End the lease and delete its keys, in one revision; that it has ended already is not an error.

        Args:
            timeout: seconds; ``None`` is the handle's default.
        """
        with self._revoking():
            self._client._run(revoke_steps(self.id), timeout)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.revoke()
        except KeeperError:  # it expires by itself, and an exception from inside the block matters more
            self.lost.set()


class AsyncLease(_Lease):
    """As :class:`Lease`, for asyncio: ``async with await kv.aio.lease(10) as lease``."""

    def __init__(
        self, client: AsyncKeyValueClient, hub: Hub, granted: Granted, keep_alive: bool, life: Life | None = None
    ) -> None:
        self._client = client
        super().__init__(hub, *granted, keep_alive, life)

    async def keys(self, *, timeout: float | None = None) -> list[bytes]:
        """The keys that are attached to it: see ``Lease.keys``."""
        return list((await self._client.time_to_live(self.id, keys=True, timeout=timeout)).keys)

    async def revoke(self, *, timeout: float | None = None) -> None:
        """End the lease: see ``Lease.revoke``."""
        with self._revoking():
            await self._client._run(revoke_steps(self.id), timeout)

    async def __aenter__(self) -> AsyncLease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.revoke()
        except KeeperError:
            self.lost.set()
