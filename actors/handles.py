"""``Client`` and ``AsyncClient``: the key-value handles together with the coordination calls.

Each coordination call is a recipe in ``actors/recipes``, one file each, which says what happens when a process dies or
is cut off. Recipes use nothing but the handle's other calls; each is loaded when it is first used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..limits import IN_USE_NAMES
from .client import aio as kv_async
from .client import handle as kv

if TYPE_CHECKING:
    from .client.aio_users import AsyncUsers
    from .client.results import End, Event
    from .client.users import Users
    from .recipes.atomically import AsyncTransaction, Transaction
    from .recipes.barrier import AsyncBarrier, Barrier
    from .recipes.callbacks import AsyncCallback, Callback, ConnectionState, Resync
    from .recipes.counter import AsyncCounter, Counter
    from .recipes.election import AsyncElection, Election
    from .recipes.in_use import InUse, RecipeKind
    from .recipes.latch import AsyncLatch, Latch
    from .recipes.lock import AsyncLock, Lock
    from .recipes.partitioner import AsyncPartitioner, Partitioner
    from .recipes.queue import AsyncQueue, Queue
    from .recipes.rate import AsyncRate, Rate
    from .recipes.registry import AsyncRegistry, Registry
    from .recipes.rwlock import AsyncRWLock, RWLock
    from .recipes.semaphore import AsyncSemaphore, Semaphore

Name = str | bytes
T = TypeVar("T")


class Coordination:
    """The coordination calls of a ``Client``."""

    def lock(self, name: Name, ttl: float = 10, *, bound_to: Any = None) -> Lock:
        """An exclusive lock, first come, first served.

        ::

            with client.lock("reports") as lock:
                lock.guard().put("reports/latest", data)  # refused if the lock was lost meanwhile

        Args:
            name: the lock's name, ``str`` or ``bytes``, within the handle's namespace.
            ttl: seconds after which a dead holder, or one that is cut off, loses it.
            bound_to: whose death frees it before that: ``"process"`` (the default), ``"ttl"`` (nobody's), the handle of
                an actor, ``"job"`` or ``"driver"``, as for :meth:`lease`.

        Raises:
            InvalidArgument: the name or the TTL is not valid.
        """
        from .recipes.lock import Lock

        return Lock(cast("Client", self), name, ttl, bound_to)

    def rwlock(self, name: Name, ttl: float = 10, *, bound_to: Any = None) -> RWLock:
        """A lock for many readers or one writer, first come, first served, so that neither starves.

        ::

            with client.rwlock("table").read():
                ...

        Args:
            name: the lock's name, ``str`` or ``bytes``, within the handle's namespace.
            ttl: seconds after which a dead holder, or one that is cut off, loses it.
            bound_to: whose death frees it before that: ``"process"`` (the default), ``"ttl"`` (nobody's), the handle of
                an actor, ``"job"`` or ``"driver"``, as for :meth:`lease`.

        Raises:
            InvalidArgument: the name or the TTL is not valid.
        """
        from .recipes.rwlock import RWLock

        return RWLock(cast("Client", self), name, ttl, bound_to)

    def semaphore(self, name: Name, limit: int, ttl: float = 10, weight: int = 1, *, bound_to: Any = None) -> Semaphore:
        """A semaphore: at most ``limit`` slots are held at a time, first come, first served.

        ::

            with client.semaphore("downloads", limit=4) as slot:
                ...
            with client.semaphore("gpus", limit=8, weight=3):    # takes three of them
                ...

        Args:
            name: the semaphore's name, ``str`` or ``bytes``, within the handle's namespace.
            limit: how many slots there are, at least 1; all that use the name must give the same.
            ttl: seconds after which a dead holder, or one that is cut off, loses its slots.
            weight: how many slots it takes at once, unless ``acquire`` says otherwise.
            bound_to: whose death frees it before that: ``"process"`` (the default), ``"ttl"`` (nobody's), the handle of
                an actor, ``"job"`` or ``"driver"``, as for :meth:`lease`.

        Raises:
            InvalidArgument: an argument is not valid.
        """
        from .recipes.semaphore import Semaphore

        return Semaphore(cast("Client", self), name, limit, ttl, weight, bound_to)

    def election(self, name: Name, ttl: float = 10, *, bound_to: Any = None) -> Election:
        """The election of a leader, and one candidate in it.

        ::

            election = client.election("trainer")
            if election.campaign("host-1:5000"):          # waits until this candidate leads
                election.guard().put("checkpoint", data)  # refused once another candidate leads

        Args:
            name: the election's name, ``str`` or ``bytes``, within the handle's namespace.
            ttl: seconds after which a dead leader, or one that is cut off, no longer leads.
            bound_to: whose death frees it before that: ``"process"`` (the default), ``"ttl"`` (nobody's), the handle of
                an actor, ``"job"`` or ``"driver"``, as for :meth:`lease`.

        Raises:
            InvalidArgument: the name or the TTL is not valid.
        """
        from .recipes.election import Election

        return Election(cast("Client", self), name, ttl, bound_to)

    def barrier(self, name: Name, parties: int, ttl: float = 10) -> Barrier:
        """A barrier: no party goes on before ``parties`` have arrived. It can be used again and again.

        ::

            client.barrier("epoch", parties=8).wait()

        Args:
            name: the barrier's name, ``str`` or ``bytes``, within the handle's namespace.
            parties: how many must arrive, at least 1; all that use the name must give the same.
            ttl: seconds after which a dead party no longer counts.

        Raises:
            InvalidArgument: an argument is not valid.
        """
        from .recipes.barrier import Barrier

        return Barrier(cast("Client", self), name, parties, ttl)

    def latch(self, name: Name, count: int) -> Latch:
        """A latch, which opens once it was counted down ``count`` times, and stays open.

        ::

            latch = client.latch("shards-loaded", count=8)
            latch.count_down()          # eight times, by any process
            latch.wait()

        Args:
            name: the latch's name, ``str`` or ``bytes``, within the handle's namespace.
            count: at least 1; all that use the name must give the same.

        Raises:
            InvalidArgument: an argument is not valid.
        """
        from .recipes.latch import Latch

        return Latch(cast("Client", self), name, count)

    def queue(self, name: Name, ttl: float = 10) -> Queue:
        """A work queue, whose items come back if their worker dies.

        ::

            queue = client.queue("shards")
            queue.put("shard-17")
            with queue.claim() as claim:    # waits for an item; acknowledged at the end
                work(claim.item)

        Args:
            name: the queue's name, ``str`` or ``bytes``, within the handle's namespace.
            ttl: seconds after which the claim of a dead worker, or of one that is cut off, ends.

        Raises:
            InvalidArgument: the name or the TTL is not valid.
        """
        from .recipes.queue import Queue

        return Queue(cast("Client", self), name, ttl)

    def in_use(self, kind: RecipeKind, *, limit: int = IN_USE_NAMES) -> list[InUse]:
        """What is in use of one kind, within the handle's namespace: who holds, who waits, and what is stuck.

        ::

            for lock in client.in_use("lock"):
                print(lock.name, [each.owner for each in lock.holders], len(lock.waiters), lock.stuck)

        While users are needed it is for the role root, because it looks at all names.

        Args:
            kind: ``"lock"``, ``"rwlock"``, ``"semaphore"``, ``"election"``, ``"queue"``, ``"barrier"`` or
                ``"registry"``.
            limit: how many names to look at, in order.

        Raises:
            InvalidArgument: there is no such kind.
        """
        from .recipes.in_use import Survey
        from .recipes.sync_async import run_sync

        return run_sync(Survey(cast("Client", self), kind, limit).look())

    def counter(self, name: Name) -> Counter:
        """A counter that many processes add to; each addition counts exactly once.

        ::

            client.counter("rows").add(250)     # the value after this addition

        Args:
            name: the counter's name, ``str`` or ``bytes``, within the handle's namespace.

        Raises:
            InvalidArgument: the name is not valid.
        """
        from .recipes.counter import Counter

        return Counter(cast("Client", self), name)

    def registry(self, topic: Name) -> Registry:
        """A directory of services, for registration and discovery.

        ::

            registry = client.registry("search")
            with registry.register("ranker", "10.0.0.7:5000"):
                serve()
            registry.lookup("ranker")

        Args:
            topic: the directory's name, ``str`` or ``bytes``, within the handle's namespace.

        Raises:
            InvalidArgument: the topic is not valid.
        """
        from .recipes.registry import Registry

        return Registry(cast("Client", self), topic)

    def atomically(
        self,
        function: Callable[[Transaction], T],
        *,
        retries: int | None = None,
        request_id: Name | None = None,
        timeout: float | None = None,
    ) -> T | None:
        """Run a function whose reads and writes are one step: it writes only if nothing that it has read was changed
        meanwhile; otherwise it runs again (etcd: STM).

        ::

            def take(t):
                free = int(t.get("free").text)
                if free:
                    t.put("free", str(free - 1))
                return free > 0

            client.atomically(take)

        All reads of a run are of one revision. The function may run many times, so it must have no effects of its own;
        if it raises, nothing is written. It ends with the call: nothing can be read or written through ``t`` later.

        Args:
            function: takes a ``Transaction`` with ``get``, ``range``, ``put`` and ``delete``.
            retries: how often to run it again, at most; ``None`` is as often as the time allows.
            request_id: a name for this call, for tasks that Ray may run again: calls of one name write once, within the
                cluster's ``request_ttl``, whatever they would write.
            timeout: seconds for everything, all runs included; ``None`` is the handle's default.

        Returns:
            What the run returned that has written; ``None`` if an earlier call of the same name has written. Of two
            calls of one name at the same moment one writes, and each returns what its own run has returned.

        Raises:
            TransactionConflict: others were faster each time; nothing was written.
            RequestTooLarge: it reads and writes more than one transaction can compare.
        """
        from .recipes.atomically import run_atomically

        return run_atomically(cast("Client", self), function, retries, request_id, timeout)

    def rate(self, name: Name, per_second: float, burst: int, ttl: float = 10) -> Rate:
        """A rate limiter over the whole cluster: a token bucket, whose shares are leased to the processes that use it.

        ::

            calls = client.rate("openai", per_second=50, burst=100)
            calls.acquire()         # microseconds, or waits for its turn

        In any *t* seconds all processes together take at most ``burst + per_second * t`` tokens (or, where there are
        more of them than ``burst``, or they take several at once, as much as each takes at once, plus the rate).

        Args:
            name: the rate's name, ``str`` or ``bytes``, within the handle's namespace.
            per_second: tokens a second; all that use the name must give the same.
            burst: how many may be taken at once, at least 1; all that use the name must give the same.
            ttl: seconds after which the share of a dead process, or of one that is cut off, is free.

        Raises:
            InvalidArgument: an argument is not valid.
        """
        from .recipes.rate import Rate

        return Rate(cast("Client", self), name, per_second, burst, ttl)

    def on_change(
        self,
        key: Name | None = None,
        end: Name | End | None = None,
        *,
        prefix: Name | None = None,
        call: Callable[[Resync | Event], object],
    ) -> Callback:
        """Have a function called with every change of a key, a range or a prefix, in order.

        ::

            def changed(change):
                if change.type == "resync":
                    workers.clear()
                    workers.update((item.key, item.value) for item in change.items)
                elif change.type == "put":
                    workers[change.kv.key] = change.kv.value
                else:
                    workers.pop(change.kv.key, None)

            client.on_change(prefix="workers/", call=changed)

        It is called first with a ``Resync``, which tells what is there, and then with each ``Event``, one after the
        other, on a thread of its own. While it is slow, changes wait in the cluster's history; if that is compacted
        meanwhile, it is called with a ``Resync`` again, and what was between is not told. What it raises is logged.

        Args:
            key, end, prefix: which keys, as for ``range``.
            call: the function. With asyncio it may be a coroutine.

        Returns:
            What has ``cancel()``. It need not be kept: the function is called until the handle is closed.

        Raises:
            InvalidArgument: an argument is not valid.
            Unavailable: also if too many functions are registered in this process.
        """
        from .recipes.callbacks import change_caller, register

        handle = cast("Client", self)
        return register(handle, change_caller(handle, key, end, prefix, call))

    def on_connection(self, call: Callable[[ConnectionState], object]) -> Callback:
        """Have a function called with the state of the connection, at first and whenever it changes.

        ::

            client.on_connection(lambda state: print(state))

        - ``"connected"``: the cluster answers.
        - ``"suspended"``: it does not; calls wait and are retried, and leases are still kept as far as is known.
        - ``"lost"``: so for the TTL of this process's session, or the session has ended: what it held may be gone.

        The cluster is asked every second. The function is called on a thread of its own; what it raises is logged.

        Args:
            call: the function. With asyncio it may be a coroutine.

        Returns:
            What has ``cancel()``, as for ``on_change``.

        Raises:
            InvalidArgument: it is not a function.
            Unavailable: too many functions are registered in this process.
        """
        from .recipes.callbacks import connection_caller, register

        handle = cast("Client", self)
        return register(handle, connection_caller(handle, call))

    def partitioner(self, name: Name, partitions: int | Sequence[str], ttl: float = 10) -> Partitioner:
        """Divides partitions evenly among the members that have joined.

        ::

            with client.partitioner("logs", partitions=64) as share:
                for partition, token in share.mine():
                    share.guard(partition).put(f"offset/{partition}", "...")

        Args:
            name: the partitioner's name, ``str`` or ``bytes``, within the handle's namespace.
            partitions: their number, or a list of different names; all that use the name must give the same.
            ttl: seconds after which the partitions of a dead member, or of one that is cut off, are free.

        Raises:
            InvalidArgument: an argument is not valid.
        """
        from .recipes.partitioner import Partitioner

        return Partitioner(cast("Client", self), name, partitions, ttl)


class AsyncCoordination:
    """The coordination calls of an ``AsyncClient``."""

    def lock(self, name: Name, ttl: float = 10, *, bound_to: Any = None) -> AsyncLock:
        """An exclusive lock, first come, first served: see ``Client.lock``."""
        from .recipes.lock import AsyncLock

        return AsyncLock(cast("AsyncClient", self), name, ttl, bound_to)

    def rwlock(self, name: Name, ttl: float = 10, *, bound_to: Any = None) -> AsyncRWLock:
        """A lock for many readers or one writer, first come, first served: see ``Client.rwlock``."""
        from .recipes.rwlock import AsyncRWLock

        return AsyncRWLock(cast("AsyncClient", self), name, ttl, bound_to)

    def semaphore(
        self, name: Name, limit: int, ttl: float = 10, weight: int = 1, *, bound_to: Any = None
    ) -> AsyncSemaphore:
        """A semaphore: at most ``limit`` holders at a time, first come, first served: see ``Client.semaphore``."""
        from .recipes.semaphore import AsyncSemaphore

        return AsyncSemaphore(cast("AsyncClient", self), name, limit, ttl, weight, bound_to)

    def election(self, name: Name, ttl: float = 10, *, bound_to: Any = None) -> AsyncElection:
        """The election of a leader, and one candidate in it: see ``Client.election``."""
        from .recipes.election import AsyncElection

        return AsyncElection(cast("AsyncClient", self), name, ttl, bound_to)

    def barrier(self, name: Name, parties: int, ttl: float = 10) -> AsyncBarrier:
        """A barrier: no party goes on before ``parties`` have arrived: see ``Client.barrier``."""
        from .recipes.barrier import AsyncBarrier

        return AsyncBarrier(cast("AsyncClient", self), name, parties, ttl)

    def latch(self, name: Name, count: int) -> AsyncLatch:
        """A latch, which opens once it was counted down ``count`` times, and stays open: see ``Client.latch``."""
        from .recipes.latch import AsyncLatch

        return AsyncLatch(cast("AsyncClient", self), name, count)

    def queue(self, name: Name, ttl: float = 10) -> AsyncQueue:
        """A work queue, whose items come back if their worker dies: see ``Client.queue``."""
        from .recipes.queue import AsyncQueue

        return AsyncQueue(cast("AsyncClient", self), name, ttl)

    async def in_use(self, kind: RecipeKind, *, limit: int = IN_USE_NAMES) -> list[InUse]:
        """What is in use of one kind, within the handle's namespace: see ``Client.in_use``."""
        from .recipes.in_use import Survey

        return await Survey(cast("AsyncClient", self), kind, limit).look()

    def counter(self, name: Name) -> AsyncCounter:
        """A counter that many processes add to; each addition counts exactly once: see ``Client.counter``."""
        from .recipes.counter import AsyncCounter

        return AsyncCounter(cast("AsyncClient", self), name)

    def registry(self, topic: Name) -> AsyncRegistry:
        """A directory of services, for registration and discovery: see ``Client.registry``."""
        from .recipes.registry import AsyncRegistry

        return AsyncRegistry(cast("AsyncClient", self), topic)

    async def atomically(
        self,
        function: Callable[[AsyncTransaction], Awaitable[T] | T],
        *,
        retries: int | None = None,
        request_id: Name | None = None,
        timeout: float | None = None,
    ) -> T | None:
        """Run a function whose reads and writes are one step: see ``Client.atomically``.

        The function is a coroutine: ``await t.get(...)`` and ``await t.range(...)``, but ``t.put(...)`` and
        ``t.delete(...)``, which only note what is to be written.
        """
        from .recipes.atomically import run_atomically_async

        return await run_atomically_async(cast("AsyncClient", self), function, retries, request_id, timeout)

    def rate(self, name: Name, per_second: float, burst: int, ttl: float = 10) -> AsyncRate:
        """A rate limiter over the whole cluster: see ``Client.rate``."""
        from .recipes.rate import AsyncRate

        return AsyncRate(cast("AsyncClient", self), name, per_second, burst, ttl)

    async def on_change(
        self,
        key: Name | None = None,
        end: Name | End | None = None,
        *,
        prefix: Name | None = None,
        call: Callable[[Resync | Event], object],
    ) -> AsyncCallback:
        """Have a function or coroutine called with every change of keys, in a task: see ``Client.on_change``."""
        from .recipes.callbacks import change_caller, register_async

        handle = cast("AsyncClient", self)
        return await register_async(handle, change_caller(handle, key, end, prefix, call))

    async def on_connection(self, call: Callable[[ConnectionState], object]) -> AsyncCallback:
        """Have a function or coroutine called with the state of the connection: see ``Client.on_connection``."""
        from .recipes.callbacks import connection_caller, register_async

        handle = cast("AsyncClient", self)
        return await register_async(handle, connection_caller(handle, call))

    def partitioner(self, name: Name, partitions: int | Sequence[str], ttl: float = 10) -> AsyncPartitioner:
        """Divides partitions evenly among the members that have joined: see ``Client.partitioner``."""
        from .recipes.partitioner import AsyncPartitioner

        return AsyncPartitioner(cast("AsyncClient", self), name, partitions, ttl)


class Client(Coordination, kv.KeyValueClient):
    """A handle on a cluster whose calls block: keys, leases, watches, local copies, and coordination.

    Made by ``raykeeper.connect``. It may be shared by threads, and pickles into Ray tasks and actors.
    """

    @property
    def users(self) -> Users:
        """The cluster's users, roles and permissions."""
        from .client.users import Users

        return Users(self)

    @property
    def aio(self) -> AsyncClient:
        """The same handle for asyncio: ``await client.aio.put("key", "value")``; closed together with this one."""
        return cast("AsyncClient", super().aio)


class AsyncClient(AsyncCoordination, kv_async.AsyncKeyValueClient):
    """A handle on a cluster whose calls are coroutines; made by ``Client.aio``."""

    @property
    def users(self) -> AsyncUsers:
        """The cluster's users, roles and permissions."""
        from .client.aio_users import AsyncUsers

        return AsyncUsers(self)


Client._async_kind = AsyncClient
