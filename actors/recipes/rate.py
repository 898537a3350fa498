"""A rate limiter: a token bucket over the whole cluster, whose shares are leased to the processes that use it.

::

    calls = client.rate("openai", per_second=50, burst=100)
    calls.acquire()                    # waits for its turn; mostly microseconds
    if calls.try_acquire(5): ...

A process that asks for a token joins, and gets a share of the rate and of the burst: as much as each of the others.
From then on it takes tokens from a bucket of its own (``token_bucket.py``), which costs no request. When a process
joins or leaves, the others divide it again: one that has too much lowers its own bucket first, and then says so in the
shared state (``rate_shares.py``); one that has too little takes what is free there, and only then raises its bucket. So
at no time do the buckets of all processes have more than the rate, or hold more than the burst.

- *A process dies*: its share is free when its lease ends. It stops giving tokens before: as soon as its lease is lost.
- *The cluster cannot be reached*: each process goes on with its share until its lease is lost, and then waits.
- *A process can no longer follow what the others do*: it gives its share up.
- *A process has not asked for a while*: it leaves, and gives back its share and its tokens.

The clocks that count are the processes' own, as intervals: that none runs faster than real time. No two need to agree.
"""

from __future__ import annotations

import asyncio
import weakref
from types import TracebackType

from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from .rate_holder import RateHolder
from .sync_async import Unpicklable, run_sync


class _RateBase(Unpicklable):
    """What needs no waiting."""

    def __init__(self, logic: RateHolder) -> None:
        self._logic = logic
        logic.owner = weakref.ref(self)

    @property
    def name(self) -> str | bytes:
        """The name it was made with."""
        return self._logic.name

    @property
    def share(self) -> float:
        """The tokens a second that this process has now; 0 before its first ``acquire``."""
        return self._logic.bucket.per_second

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.share:g} per second here>"


class Rate(_RateBase):
    """A rate limiter over the cluster; made by ``client.rate``.

    ::

        calls = client.rate("openai", per_second=50, burst=100)
        calls.acquire()

    Threads of a process share one object; each object is a holder with a share of its own. It does not pickle.
    """

    def __init__(
        self, client: KeyValueClient, name: str | bytes, per_second: float, burst: int, ttl: float = 10
    ) -> None:
        super().__init__(RateHolder(client, name, per_second, burst, ttl))

    def acquire(self, n: int = 1, timeout: float | None = None) -> bool:
        """Take tokens; wait until they are there, in the order of arrival in this process.

        Args:
            n: how many, at most the burst.
            timeout: seconds; ``None`` waits forever, 0 does not wait.

        Returns:
            Whether they were taken: all of them, or none.

        Raises:
            InvalidArgument: ``n`` is more than the burst, or the name is in use with another rate or burst.
            Unavailable, RequestTimeout: the cluster cannot be reached for the first share, or ``MAX_RATE_HOLDERS``
                processes use the name. Once this object has had a share, it waits for the next one instead.
            ReentrantCall: it was called by a signal handler or a destructor, and would wait for its own thread.
        """
        number = self._logic.number(n)
        return self._logic.bucket.try_take(number) or run_sync(self._logic.acquire(number, timeout), self._logic.gate)

    def try_acquire(self, n: int = 1) -> bool:
        """Take tokens if they are there now: as ``acquire`` with timeout 0. To join, or to join again, takes as long as
        the handle's timeout at most."""
        return self.acquire(n, 0)

    def close(self) -> None:
        """Give back the share and its tokens; the next ``acquire`` gets a share again.

        If the cluster cannot be reached, the tokens are gone, and the others get the share when the lease ends.

        Raises:
            ReentrantCall: a signal handler or a destructor called it in the middle of this object's work; nothing was
                given back.
        """
        run_sync(self._logic.close(), self._logic.gate)

    def __enter__(self) -> Rate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncRate(_RateBase):
    """As ``Rate``, for asyncio."""

    def __init__(
        self, client: AsyncKeyValueClient, name: str | bytes, per_second: float, burst: int, ttl: float = 10
    ) -> None:
        super().__init__(RateHolder(client, name, per_second, burst, ttl))

    async def acquire(self, n: int = 1, timeout: float | None = None) -> bool:
        """See ``Rate.acquire``."""
        logic, number = self._logic, self._logic.number(n)
        if logic.loop is asyncio.get_running_loop() and logic.bucket.try_take(number):
            return True
        return await logic.acquire(number, timeout)

    async def try_acquire(self, n: int = 1) -> bool:
        """See ``Rate.try_acquire``."""
        return await self.acquire(n, 0)

    async def close(self) -> None:
        """See ``Rate.close``."""
        await self._logic.close()

    async def __aenter__(self) -> AsyncRate:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._logic.close()
