"""A proxy's port on a loop of its own thread, with methods that tests call."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Hashable
from typing import Any, TypeVar

from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http_exchange import HttpError, HttpExchange
from raykeeper.actors.proxy.proxy_acceptor import ProxyAcceptor
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.rpc_methods import RpcCall, RpcMethods, StreamCall, UnaryCall
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError

T = TypeVar("T")


class Port:
    """A listener whose services count what happens to them."""

    ALIKE = RpcError(RpcCode.NOT_FOUND, "the same")

    def __init__(self, max_connections: int = 10_000) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.held = HeldBytes()
        self.begun = 0
        self.cancelled = 0
        self.ended = 0
        self.sent = 0
        self.never: list[UnaryCall] = []
        self.met: set[Any] = set()
        """The addresses of the clients whose connections were accepted."""
        self.listener: ProxyListener
        self.host, self.port = self.run(self._listen(max_connections))
        self.target = f"{self.host}:{self.port}"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop of the port."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def close(self) -> None:
        self.run(self.listener.close(0.0))
        self.run(self._settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    def stop_sweeping(self) -> None:
        """No deadline of a connection passes but by ``pass_time``, however slow the test is."""

        async def stop() -> None:
            assert self.listener._sweeper is not None
            self.listener._sweeper.cancel()

        self.run(stop())

    async def _settle(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)

    async def _listen(self, max_connections: int) -> tuple[str, int]:
        methods = RpcMethods()
        methods.add_unary("/test.Test/Echo", self.echo)
        methods.add_direct("/test.Test/Direct", self.answer_directly)
        methods.add_direct("/test.Test/Never", self.never_answer)
        methods.add_unary("/test.Test/Sleep", self.sleep)
        methods.add_unary("/test.Test/Fail", self.fail)
        methods.add_unary("/test.Test/FailAlike", self.fail_alike)
        methods.add_unary("/test.Test/Bug", self.bug)
        methods.add_direct("/test.Test/DirectBug", self.direct_bug)
        methods.add_unary("/test.Test/Metadata", self.metadata)
        methods.add_unary("/test.Test/Size", self.size)
        methods.add_stream("/test.Test/Count", self.count)
        methods.add_stream("/test.Test/Both", self.both)
        methods.add_stream("/test.Test/Sum", self.sum)
        methods.add_stream("/test.Test/Slow", self.slow)
        methods.add_stream("/test.Test/Keep", self.keep)
        methods.add_stream("/test.Test/Flood", self.flood)
        methods.add_stream("/test.Test/FailLater", self.fail_later)
        log = MemberLog("proxy", "test", "proxy")
        self.listener = ProxyListener(methods, log, self.answer_http, self.held, max_connections)
        self._note_clients(self.listener.acceptor)
        return await self.listener.listen("127.0.0.1", 0)

    def _note_clients(self, acceptor: ProxyAcceptor) -> None:
        meet = acceptor._meet

        def meet_and_note(sock: socket.socket, source: Hashable) -> None:
            peer = sock.getpeername()
            meet(sock, source)
            self.met.add(peer)

        acceptor._meet = meet_and_note  # type: ignore[method-assign]

    # --- gRPC --------------------------------------------------------------------------------------------------------

    async def echo(self, request: bytes, call: RpcCall) -> bytes:
        return request

    def answer_directly(self, request: bytes, call: UnaryCall) -> bool:
        call.answer(request)
        return True

    def direct_bug(self, request: bytes, call: UnaryCall) -> bool:
        call.answer(None)  # type: ignore[arg-type]
        return True

    def never_answer(self, request: bytes, call: UnaryCall) -> bool:
        self.begun += 1
        self.never.append(call)
        call.when_ended = self._count_cancelled
        return True

    def _count_cancelled(self) -> None:
        self.cancelled += 1

    async def sleep(self, request: bytes, call: RpcCall) -> bytes:
        self.begun += 1
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""

    async def fail(self, request: bytes, call: RpcCall) -> bytes:
        raise RpcError(RpcCode.OUT_OF_RANGE, request.decode())

    async def fail_alike(self, request: bytes, call: RpcCall) -> bytes:
        try:
            raise KeyError("something before it")
        except KeyError:
            raise self.ALIKE  # noqa: B904

    async def bug(self, request: bytes, call: RpcCall) -> bytes:
        raise KeyError("a mistake of ours")

    async def metadata(self, request: bytes, call: RpcCall) -> bytes:
        return f"{call.method} {call.metadata.get(request.decode())} {call.time_left() < 1e6}".encode()

    async def size(self, request: bytes, call: RpcCall) -> bytes:
        return bytes(int(request))

    async def count(self, call: StreamCall) -> None:
        request = await call.receive()
        assert request is not None
        for number in range(int(request)):
            await call.send(b"%d" % number)

    async def both(self, call: StreamCall) -> None:
        async for message in call:
            await call.send(message)

    async def sum(self, call: StreamCall) -> None:
        total = 0
        async for message in call:
            total += len(message)
        await call.send(b"%d" % total)

    async def slow(self, call: StreamCall) -> None:
        """Takes a message now and then."""
        total = 0
        async for message in call:
            total += 1
            self.sent += len(message)
            await asyncio.sleep(0.5)
        await call.send(b"%d" % total)

    async def keep(self, call: StreamCall) -> None:
        """Works at one message until it is cancelled."""
        message = await call.receive()
        self.begun += 1
        await asyncio.get_running_loop().create_future()
        del message

    async def flood(self, call: StreamCall) -> None:
        """Sends for as long as it may."""
        self.begun += 1
        try:
            while True:
                await call.send(bytes(50_000))
                self.sent += 50_000
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1

    async def fail_later(self, call: StreamCall) -> None:
        await call.send(b"first")
        raise RpcError(RpcCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def answer_http(self, exchange: HttpExchange) -> None:
        if exchange.path == "/health":
            await exchange.respond(200, b'{"health":"true"}', {"content-type": "application/json"})
        elif exchange.path == "/echo":
            body = await exchange.body()
            text = {"x-method": exchange.method, "x-query": exchange.query, "x-host": exchange.headers.get("host", "")}
            await exchange.respond(200, body, text)
        elif exchange.path == "/lines":
            await exchange.start(200, {"content-type": "application/json"})
            for number in range(int(exchange.query)):
                await exchange.send(b'{"result":%d}\n' % number)
        elif exchange.path == "/flood":
            await exchange.start(200, {})
            try:
                while True:
                    await exchange.send(bytes(50_000))
                    self.sent += 50_000
            finally:
                self.ended += 1
        elif exchange.path == "/break":
            await exchange.start(200, {})
            await exchange.send(b"half")
            raise ValueError("a mistake of ours")
        elif exchange.path == "/bug":
            raise ValueError("a mistake of ours")
        elif exchange.path == "/nothing":
            return
        elif exchange.path == "/sleep":
            self.begun += 1
            try:
                await asyncio.sleep(30)
            finally:
                self.ended += 1
        else:
            raise HttpError(404, "404 page not found\n")
