"""An exclusive lock, first come, first served.

::

    with client.lock("reports", ttl=10) as lock:
        lock.guard().put("reports/latest", data)      # refused if the lock was lost meanwhile

- *The holder dies*, or drops the lock object: its lease is no longer kept alive, and within the TTL (and a second) the
  next in line holds the lock.
- *The cluster cannot be reached*: ``lost`` is set before the TTL is over, counted from the last keep-alive that was
  confirmed. The cluster gives the lock to the next contender only after that.
- *The holder is paused* (a stopped process, a suspended machine): when it goes on, it may believe for a moment that it
  still holds the lock. No lock service can prevent that; ``token`` and ``guard()`` are for this case. A write through
  the guard never comes from a holder that has been overtaken.
- *A waiter's lease is lost*: ``acquire`` raises ``LeaseLost``, and the waiter has left the line.
- *History is compacted while a contender waits*: it reads the present, and goes on waiting.
- *The lock's key is deleted*: ``lost`` is set.

A waiter costs one watch, and is woken alone. One object is one contender; make one for each thread.
"""

from __future__ import annotations

from typing import Any

from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from .contenders import Contender, Contenders
from .holder import AsyncLockLike, Holder, LockLike
from .sync_async import run_sync


class Lock(LockLike):
    """An exclusive lock, first come, first served; made by ``client.lock``.

    ::

        with client.lock("reports", ttl=10) as lock:
            lock.guard().put("reports/latest", data)  # refused if the lock was lost meanwhile

    One object is one contender; make one for each thread. It does not pickle.
    """

    def __init__(self, client: KeyValueClient, name: str | bytes, ttl: float = 10, bound_to: Any = None) -> None:
        super().__init__(Holder(Contenders(client, "lock", name, ttl, bound_to)))

    def holder(self) -> Contender | None:
        """The contender that holds it now; ``None`` if none does."""
        contenders = self._holder.contenders
        return run_sync(contenders.first())

    def waiters(self) -> list[Contender]:
        """The contenders that wait for it, in the order of their turns."""
        contenders = self._holder.contenders
        return run_sync(contenders.in_order())[1:]


class AsyncLock(AsyncLockLike):
    """As ``Lock``, for asyncio: ``async with client.aio.lock("reports") as lock``."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, ttl: float = 10, bound_to: Any = None) -> None:
        super().__init__(Holder(Contenders(client, "lock", name, ttl, bound_to)))

    async def holder(self) -> Contender | None:
        """The contender that holds it now; ``None`` if none does."""
        contenders = self._holder.contenders
        return await contenders.first()

    async def waiters(self) -> list[Contender]:
        """The contenders that wait for it, in the order of their turns."""
        contenders = self._holder.contenders
        return (await contenders.in_order())[1:]
