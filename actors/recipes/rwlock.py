"""A lock for readers together or one writer alone, first come, first served.

::

    lock = client.rwlock("table")
    with lock.read():
        ...
    with lock.write() as writing:
        writing.guard().put("table/row", data)

A reader waits for the nearest writer that came before it, a writer for everybody that came before it: so no writer
starves behind readers that keep coming, and no reader behind writers. A writer waits for one key at a time, the last
before its own; readers behind a writer all get their turn together when it leaves, which is what they are for.

*A holder dies, is paused, is cut off, loses its lease; history is compacted*: as for ``lock``, each side of it is one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..client.aio import AsyncClient
from ..client.handle import Client
from .faces import Deadline, Unpicklable, drive, settled
from .holding import AsyncHeld, Held, Holding
from .line import Contender, Line, Place, contender

READ, WRITE = b"r", b"w"


class _Reading(Holding):
    kind = READ
    chained = False

    async def turn(self, place: Place, deadline: Deadline) -> bool:
        return await _turn(self.line, place, self.line.places + WRITE, deadline)

    def left_over(self, place: Place) -> Sequence[bytes]:
        return ()

    async def give_back(self, place: Place) -> None:
        await self.line.leave(place, patience=self.space.timeout)


class _Writing(_Reading):
    kind = WRITE

    async def turn(self, place: Place, deadline: Deadline) -> bool:
        return await _turn(self.line, place, self.line.places, deadline)


async def _turn(line: Line, place: Place, prefix: bytes, deadline: Deadline) -> bool:
    """Wait until no key under the prefix is before this place's. Others may hold it at the same time, so nobody can
    tell from a single key that all before it are gone: the line is read."""
    while not place.free:
        ahead = await line.patiently(place, lambda: line.nearest(place, prefix), deadline)
        if ahead is None:
            return True
        if not await line.wait(place, ahead, deadline):
            return False
    return True


async def _listing(line: Line) -> tuple[list[Contender], list[Contender]]:
    """Who holds it, and who waits, in the order of their places."""
    everybody = list(await settled(line.space.range(prefix=line.places, sort="create_revision")))
    holders = 0
    while holders < len(everybody) and everybody[holders].key.startswith(line.places + READ):
        holders += 1
    holders = holders or min(1, len(everybody))
    return [contender(each) for each in everybody[:holders]], [contender(each) for each in everybody[holders:]]


class RWLock(Unpicklable):
    """A readers-writer lock; see the module."""

    def __init__(self, client: Client, name: str | bytes, ttl: float = 10) -> None:
        self._line = Line(client, "rwlock", name, ttl)

    def read(self) -> Held:
        """A contender for reading, beside other readers."""
        return Held(_Reading(self._line))

    def write(self) -> Held:
        """A contender for writing, alone."""
        return Held(_Writing(self._line))

    def holders(self) -> list[Contender]:
        """Who holds it now: readers, or one writer, or nobody."""
        return drive(_listing(self._line))[0]

    def waiters(self) -> list[Contender]:
        """Who waits for it, in the order of their places."""
        return drive(_listing(self._line))[1]


class AsyncRWLock(Unpicklable):
    """A readers-writer lock for asyncio; see the module."""

    def __init__(self, client: AsyncClient, name: str | bytes, ttl: float = 10) -> None:
        self._line = Line(client, "rwlock", name, ttl)

    def read(self) -> AsyncHeld:
        """A contender for reading, beside other readers."""
        return AsyncHeld(_Reading(self._line))

    def write(self) -> AsyncHeld:
        """A contender for writing, alone."""
        return AsyncHeld(_Writing(self._line))

    async def holders(self) -> list[Contender]:
        """Who holds it now: readers, or one writer, or nobody."""
        return (await _listing(self._line))[0]

    async def waiters(self) -> list[Contender]:
        """Who waits for it, in the order of their places."""
        return (await _listing(self._line))[1]
