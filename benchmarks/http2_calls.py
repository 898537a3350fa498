"""What a unary call of gRPC costs a proxy before anything is done for it: processor time, system calls included.

    python benchmarks/http2_calls.py [--calls N]

A child process serves; this one sends prepared frames on one connection, so many at a time, and asks the child for its
processor time before and after. Each row is the least of three runs, because other work on the machine only adds.
``h2`` is a server on that library which answers the same and does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack

from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    pack_frame,
    pack_settings,
    pack_window_update,
)
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.rpc_methods import RpcCall, RpcMethods, UnaryCall

ANSWER = bytes(100)
REQUEST = struct.pack(">BL", 0, 40) + bytes(40)
WINDOW = 1 << 30


def cpu_time() -> bytes:
    """The processor time of this process, as an answer."""
    return struct.pack(">d", time.process_time())


async def answer_unary(request: bytes, call: RpcCall) -> bytes:
    """A coroutine, which costs a task."""
    return ANSWER


def answer_later(request: bytes, call: UnaryCall) -> bool:
    """In another pass of the loop, as an answer of the cluster comes."""
    asyncio.get_running_loop().call_soon(call.answer, ANSWER)
    return True


def answer_now(request: bytes, call: UnaryCall) -> bool:
    """At once."""
    call.answer(ANSWER)
    return True


def answer_time(request: bytes, call: UnaryCall) -> bool:
    """How much processor time this process has taken."""
    call.answer(cpu_time())
    return True


async def serve_proxy(pipe: Connection) -> None:
    """A proxy's port with handlers that do nothing."""
    methods = RpcMethods()
    methods.add_direct("/b.B/Cpu", answer_time)
    methods.add_direct("/b.B/Direct", answer_now)
    methods.add_direct("/b.B/Later", answer_later)
    methods.add_unary("/b.B/Unary", answer_unary)
    listener = ProxyListener(methods, MemberLog("proxy", "benchmark", "proxy"))
    pipe.send((await listener.listen("127.0.0.1", 0))[1])
    await asyncio.Event().wait()


class H2Server(asyncio.Protocol):
    """A server on the library h2."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._connection.initiate_connection()
        self._paths: dict[int, Any] = {}

    def data_received(self, data: bytes) -> None:
        for event in self._connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self._paths[event.stream_id] = dict(event.headers)[b":path"]
            elif isinstance(event, h2.events.DataReceived):
                self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                answer = cpu_time() if self._paths.pop(event.stream_id) == b"/b.B/Cpu" else ANSWER
                head = [(":status", "200"), ("content-type", "application/grpc")]
                self._connection.send_headers(event.stream_id, head)
                self._connection.send_data(event.stream_id, struct.pack(">BL", 0, len(answer)) + answer)
                self._connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        self._transport.write(self._connection.data_to_send())


async def serve_h2(pipe: Connection) -> None:
    """The same on h2."""
    server = await asyncio.get_running_loop().create_server(H2Server, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


def run_child(serve: Callable[[Connection], Any], pipe: Connection) -> None:
    """The process that is measured."""
    asyncio.run(serve(pipe))


class Caller:
    """A client that knows as much of HTTP/2 as it needs."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(PREFACE + pack_settings({INITIAL_WINDOW_SIZE: WINDOW}) + pack_window_update(0, WINDOW))
        self._encoder = hpack.Encoder()
        self._stream = 1
        self._rest = b""

    def pack_call(self, method: str, timeout: str) -> bytes:
        """A request as Go's client sends it."""
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/b.B/{method}"),
            (":authority", "127.0.0.1:2379"),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-go/1.41.0"),
            ("te", "trailers"),
            *([("grpc-timeout", timeout)] if timeout else []),
            ("hasleader", "true"),
            ("client-api-version", "3.5.1"),
        ]
        stream, self._stream = self._stream, self._stream + 2
        head = pack_frame(HEADERS, END_HEADERS, stream, self._encoder.encode(fields))
        return head + pack_frame(DATA, END_STREAM, stream, REQUEST)

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def wait(self, answers: int) -> bytes:
        """The message of the last of so many answers."""
        message = b""
        while answers:
            self._rest += self._sock.recv(1 << 18)
            while len(self._rest) >= FRAME_HEADER.size:
                upper, lower, kind, flags, _ = FRAME_HEADER.unpack_from(self._rest)
                end = FRAME_HEADER.size + (upper << 8 | lower)
                if len(self._rest) < end:
                    break
                if kind == DATA and end > FRAME_HEADER.size:
                    message = self._rest[FRAME_HEADER.size + 5 : end]
                answers -= kind == HEADERS and flags & END_STREAM
                self._rest = self._rest[end:]
        return message

    def cpu_time(self) -> float:
        self.send(self.pack_call("Cpu", ""))
        seconds: float = struct.unpack(">d", self.wait(1))[0]
        return seconds

    def measure(self, method: str, at_once: int, calls: int, with_timeout: bool) -> float:
        """Processor time of the server for one call, in microseconds."""
        before = self.cpu_time()
        for batch in range(calls // at_once):
            first = batch * at_once
            timeouts = [f"{4_000_000 + first + number}u" if with_timeout else "" for number in range(at_once)]
            self.send(b"".join(self.pack_call(method, timeout) for timeout in timeouts))
            self.wait(at_once)
        return (self.cpu_time() - before) / calls * 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls
    print("server   handler  in flight  timeout  us of processor time a call")
    for name, serve, handlers in (("proxy", serve_proxy, ["Direct", "Later", "Unary"]), ("h2", serve_h2, ["Direct"])):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=run_child, args=(serve, theirs), daemon=True)
        child.start()
        caller = Caller(ours.recv())
        for handler in handlers:
            for at_once, with_timeout in ((1, False), (100, False), (100, True)):
                count = calls if at_once > 1 else calls // 10
                least = min(caller.measure(handler, at_once, count, with_timeout) for _ in range(3))
                print(
                    f"{name:8} {handler:8} {at_once:9}  {'yes' if with_timeout else 'no':7}  {least:6.1f}", flush=True
                )
        child.terminate()
        child.join()


if __name__ == "__main__":
    main()
