"""The systems as a Python program sees them: the same few calls on each, by coroutines and by threads.

Each class stands for one client library, used the way its own documentation shows. What a library does not have is said
in ``notes`` of its system, and bridged in the plainest way: aetcd knows only coroutines, so threads hand theirs to one
event loop; kazoo knows only threads, so coroutines await its callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

FAST_DEATH = "RAY_timeout_ms_task_wait_for_death_info"
"""Set to 0, it has Ray's callers learn of a death in milliseconds."""
NO_LOG_DEDUP = "RAY_DEDUP_LOGS_SKIP_REGEX"
"""Set to a dot, it keeps Ray from telling every driver of each process that died."""
EQUAL_TERMS = "RAY_worker_niceness"
"""Set to 0, it has Ray start actors with the niceness of everything else that is measured, and not with 15."""
Address = dict[str, Any]
"""What a client process is told to find a system by; JSON."""


class Lock(Protocol):
    """A lock of the system's own recipe; each round of it is an ``acquire`` and a ``release``."""

    def acquire(self) -> Awaitable[Any]: ...

    def release(self) -> Awaitable[Any]: ...


class Face(ABC):
    """One connection. ``ops`` are coroutine functions of a key and a value, ``blocking`` the same for threads."""

    ops: dict[str, Callable[[str, bytes], Awaitable[Any]]]
    blocking: dict[str, Callable[[str, bytes], Any]]

    @abstractmethod
    async def open(self, address: Address) -> None:
        """Connect."""

    async def prepare(self, keys: list[str], value: bytes) -> None:
        """Write every key once."""
        put = self.ops["put"]
        for start in range(0, len(keys), 100):
            await asyncio.gather(*[put(key, value) for key in keys[start : start + 100]])

    def watch(self, key: str) -> AsyncGenerator[bytes, None]:
        """The values that a key gets from now on; the watch is in place when the first, empty one comes."""
        raise LookupError(f"{type(self).__name__} has no watches")

    def watch_prefix(self, prefix: str) -> AsyncGenerator[bytes, None]:
        """The same for all keys that begin alike."""
        raise LookupError(f"{type(self).__name__} has no watches of prefixes")

    def watch_deletes(self, prefix: str) -> AsyncGenerator[str, None]:
        """The keys that begin alike and are deleted from now on; first an empty one, as in ``watch``."""
        raise LookupError(f"{type(self).__name__} has no watches of prefixes")

    def lease(self, key: str, ttl: float, keep: bool) -> Awaitable[Any]:
        """A lease with a key, which the library keeps alive, if it is to and does such a thing."""
        raise LookupError(f"{type(self).__name__} has no leases")

    def lock(self, name: str, ttl: float = 10) -> Lock:
        """A contender for a lock, whose holder is taken for dead after this many seconds of silence, where the library
        takes that with the lock."""
        raise LookupError(f"{type(self).__name__} has no locks")

    async def close(self) -> None:  # noqa: B027
        """Disconnect; some have nothing to close."""


class RayKeeper(Face):
    """``raykeeper.connect``: the handle for threads, ``.aio`` for coroutines."""

    async def open(self, address: Address) -> None:
        import raykeeper
        from raykeeper import Compare, Op

        _join_ray(address)
        self.kv = kv = raykeeper.connect(address["name"])
        aio = kv.aio

        def arguments(key: str, value: bytes) -> dict[str, Any]:
            return {"compare": [Compare.version(key) > 0], "success": [Op.put(key, value), Op.put(f"{key}/2", value)]}

        self.ops = {
            "put": aio.put,
            "get": lambda key, value: aio.get(key),
            "stale get": lambda key, value: aio.get(key, serializable=True),
            "txn": lambda key, value: aio.txn(**arguments(key, value)),
        }
        self.blocking = {
            "put": kv.put,
            "get": lambda key, value: kv.get(key),
            "stale get": lambda key, value: kv.get(key, serializable=True),
            "txn": lambda key, value: kv.txn(**arguments(key, value)),
        }

    async def watch(self, key: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._events(key)) as events:
            async for event in events:
                yield event.kv.raw if event else b""

    async def watch_prefix(self, prefix: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._events(prefix=prefix)) as events:
            async for event in events:
                yield event.kv.raw if event else b""

    async def watch_deletes(self, prefix: str) -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(self._events(prefix=prefix, only="delete")) as events:
            async for event in events:
                yield event.kv.key.decode() if event else ""

    async def _events(self, *key: str, **options: Any) -> AsyncGenerator[Any, None]:
        watch = await self.kv.aio.watch(*key, **options)
        try:
            yield None
            async for event in watch:
                yield event
        finally:
            await watch.cancel()

    async def lease(self, key: str, ttl: float, keep: bool) -> Any:
        lease = await self.kv.aio.lease(ttl, keep_alive=keep)
        await self.kv.aio.put(key, b"", lease=lease)
        return lease

    def lock(self, name: str, ttl: float = 10) -> Lock:
        return self.kv.aio.lock(name, ttl)

    async def close(self) -> None:
        import ray

        self.kv.close()
        ray.shutdown()


