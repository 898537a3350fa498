"""A lock for many readers or one writer, first come, first served.

::

    lock = client.rwlock("table")
    with lock.read():
        ...
    with lock.write() as writing:
        writing.guard().put("table/row", data)

A reader waits for the nearest writer before it, a writer for all contenders before it. So readers that keep coming do
not starve a writer, nor writers a reader. A writer waits for one key at a time, the last before its own. All readers
between two writers get their turn together, when the first writer leaves.

*A holder dies, is paused or cut off, a lease is lost, history is compacted*: as for ``lock``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from .contenders import Contender, Contenders, Ticket
from .holder import AsyncLockLike, Holder, LockLike
from .sync_async import TimeLimit, Unpicklable, resolved, run_sync

READ, WRITE = b"r", b"w"


class _Reading(Holder):
    kind = READ
    chained = False

    async def wait_turn(self, ticket: Ticket, deadline: TimeLimit) -> bool:
        return await _wait_turn(self.contenders, ticket, self.contenders.ticket_prefix + WRITE, deadline)

    def shared_keys(self, ticket: Ticket) -> Sequence[bytes]:
        return ()

    async def give_back(self, ticket: Ticket) -> None:
        await self.contenders.leave(ticket, max_wait=self.space.timeout)


class _Writing(_Reading):
    kind = WRITE

    async def wait_turn(self, ticket: Ticket, deadline: TimeLimit) -> bool:
        return await _wait_turn(self.contenders, ticket, self.contenders.ticket_prefix, deadline)


async def _wait_turn(contenders: Contenders, ticket: Ticket, prefix: bytes, deadline: TimeLimit) -> bool:
    """Wait until no key under the prefix is before this ticket's; ``False`` when the time is over.

    Several contenders may hold the lock at the same time, so that one key is gone does not tell that all before it are:
    the line is read.
    """
    while not ticket.uncontended:
        ahead = await contenders.retry_read(ticket, lambda: contenders.nearest(ticket, prefix), deadline)
        if ahead is None:
            return True
        if not await contenders.wait_for(ticket, ahead, deadline):
            return False
    return True


async def _listing(contenders: Contenders) -> tuple[list[Contender], list[Contender]]:
    """The contenders that hold the lock, and those that wait, each in the order of the line."""
    line = list(await resolved(contenders.space.range(prefix=contenders.ticket_prefix, sort="create_revision")))
    holders = 0
    while holders < len(line) and line[holders].key.startswith(contenders.ticket_prefix + READ):
        holders += 1
    holders = holders or min(1, len(line))
    described = await contenders.described(line)
    return described[:holders], described[holders:]


class RWLock(Unpicklable):
    """A readers-writer lock, first come, first served; made by ``client.rwlock``.

    ::

        with client.rwlock("table").write() as writing:
            writing.guard().put("table/row", data)
    """

    def __init__(self, client: KeyValueClient, name: str | bytes, ttl: float = 10, bound_to: Any = None) -> None:
        self._contenders = Contenders(client, "rwlock", name, ttl, bound_to)

    def read(self) -> LockLike:
        """A contender that reads, together with other readers; make one for each thread."""
        return LockLike(_Reading(self._contenders))

    def write(self) -> LockLike:
        """A contender that writes, alone; make one for each thread."""
        return LockLike(_Writing(self._contenders))

    def holders(self) -> list[Contender]:
        """The contenders that hold it now: readers, one writer, or none."""
        return run_sync(_listing(self._contenders))[0]

    def waiters(self) -> list[Contender]:
        """The contenders that wait for it, in the order of the line."""
        return run_sync(_listing(self._contenders))[1]


class AsyncRWLock(Unpicklable):
    """As ``RWLock``, for asyncio: ``async with client.aio.rwlock("table").read()``."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, ttl: float = 10, bound_to: Any = None) -> None:
        self._contenders = Contenders(client, "rwlock", name, ttl, bound_to)

    def read(self) -> AsyncLockLike:
        """A contender that reads, together with other readers; make one for each thread."""
        return AsyncLockLike(_Reading(self._contenders))

    def write(self) -> AsyncLockLike:
        """A contender that writes, alone; make one for each thread."""
        return AsyncLockLike(_Writing(self._contenders))

    async def holders(self) -> list[Contender]:
        """The contenders that hold it now: readers, one writer, or none."""
        return (await _listing(self._contenders))[0]

    async def waiters(self) -> list[Contender]:
        """The contenders that wait for it, in the order of the line."""
        return (await _listing(self._contenders))[1]
