"""The proxy's services over one real member in this process, called with bytes and without a network."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any, TypeVar

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from raykeeper.actors.proxy.etcd_backend import EtcdBackend
from raykeeper.actors.proxy.etcd_services import EtcdServices
from raykeeper.actors.proxy.rpc_methods import UnaryCall
from raykeeper.actors.proxy.rpc_status import RpcError
from raykeeper.limits import Timings
from raykeeper.store.engine.interface import Disk

T = TypeVar("T")


class Caller:
    """The context of a unary call."""

    def __init__(self, timeout: float = math.inf, metadata: dict[str, str] | None = None) -> None:
        self._left = timeout
        self.client = "the lab"
        self.metadata = metadata or {}

    def time_left(self) -> float:
        return self._left


class LabUnaryCall(UnaryCall):
    """A call that a function may take that is not a coroutine."""

    def __init__(self, path: str, timeout: float, metadata: dict[str, str] | None) -> None:
        super().__init__(path, metadata or {}, time.monotonic() + timeout)
        self.answered: Future[bytes] = Future()

    def answer(self, message: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result(message)

    def fail(self, error: RpcError) -> None:
        self.fail_by(error)

    def soon(self, work: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(work)

    def fail_by(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


class LabStream(Caller):
    """The service's end of a stream."""

    def __init__(self, proxy: LabProxy, path: str, metadata: dict[str, str] | None = None) -> None:
        super().__init__(metadata=metadata)
        self._loop = proxy.loop
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._arrived: queue.Queue[bytes | tuple[int, str] | None] = queue.Queue()
        self.gate = asyncio.Event()
        """Cleared, the client takes nothing."""
        self.gate.set()
        self.room: asyncio.Semaphore | None = None
        """How many messages more the client takes; ``None`` for any number."""
        self._served = asyncio.run_coroutine_threadsafe(self._serve(proxy.services.streaming[path]), self._loop)

    async def _serve(self, service: Any) -> None:
        try:
            await service(self)
            self._arrived.put(None)
        except RpcError as error:
            self._arrived.put((int(error.code), error.text))

    async def receive(self) -> bytes | None:
        return await self._requests.get()

    async def send(self, message: bytes) -> None:
        await self.gate.wait()
        if self.room is not None:
            await self.room.acquire()
        self._arrived.put(message)


class LabClientStream:
    """The client's end of a :class:`LabStream`."""

    def __init__(self, proxy: LabProxy, path: str, metadata: dict[str, str] | None = None) -> None:
        self.inner = LabStream(proxy, path, metadata)
        self._loop = proxy.loop

    def send(self, message: bytes) -> None:
        self._loop.call_soon_threadsafe(self.inner._requests.put_nowait, message)

    def finish(self) -> None:
        self._loop.call_soon_threadsafe(self.inner._requests.put_nowait, None)

    def receive(self, timeout: float = PATIENCE) -> bytes | tuple[int, str] | None:
        return self.inner._arrived.get(timeout=timeout)

    def close(self) -> None:
        """End the call, and wait until its service has ended."""
        self.inner._served.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(PATIENCE)


class LabOperations:
    """Stands for what starts and stops members: notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def add_member(self, learner: bool) -> int:
        self.asked.append(("add", learner))
        return 2

    async def remove_member(self, member: int, leave: Coroutine[Any, Any, object]) -> None:
        await leave
        self.asked.append(("remove", member))

    async def move_leader(self, member: int) -> None:
        self.asked.append(("move", member))


class LabProxy:
    """A proxy's services, on an event loop of their own."""

    def __init__(self, member: OneMember) -> None:
        self.member = member
        self.loop = asyncio.new_event_loop()
        self._called: set[Future[bytes]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.kv = member.client()
        self.backend = EtcdBackend(self.kv.aio, 1, member.loop.handler.own_token)
        self.run(self.backend.open(PATIENCE))
        self.backend.hub.timings = Timings()  # etcd's election timeout, by which the least TTL of a lease goes
        self.operations = LabOperations()
        self.url = ""
        """Of its port, if it has one."""
        self.services = EtcdServices(self.backend, self.operations, self._urls)

    async def _urls(self, linearizable: bool) -> dict[int, list[str]]:
        return {1: [self.url or "http://127.0.0.1:2380"]}

    def run(self, work: Coroutine[Any, Any, T], timeout: float = PATIENCE) -> T:
        """The result of a coroutine on the proxy's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def call(
        self, path: str, request: bytes, timeout: float = math.inf, metadata: dict[str, str] | None = None
    ) -> bytes | tuple[int, str]:
        """The answer of a unary method, or code and text of its error."""
        called = asyncio.run_coroutine_threadsafe(self._unary(path, request, timeout, metadata), self.loop)
        self._called.add(called)
        try:
            return called.result(PATIENCE)
        except RpcError as error:
            return int(error.code), error.text
        except CancelledError:
            return 1, "context canceled"
        finally:
            self._called.discard(called)

    async def _unary(self, path: str, request: bytes, timeout: float, metadata: dict[str, str] | None) -> bytes:
        """As a port has it answered: without a coroutine, if that is possible."""
        direct = self.services.direct.get(path)
        if direct is not None:
            call = LabUnaryCall(path, timeout, metadata)
            if direct(request, call):
                return await asyncio.wrap_future(call.answered)
        return await self.services.unary[path](request, Caller(timeout, metadata))

    def cancel_all(self) -> None:
        """As if the clients of all calls had gone."""
        for called in list(self._called):
            called.cancel()

    def stream(self, path: str, metadata: dict[str, str] | None = None) -> LabClientStream:
        """A call in which either side may send many messages."""
        return LabClientStream(self, path, metadata)

    def close(self) -> None:
        self.kv.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


@contextmanager
def lab_proxy(disk: Disk | None = None, path: str = "data") -> Iterator[LabProxy]:
    """A proxy for some tests. The member's data lies in memory, unless another disk is given."""
    with one_member(disk, path) as member:
        proxy = LabProxy(member)
        try:
            yield proxy
        finally:
            proxy.close()
