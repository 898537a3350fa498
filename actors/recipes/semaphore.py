"""A semaphore: at most ``limit`` slots are held at a time, first come, first served.

::

    with client.semaphore("downloads", limit=4) as slot:
        slot.guard().put("progress", "...")
    with client.semaphore("gpus", limit=8, weight=3):    # takes three slots at once
        ...

A contender holds it if its weight and those of all before it in the line are at most the limit. So the holders are the
beginning of the line, and one that holds goes on holding, if others leave. The order is strict: one that is too heavy
for what is free waits at the head of the line, and lighter ones that came later wait after it. So none starves, and
slots may be idle meanwhile. A weight is a part of its key's name, so that nobody reads values to learn it.

The limit belongs to the name: a contender that gives another one, while any holds or waits, gets ``InvalidArgument``.

- *A holder dies*: within the TTL its slot is free, and the next in line has it.
- *The cluster cannot be reached, a holder is paused, a lease is lost, history is compacted*: as for ``lock``. A paused
  holder may believe that it holds a slot that was given away, but its guard refuses its writes. So never more than
  ``limit`` contenders can write through their guards.

Each waiter watches the one before it: for it to leave, or to get its turn. Only the first waiter watches the holders.
So a slot that becomes free wakes one waiter, however long the line is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...errors import InvalidArgument, LeaseLost
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.txn_parts import Compare, Condition, Op
from .contenders import Contender, Contenders, Ticket, WaitFor
from .holder import AsyncLockLike, Holder, LockLike
from .sync_async import TimeLimit, bounded, resolved, run_sync
from .weights import holders_by_weight, weight_kind, weight_of


class _Slot(Holder):
    """A contender for one or more of the slots."""

    chained = False

    def __init__(self, contenders: Contenders, limit: int, weight: object) -> None:
        super().__init__(contenders)
        self.limit = check.whole_number("limit", limit, 1)
        self.default_weight = self._checked(weight)
        self.weight = self.default_weight
        self._limit_key = contenders.folder + b"limit"
        self._text = b"limit %d" % self.limit

    def _checked(self, weight: object) -> int:
        number = check.whole_number("weight", weight, 1)
        if number > self.limit:
            raise InvalidArgument(f"the weight {number} is over the limit {self.limit}: it could never be held")
        return number

    async def acquire_slots(self, timeout: float | None, weight: object) -> bool:
        """As ``acquire``, with a weight; ``None`` is the one that the semaphore was made with."""
        number = self.default_weight if weight is None else self._checked(weight)
        return await self.contend(timeout, lambda: self._take_weight(number))

    def _take_weight(self, weight: int) -> None:
        self.weight = weight

    def compare(self) -> Sequence[Condition]:
        return [Compare.value(self._limit_key) == self._text]

    async def join(self) -> Ticket:
        contenders = self.contenders
        while True:
            kind = weight_kind(self.weight)
            ticket = await contenders.join(self.value(), kind, self.compare(), chained=self.chained)
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
        """What this ticket waits for; ``None`` if it fits into the limit, with all before it.

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
        taken = sum([weight_of(item.key) for item in earlier])
        if taken + self.weight <= self.limit:
            return None
        if taken <= self.limit:
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
            ticket.lost.lose()
            raise LeaseLost(f"the place in the line of {self.contenders.name!r} is gone: its lease has ended")


@bounded
async def _split(logic: _Slot) -> tuple[list[Contender], list[Contender]]:
    """The contenders that hold slots, and those that wait, each in the order of the line."""
    contenders = logic.contenders
    listing = await resolved(contenders.space.range(prefix=contenders.ticket_prefix, sort="create_revision"))
    weights = [weight_of(item.key) for item in listing]
    found = await contenders.described(listing.items)
    line = [msgspec.structs.replace(one, weight=weight) for one, weight in zip(found, weights, strict=True)]
    holding = holders_by_weight(weights, logic.limit)
    return line[:holding], line[holding:]


class Semaphore(LockLike):
    """A semaphore, first come, first served; made by ``client.semaphore``.

    ::

        with client.semaphore("downloads", limit=4) as slot:
            slot.guard().put("progress", "...")

    One object is one contender; make one for each thread. It does not pickle.
    """

    def __init__(
        self,
        client: KeyValueClient,
        name: str | bytes,
        limit: int,
        ttl: float = 10,
        weight: int = 1,
        bound_to: Any = None,
    ) -> None:
        self.limit = limit
        self._slot = _Slot(Contenders(client, "semaphore", name, ttl, bound_to), limit, weight)
        super().__init__(self._slot)

    @property
    def weight(self) -> int:
        """How many slots it holds or, while it is not held, has held last or will hold."""
        return self._slot.weight

    def acquire(self, timeout: float | None = None, *, weight: int | None = None) -> bool:
        """Wait in line until it is held: see ``LockLike.acquire``.

        Args:
            timeout: seconds, as there.
            weight: how many slots to take, all at once; ``None`` is what the semaphore was made with.

        Raises:
            InvalidArgument: also if the weight is over the limit.
        """
        return run_sync(self._slot.acquire_slots(timeout, weight))

    def holders(self) -> list[Contender]:
        """The contenders that hold a slot now."""
        return run_sync(_split(self._slot))[0]

    def waiters(self) -> list[Contender]:
        """The contenders that wait, in the order of their turns."""
        return run_sync(_split(self._slot))[1]


class AsyncSemaphore(AsyncLockLike):
    """As ``Semaphore``, for asyncio: ``async with client.aio.semaphore("downloads", limit=4) as slot``."""

    def __init__(
        self,
        client: AsyncKeyValueClient,
        name: str | bytes,
        limit: int,
        ttl: float = 10,
        weight: int = 1,
        bound_to: Any = None,
    ) -> None:
        self.limit = limit
        self._slot = _Slot(Contenders(client, "semaphore", name, ttl, bound_to), limit, weight)
        super().__init__(self._slot)

    @property
    def weight(self) -> int:
        """See ``Semaphore.weight``."""
        return self._slot.weight

    async def acquire(self, timeout: float | None = None, *, weight: int | None = None) -> bool:
        """See ``Semaphore.acquire``."""
        return await self._slot.acquire_slots(timeout, weight)

    async def holders(self) -> list[Contender]:
        """The contenders that hold a slot now."""
        return (await _split(self._slot))[0]

    async def waiters(self) -> list[Contender]:
        """The contenders that wait, in the order of their turns."""
        return (await _split(self._slot))[1]