class Etcd(Face):
    """aetcd as shipped, at one endpoint: the leader's, unless the address names another."""

    async def open(self, address: Address) -> None:
        import aetcd

        self.client = client = aetcd.Client(host=address.get("host", "127.0.0.1"), port=address["ports"][0])
        await client.connect()
        transactions = client.transactions

        def txn(key: str, value: bytes) -> Awaitable[Any]:
            name = key.encode()
            result: Awaitable[Any] = client.transaction(
                compare=[transactions.version(name) > 0],
                success=[transactions.put(name, value), transactions.put(name + b"/2", value)],
                failure=[],
            )
            return result

        self.ops = {
            "put": lambda key, value: client.put(key.encode(), value),
            "get": lambda key, value: client.get(key.encode()),
            "stale get": lambda key, value: client.get(key.encode(), serializable=True),
            "txn": txn,
        }
        loop = asyncio.get_running_loop()

        def bridged(op: Callable[[str, bytes], Awaitable[Any]]) -> Callable[[str, bytes], Any]:
            async def call(key: str, value: bytes) -> Any:
                return await op(key, value)

            return lambda key, value: asyncio.run_coroutine_threadsafe(call(key, value), loop).result()

        self.blocking = {name: bridged(op) for name, op in self.ops.items()}

    async def watch(self, key: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._events(self.client.watch(key.encode()))) as events:
            async for event in events:
                yield event.kv.value if event else b""

    async def watch_prefix(self, prefix: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._events(self.client.watch_prefix(prefix.encode()))) as events:
            async for event in events:
                yield event.kv.value if event else b""

    async def watch_deletes(self, prefix: str) -> AsyncGenerator[str, None]:
        from aetcd.rtypes import EventKind

        opening = self.client.watch_prefix(prefix.encode(), kind=EventKind.DELETE)
        async with contextlib.aclosing(self._events(opening)) as events:
            async for event in events:
                yield event.kv.key.decode() if event else ""

    async def _events(self, opening: Awaitable[Any]) -> AsyncGenerator[Any, None]:
        watch = await opening
        try:
            yield None
            async for event in watch:
                yield event
        finally:
            await watch.cancel()

    async def lease(self, key: str, ttl: float, keep: bool) -> Any:
        lease = await self.client.lease(int(ttl))
        await self.client.put(key.encode(), b"", lease=lease)
        return lease

    def lock(self, name: str, ttl: float = 10) -> Lock:
        lock = self.client.lock(name.encode(), ttl=int(ttl))

        class Patient:
            """aetcd gives up after 10 s unless it is told not to."""

            def acquire(self) -> Awaitable[Any]:
                acquired: Awaitable[Any] = lock.acquire(timeout=None)
                return acquired

            def release(self) -> Awaitable[Any]:
                released: Awaitable[Any] = lock.release()
                return released

            def refresh(self) -> Awaitable[Any]:
                refreshed: Awaitable[Any] = lock.refresh()
                return refreshed

        return Patient()

    async def close(self) -> None:
        await self.client.close()


