"""An exclusive lock, first come, first served.

::

    with client.lock("reports", ttl=10) as lock:
        lock.guard().put("reports/latest", data)      # refused if the lock was lost meanwhile

*The holder dies*, or forgets the lock: nobody keeps its lease alive, and within the TTL (and a second) the next in line
holds it. *The cluster cannot be reached*: ``lost`` is set before the TTL is over, counted from the last keep-alive that
was confirmed; the cluster gives the lock to somebody else only after that. *The holder is paused* (a stopped process, a
suspended machine): when it goes on it may believe for a moment that it holds the lock, and no lock service can prevent
that; ``token`` and ``guard()`` are for this. What is written through the guard never comes from an overtaken holder.
*A waiter's lease is lost*: ``acquire`` raises ``LeaseLost``, its place is gone. *History is compacted under a waiter*:
it looks at the present and waits on. *Somebody deletes the key*: ``lost`` is set.

A waiter costs one watch and wakes alone. One object is one contender; make one for each thread.
"""

from __future__ import annotations

from ..client.aio import AsyncClient
from ..client.handle import Client
from .faces import drive
from .holding import AsyncHeld, Held, Holding, first
from .line import Contender, Line


class Lock(Held):
    """An exclusive lock; see the module."""

    def __init__(self, client: Client, name: str | bytes, ttl: float = 10) -> None:
        super().__init__(Holding(Line(client, "lock", name, ttl)))

    def holder(self) -> Contender | None:
        """Who holds it now; ``None`` if nobody does."""
        line = self._holding.line
        return drive(first(line))

    def waiters(self) -> list[Contender]:
        """Who waits for it, in the order of their turns."""
        line = self._holding.line
        return drive(line.contenders())[1:]


class AsyncLock(AsyncHeld):
    """An exclusive lock for asyncio; see the module."""

    def __init__(self, client: AsyncClient, name: str | bytes, ttl: float = 10) -> None:
        super().__init__(Holding(Line(client, "lock", name, ttl)))

    async def holder(self) -> Contender | None:
        """Who holds it now; ``None`` if nobody does."""
        line = self._holding.line
        return await first(line)

    async def waiters(self) -> list[Contender]:
        """Who waits for it, in the order of their turns."""
        line = self._holding.line
        return (await line.contenders())[1:]
