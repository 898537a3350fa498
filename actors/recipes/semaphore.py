"""A semaphore: at most so many holders at a time, first come, first served.

::

    with client.semaphore("downloads", limit=4) as slot:
        slot.guard().put("progress", "...")

Whoever is among the first ``limit`` of the line holds it. *A holder dies*: within the TTL its place is free, and the
next in line has it. The limit belongs to the name: whoever gives another one, while anybody holds or waits, gets
``InvalidArgument``. *The cluster cannot be reached, a holder is paused, a lease is lost, history is compacted*: as for
``lock``; a paused holder may believe that it holds a slot that was given away, and the guard refuses its writes, so
that never more than ``limit`` can write through theirs.

Each waiter waits for the one before it, by one watch: for it to leave, or to get its turn. Only the first of those who
wait watches the holders, so a slot that is free wakes one waiter, however long the line.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import LeaseLost
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.handle import Client
from ..client.operations import Compare, Condition, Op
from .faces import Deadline, drive, settled
from .holding import AsyncHeld, Held, Holding
from .line import Ahead, Contender, Line, Place


class _Slot(Holding):
    """A contender for one of the slots."""

    chained = False

    def __init__(self, line: Line, limit: int) -> None:
        super().__init__(line)
        self.limit = check.whole_number("limit", limit, 1)
        self._limit_key = line.folder + b"limit"
        self._text = b"limit %d" % self.limit

    def compare(self) -> Sequence[Condition]:
        return [Compare.value(self._limit_key) == self._text]

    async def join(self) -> Place:
        line = self.line
        while True:
            place = await line.join(self.value(), self.kind, self.compare(), chained=self.chained)
            if place is not None:
                return place
            # Nobody is here, or somebody with another limit, which ends this. If somebody comes and goes before the
            # next look, he takes the limit with him.
            await line.agree(self._limit_key, self._text, line.places)

    async def turn(self, place: Place, deadline: Deadline) -> bool:
        while not place.free:
            ahead = await self.line.patiently(place, lambda: self._ahead(place), deadline)
            if ahead is None:
                # Whoever came next may be waiting for this key to say that it has entered.
                await self._enter(place)
                return True
            if not await self.line.wait(place, ahead, deadline):
                return False
        return True

    def left_over(self, place: Place) -> Sequence[bytes]:
        return [self._limit_key]

    async def give_back(self, place: Place) -> None:
        await self.line.leave(place, self._limit_key, patience=self.space.timeout)

    async def _ahead(self, place: Place) -> Ahead | None:
        line = self.line
        everybody = await settled(line.looks.range(prefix=line.places, sort="create_revision", keys_only=True))
        earlier = [item for item in everybody if item.create_revision < place.token]
        if len(earlier) == len(everybody) or everybody.items[len(earlier)].key != place.key:
            await line.check(place)
        if len(earlier) < self.limit:
            return None
        if len(earlier) == self.limit:  # all before it are holders: any of them may leave
            return Ahead(line.places, everybody.revision + 1, all=True)
        return Ahead(earlier[-1].key, everybody.revision + 1, only=None)

    async def _enter(self, place: Place) -> None:
        space = self.line.space
        entered = await settled(
            space.txn(
                [Compare.create_revision(place.key) == place.token],
                [Op.put(place.key, self.value(), lease=place.lease)],
            )
        )
        if not entered.succeeded:
            place.lost.set()
            raise LeaseLost(f"the place in the line of {self.line.name!r} is gone: its lease has ended")


async def _split(line: Line, limit: int) -> tuple[list[Contender], list[Contender]]:
    everybody = await line.contenders()
    return everybody[:limit], everybody[limit:]


class Semaphore(Held):
    """A semaphore; see the module."""

    def __init__(self, client: Client, name: str | bytes, limit: int, ttl: float = 10) -> None:
        self.limit = limit
        super().__init__(_Slot(Line(client, "semaphore", name, ttl), limit))

    def holders(self) -> list[Contender]:
        """Who holds it now."""
        return drive(_split(self._holding.line, self.limit))[0]

    def waiters(self) -> list[Contender]:
        """Who waits for it, in the order of their turns."""
        return drive(_split(self._holding.line, self.limit))[1]


class AsyncSemaphore(AsyncHeld):
    """A semaphore for asyncio; see the module."""

    def __init__(self, client: AsyncClient, name: str | bytes, limit: int, ttl: float = 10) -> None:
        self.limit = limit
        super().__init__(_Slot(Line(client, "semaphore", name, ttl), limit))

    async def holders(self) -> list[Contender]:
        """Who holds it now."""
        return (await _split(self._holding.line, self.limit))[0]

    async def waiters(self) -> list[Contender]:
        """Who waits for it, in the order of their turns."""
        return (await _split(self._holding.line, self.limit))[1]
