"""A semaphore: at most ``limit`` holders at a time, first come, first served.

::

    with client.semaphore("downloads", limit=4) as slot:
        slot.guard().put("progress", "...")

The first ``limit`` contenders of the line hold it. The limit belongs to the name: a contender that gives another one,
while any holds or waits, gets ``InvalidArgument``.

- *A holder dies*: within the TTL its slot is free, and the next in line has it.
- *The cluster cannot be reached, a holder is paused, a lease is lost, history is compacted*: as for ``lock``. A paused
  holder may believe that it holds a slot that was given away, but its guard refuses its writes. So never more than
  ``limit`` contenders can write through their guards.

Each waiter watches the one before it: for it to leave, or to get its turn. Only the first waiter watches the holders.
So a slot that becomes free wakes one waiter, however long the line is.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import LeaseLost
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.txn_parts import Compare, Condition, Op
from .contenders import Contender, Contenders, Ticket, WaitFor
from .holder import AsyncLockLike, Holder, LockLike
from .sync_async import TimeLimit, resolved, run_sync


class _Slot(Holder):
    """A contender for one of the slots."""

    chained = False

    def __init__(self, contenders: Contenders, limit: int) -> None:
        super().__init__(contenders)
        self.limit = check.whole_number("limit", limit, 1)
        self._limit_key = contenders.folder + b"limit"
        self._text = b"limit %d" % self.limit

    def compare(self) -> Sequence[Condition]:
        return [Compare.value(self._limit_key) == self._text]

    async def join(self) -> Ticket:
        contenders = self.contenders
        while True:
            ticket = await contenders.join(self.value(), self.kind, self.compare(), chained=self.chained)
            if ticket is not None:
                return ticket
            # The line is empty, or has contenders with another limit, which is an error. It may take several attempts:
            # a contender that comes and goes in between takes the limit's key with it.
            await contenders.agree_on(self._limit_key, self._text, contenders.ticket_prefix)

    async def wait_turn(self, ticket: Ticket, deadline: TimeLimit) -> bool:
        while not ticket.uncontended:
            ahead = await self.contenders.retry_read(ticket, lambda: self._ahead(ticket), deadline)
            if ahead is None:
                # The next contender may be waiting for this key to be written, which says that this one holds a slot.
                await self._enter(ticket)
                return True
            if not await self.contenders.wait_for(ticket, ahead, deadline):
                return False
        return True

    def shared_keys(self, ticket: Ticket) -> Sequence[bytes]:
        return [self._limit_key]

    async def give_back(self, ticket: Ticket) -> None:
        await self.contenders.leave(ticket, self._limit_key, max_wait=self.space.timeout)

    async def _ahead(self, ticket: Ticket) -> WaitFor | None:
        """What this ticket waits for; ``None`` if it is among the first ``limit``.

        If all before it hold a slot, any of them may leave, so it waits for any deletion under the prefix. Otherwise it
        waits for a change of the ticket directly before it: that one leaves, or writes its key when it gets a slot.
        """
        contenders = self.contenders
        line = await resolved(
            contenders.reads.range(prefix=contenders.ticket_prefix, sort="create_revision", keys_only=True)
        )
        earlier = [item for item in line if item.create_revision < ticket.token]
        if len(earlier) == len(line) or line.items[len(earlier)].key != ticket.key:
            await contenders.check_key(ticket)
        if len(earlier) < self.limit:
            return None
        if len(earlier) == self.limit:
            return WaitFor(contenders.ticket_prefix, line.revision + 1, all=True)
        return WaitFor(earlier[-1].key, line.revision + 1, only=None)

    async def _enter(self, ticket: Ticket) -> None:
        space = self.contenders.space
        entered = await resolved(
            space.txn(
                [Compare.create_revision(ticket.key) == ticket.token],
                [Op.put(ticket.key, self.value(), lease=ticket.lease)],
            )
        )
        if not entered.succeeded:
            ticket.lost.set()
            raise LeaseLost(f"the place in the line of {self.contenders.name!r} is gone: its lease has ended")


async def _split(contenders: Contenders, limit: int) -> tuple[list[Contender], list[Contender]]:
    """The contenders that hold a slot, and those that wait, each in the order of the line."""
    line = await contenders.in_order()
    return line[:limit], line[limit:]


class Semaphore(LockLike):
    """A semaphore, first come, first served; made by ``client.semaphore``.

    ::

        with client.semaphore("downloads", limit=4) as slot:
            slot.guard().put("progress", "...")

    One object is one contender; make one for each thread. It does not pickle.
    """

    def __init__(self, client: KeyValueClient, name: str | bytes, limit: int, ttl: float = 10) -> None:
        self.limit = limit
        super().__init__(_Slot(Contenders(client, "semaphore", name, ttl), limit))

    def holders(self) -> list[Contender]:
        """The contenders that hold a slot now."""
        return run_sync(_split(self._holder.contenders, self.limit))[0]

    def waiters(self) -> list[Contender]:
        """The contenders that wait, in the order of their turns."""
        return run_sync(_split(self._holder.contenders, self.limit))[1]


class AsyncSemaphore(AsyncLockLike):
    """As ``Semaphore``, for asyncio: ``async with client.aio.semaphore("downloads", limit=4) as slot``."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, limit: int, ttl: float = 10) -> None:
        self.limit = limit
        super().__init__(_Slot(Contenders(client, "semaphore", name, ttl), limit))

    async def holders(self) -> list[Contender]:
        """The contenders that hold a slot now."""
        return (await _split(self._holder.contenders, self.limit))[0]

    async def waiters(self) -> list[Contender]:
        """The contenders that wait, in the order of their turns."""
        return (await _split(self._holder.contenders, self.limit))[1]
