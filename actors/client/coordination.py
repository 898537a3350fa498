"""The coordination calls of a handle: ``client.lock("name")`` and the like, each loaded when it is first used.

What they do is said in ``actors/recipes``, one file each; they stand on the other calls of the handle alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ..recipes.barrier import AsyncBarrier, Barrier
    from ..recipes.counter import AsyncCounter, Counter
    from ..recipes.election import AsyncElection, Election
    from ..recipes.latch import AsyncLatch, Latch
    from ..recipes.lock import AsyncLock, Lock
    from ..recipes.partitioner import AsyncPartitioner, Partitioner
    from ..recipes.queue import AsyncQueue, Queue
    from ..recipes.registry import AsyncRegistry, Registry
    from ..recipes.rwlock import AsyncRWLock, RWLock
    from ..recipes.semaphore import AsyncSemaphore, Semaphore
    from .aio import AsyncClient
    from .handle import Client

Name = str | bytes


class Coordination:
    """The coordination calls of a ``Client``; see the module, and ``actors/recipes`` for each."""

    def lock(self, name: Name, ttl: float = 10) -> Lock:
        """An exclusive lock, first come, first served."""
        from ..recipes.lock import Lock

        return Lock(cast("Client", self), name, ttl)

    def rwlock(self, name: Name, ttl: float = 10) -> RWLock:
        """A lock for readers together or one writer alone; no writer starves."""
        from ..recipes.rwlock import RWLock

        return RWLock(cast("Client", self), name, ttl)

    def semaphore(self, name: Name, limit: int, ttl: float = 10) -> Semaphore:
        """At most ``limit`` holders at a time, first come, first served."""
        from ..recipes.semaphore import Semaphore

        return Semaphore(cast("Client", self), name, limit, ttl)

    def election(self, name: Name, ttl: float = 10) -> Election:
        """The election of a leader, and one candidate in it."""
        from ..recipes.election import Election

        return Election(cast("Client", self), name, ttl)

    def barrier(self, name: Name, parties: int, ttl: float = 10) -> Barrier:
        """Nobody goes on before ``parties`` have arrived; reusable."""
        from ..recipes.barrier import Barrier

        return Barrier(cast("Client", self), name, parties, ttl)

    def latch(self, name: Name, count: int) -> Latch:
        """Opens once it was counted down ``count`` times."""
        from ..recipes.latch import Latch

        return Latch(cast("Client", self), name, count)

    def queue(self, name: Name, ttl: float = 10) -> Queue:
        """A queue of work; a dead worker's item comes back."""
        from ..recipes.queue import Queue

        return Queue(cast("Client", self), name, ttl)

    def counter(self, name: Name) -> Counter:
        """A counter that adds exactly once."""
        from ..recipes.counter import Counter

        return Counter(cast("Client", self), name)

    def registry(self, topic: Name) -> Registry:
        """Service registration and discovery."""
        from ..recipes.registry import Registry

        return Registry(cast("Client", self), topic)

    def partitioner(self, name: Name, partitions: int | Sequence[str], ttl: float = 10) -> Partitioner:
        """Splits partitions over whoever has joined."""
        from ..recipes.partitioner import Partitioner

        return Partitioner(cast("Client", self), name, partitions, ttl)


class AsyncCoordination:
    """The coordination calls of an ``AsyncClient``; see the module, and ``actors/recipes`` for each."""

    def lock(self, name: Name, ttl: float = 10) -> AsyncLock:
        """An exclusive lock, first come, first served."""
        from ..recipes.lock import AsyncLock

        return AsyncLock(cast("AsyncClient", self), name, ttl)

    def rwlock(self, name: Name, ttl: float = 10) -> AsyncRWLock:
        """A lock for readers together or one writer alone; no writer starves."""
        from ..recipes.rwlock import AsyncRWLock

        return AsyncRWLock(cast("AsyncClient", self), name, ttl)

    def semaphore(self, name: Name, limit: int, ttl: float = 10) -> AsyncSemaphore:
        """At most ``limit`` holders at a time, first come, first served."""
        from ..recipes.semaphore import AsyncSemaphore

        return AsyncSemaphore(cast("AsyncClient", self), name, limit, ttl)

    def election(self, name: Name, ttl: float = 10) -> AsyncElection:
        """The election of a leader, and one candidate in it."""
        from ..recipes.election import AsyncElection

        return AsyncElection(cast("AsyncClient", self), name, ttl)

    def barrier(self, name: Name, parties: int, ttl: float = 10) -> AsyncBarrier:
        """Nobody goes on before ``parties`` have arrived; reusable."""
        from ..recipes.barrier import AsyncBarrier

        return AsyncBarrier(cast("AsyncClient", self), name, parties, ttl)

    def latch(self, name: Name, count: int) -> AsyncLatch:
        """Opens once it was counted down ``count`` times."""
        from ..recipes.latch import AsyncLatch

        return AsyncLatch(cast("AsyncClient", self), name, count)

    def queue(self, name: Name, ttl: float = 10) -> AsyncQueue:
        """A queue of work; a dead worker's item comes back."""
        from ..recipes.queue import AsyncQueue

        return AsyncQueue(cast("AsyncClient", self), name, ttl)

    def counter(self, name: Name) -> AsyncCounter:
        """A counter that adds exactly once."""
        from ..recipes.counter import AsyncCounter

        return AsyncCounter(cast("AsyncClient", self), name)

    def registry(self, topic: Name) -> AsyncRegistry:
        """Service registration and discovery."""
        from ..recipes.registry import AsyncRegistry

        return AsyncRegistry(cast("AsyncClient", self), topic)

    def partitioner(self, name: Name, partitions: int | Sequence[str], ttl: float = 10) -> AsyncPartitioner:
        """Splits partitions over whoever has joined."""
        from ..recipes.partitioner import AsyncPartitioner

        return AsyncPartitioner(cast("AsyncClient", self), name, partitions, ttl)
