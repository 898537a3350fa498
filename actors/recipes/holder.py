"""What is acquired, held and released: the common part of ``lock``, ``rwlock``, ``semaphore`` and ``election``.

:class:`Holder` is the logic, on either kind of handle; :class:`LockLike` and :class:`AsyncLockLike` are what a user
sees. The recipes differ in what a contender waits for, which a subclass of ``Holder`` says in ``wait_turn``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

from ...errors import InvalidArgument, RequestTimeout, Unavailable
from ..client.guard import guarded
from ..client.txn_parts import Condition
from ..interruptible import Places
from .contenders import Contenders, Ticket, head
from .sync_async import NotHeld, TimeLimit, Unpicklable, run_sync, whoami

if TYPE_CHECKING:
    from ..handles import AsyncClient, Client

S = TypeVar("S", bound="LockLike")
A = TypeVar("A", bound="AsyncLockLike")


class Holder:
    """One contender. It has one ticket at most, and can get another once that is released."""

    kind = b""
    """What the names of its keys begin with."""
    chained = True
    """Whether each contender waits for the one that came directly before it."""

    def __init__(self, contenders: Contenders) -> None:
        self.contenders = contenders
        self.space = contenders.space
        self._place = Places(1)
        """Of the one attempt that waits or holds."""
        self._attempt: object = None
        """The one that holds."""
        self._ticket: Ticket | None = None

    # -- for subclasses to change -------------------------------------------------------------------------------------

    def value(self) -> bytes:
        """The value of its key."""
        return whoami()

    async def join(self) -> Ticket:
        """Join the line."""
        ticket = await self.contenders.join(self.value(), self.kind, self.compare(), chained=self.chained)
        if ticket is None:
            raise InvalidArgument(f"{self.contenders.name!r} is in use with other parameters")
        return ticket

    def compare(self) -> Sequence[Condition]:
        """What else must hold to join the line."""
        return ()

    async def wait_turn(self, ticket: Ticket, deadline: TimeLimit) -> bool:
        """Wait until it is this ticket's turn; ``False`` when the time is over."""
        return await self.contenders.wait_turn(ticket, deadline)

    def shared_keys(self, ticket: Ticket) -> Sequence[bytes]:
        """The keys to delete together with the last ticket."""
        return [head(ticket.prefix)]

    async def give_back(self, ticket: Ticket) -> None:
        """Release what is held."""
        await self.contenders.give_back(ticket)

    # -- common to all ------------------------------------------------------------------------------------------------

    async def acquire(self, timeout: float | None) -> bool:
        """Join the line and wait for the turn; whether it is held now."""
        return await self.contend(timeout)

    async def contend(self, timeout: float | None, begin: Callable[[], None] = lambda: None) -> bool:
        """As ``acquire``; ``begin`` is called once it is certain that this object neither holds nor waits.

        Every way out but success leaves the line and frees this object for another attempt, even an interrupt and a
        cancellation. The ticket becomes visible to other threads only at the very end, when it can be released.
        """
        deadline = TimeLimit(timeout)
        attempt, ticket, won = object(), None, False
        try:
            if not self._place.take(attempt):
                raise InvalidArgument("this object is held or waiting already: make one for each contender")
            begin()
            with deadline.covering(self.contenders.space):
                ticket = await self.join()
                if await self.wait_turn(ticket, deadline):
                    self.contenders.check_lease(ticket)
                    self.contenders.monitor(ticket)
                    self._attempt = attempt
                    self._ticket, won = ticket, True  # from now on another thread may release it
                    return True
            return False
        except (RequestTimeout, Unavailable) as error:
            if deadline.caused(error, answered=ticket is not None):
                return False
            raise
        finally:
            if not won:
                self._place.leave(attempt, None)
                if ticket is not None:
                    await self.contenders.leave(ticket, *self.shared_keys(ticket))

    async def release(self) -> None:
        """Release what is held; if it was lost before, nothing happens."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            raise InvalidArgument("what is not held cannot be released")
        try:
            self._place.leave(self._attempt, None)
        finally:
            await self.give_back(ticket)

    def current_ticket(self) -> Ticket:
        """The ticket that is held. Raises ``LockLost`` if there is none."""
        ticket = self._ticket
        if ticket is None:
            raise NotHeld(f"{self.contenders.name!r} is not held by this object")
        return ticket

    def lost(self) -> threading.Event:
        """The event of what is held; if nothing is, an event that is set."""
        ticket = self._ticket
        if ticket is None:
            nothing = threading.Event()
            nothing.set()
            return nothing
        return ticket.lost


class _LockLikeBase(Unpicklable):
    """What needs no request to the cluster."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    @property
    def name(self) -> str | bytes:
        """The name it was made with."""
        return self._holder.contenders.name

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every earlier holder.

        Raises:
            LockLost: nothing is held.
        """
        return self._holder.current_ticket().token

    @property
    def held(self) -> bool:
        """Whether it is held, as far as this process knows: ``False`` once ``lost`` is set."""
        return not self._holder.lost().is_set()

    @property
    def lost(self) -> threading.Event:
        """Set when it can no longer be guaranteed that this is held, which is before the TTL is over.

        Each acquisition has an event of its own; while nothing is held, it is set.
        """
        return self._holder.lost()

    def __repr__(self) -> str:
        ticket = self._holder._ticket
        state = "not held" if ticket is None else f"token {ticket.token}{', lost' if ticket.lost.is_set() else ''}"
        return f"<{type(self).__name__} {self.name!r}: {state}>"


class LockLike(_LockLikeBase):
    """Something that is acquired, held and released; as a context manager it does so.

    One object is one contender; make one for each thread. It does not pickle.
    """

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait in line until it is held.

        Args:
            timeout: seconds for everything. ``None`` waits forever (each request on the way has the handle's timeout);
                0 does not wait in line (the requests together have the handle's timeout).

        Returns:
            Whether it is held now. If not, this object has left the line.

        Raises:
            InvalidArgument: this object is held, or waiting, already.
            LeaseLost: the place in the line was lost, because the cluster could not be reached for the TTL.
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return run_sync(self._holder.acquire(timeout))

    def release(self) -> None:
        """Release it. If it was lost, or the cluster cannot be reached, nothing is raised: it ends with the TTL.

        Raises:
            InvalidArgument: nothing is held.
        """
        run_sync(self._holder.release())

    def guard(self) -> Client:
        """A handle like the one this was made with, whose every write is refused with ``LockLost`` once this is no
        longer held under the present token. The check and the write are one transaction.

        Raises:
            LockLost: nothing is held.
        """
        contenders, ticket = self._holder.contenders, self._holder.current_ticket()
        return guarded(cast("Client", contenders.handle), contenders.space, ticket.key, ticket.token)

    def __enter__(self: S) -> S:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holder._ticket is not None:
            self.release()


class AsyncLockLike(_LockLikeBase):
    """As ``LockLike``, for asyncio: ``async with``, ``await lock.acquire()``."""

    async def acquire(self, timeout: float | None = None) -> bool:
        """See ``LockLike.acquire``. If the coroutine is cancelled, it leaves the line."""
        return await self._holder.acquire(timeout)

    async def release(self) -> None:
        """See ``LockLike.release``."""
        await self._holder.release()

    def guard(self) -> AsyncClient:
        """See ``LockLike.guard``."""
        contenders, ticket = self._holder.contenders, self._holder.current_ticket()
        return guarded(cast("AsyncClient", contenders.handle), contenders.space, ticket.key, ticket.token)

    async def __aenter__(self: A) -> A:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holder._ticket is not None:
            await self.release()