class ZooKeeper(Face):
    """kazoo, which is made for threads; coroutines await the callbacks of its ``_async`` calls."""

    async def open(self, address: Address) -> None:
        from kazoo.client import KazooClient

        logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # it tells of each connection that a killed leader ends

        hosts = ",".join(f"127.0.0.1:{port}" for port in address["ports"])
        self.client = client = KazooClient(hosts=hosts, timeout=address.get("session", 10.0))
        await asyncio.get_running_loop().run_in_executor(None, client.start)

        def sync_get(key: str, value: bytes) -> Any:
            client.sync(_path(key))
            return client.get(_path(key))

        async def async_sync_get(key: str, value: bytes) -> Any:
            await _awaited(client.sync_async(_path(key)))
            return await _awaited(client.get_async(_path(key)))

        def txn(key: str, value: bytes) -> Any:
            step = client.transaction()
            step.check(_path(key), -1)
            step.set_data(_path(key), value)
            step.set_data(_path(f"{key}-2"), value)
            return step

        self.ops = {
            "put": lambda key, value: _awaited(client.set_async(_path(key), value)),
            "stale get": lambda key, value: _awaited(client.get_async(_path(key))),
            "sync+get": async_sync_get,
            "txn": lambda key, value: _awaited(txn(key, value).commit_async()),
        }
        self.blocking = {
            "put": lambda key, value: client.set(_path(key), value),
            "stale get": lambda key, value: client.get(_path(key)),
            "sync+get": sync_get,
            "txn": lambda key, value: txn(key, value).commit(),
        }

    async def prepare(self, keys: list[str], value: bytes) -> None:
        await asyncio.gather(*[self._create(_path(each), value) for key in keys for each in (key, f"{key}-2")])

    async def _create(self, path: str, value: bytes) -> None:
        from kazoo.exceptions import NodeExistsError

        with contextlib.suppress(NodeExistsError):
            await _awaited(self.client.create_async(path, value))

    async def watch(self, key: str) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        values: asyncio.Queue[bytes] = asyncio.Queue()

        def changed(data: bytes | None, stat: Any) -> None:
            loop.call_soon_threadsafe(values.put_nowait, data or b"")

        def begin() -> None:
            self.client.DataWatch(_path(key))(changed)

        await loop.run_in_executor(None, begin)
        await values.get()  # what is there now
        yield b""
        while True:
            yield await values.get()

    def lock(self, name: str, ttl: float = 10) -> Lock:
        lock = self.client.Lock(_path(name))
        loop = asyncio.get_running_loop()

        class InThread:
            """kazoo's recipe blocks."""

            def acquire(self) -> Awaitable[Any]:
                return loop.run_in_executor(None, lock.acquire)

            def release(self) -> Awaitable[Any]:
                return loop.run_in_executor(None, lock.release)

        return InThread()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.client.stop)
        await asyncio.get_running_loop().run_in_executor(None, self.client.close)


class RayActor(Face):
    """A named Ray actor; for coroutines its references are awaited, as Ray's documentation shows."""

    async def open(self, address: Address) -> None:
        import ray

        _join_ray(address)
        self.actor = actor = ray.get_actor(address["actor"])

        async def put(key: str, value: bytes) -> Any:
            return await actor.put.remote(key, value)

        async def get(key: str, value: bytes) -> Any:
            return await actor.get.remote(key)

        self.ops = {"put": put, "get": get}
        self.blocking = {
            "put": lambda key, value: ray.get(actor.put.remote(key, value)),
            "get": lambda key, value: ray.get(actor.get.remote(key)),
        }

    async def close(self) -> None:
        import ray

        ray.shutdown()


def _join_ray(address: Address) -> None:
    import ray

    ray.init(address=address["ray"], namespace="bench", log_to_driver=False, logging_level=logging.ERROR)


def _path(key: str) -> str:
    return "/" + key.replace("/", "-")


def _awaited(result: Any) -> Awaitable[Any]:
    """A future of this loop for an ``IAsyncResult`` of kazoo."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver() -> None:
        if not future.done():
            if result.exception is not None:
                future.set_exception(result.exception)
            else:
                future.set_result(result.value)

    def done(_: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver)

    result.rawlink(done)
    return future


FACES: dict[str, type[Face]] = {"raykeeper": RayKeeper, "etcd": Etcd, "zookeeper": ZooKeeper, "actor": RayActor}


def start_loop() -> asyncio.AbstractEventLoop:
    """An event loop on a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()
    return loop
