"""A proxy's port: tells HTTP/2 from HTTP/1.1 by the first bytes of a connection, and keeps times.

etcd's clients take one address for gRPC, for JSON, for health and for metrics, so one port has to speak both.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import cast

from ...limits import (
    MAX_PROXY_CONNECTIONS,
    POLL_PAUSE_S,
    PROXY_DESCRIPTOR_DIVISOR,
    PROXY_DRAIN_S,
    PROXY_GREETING_S,
    PROXY_KEEPALIVE_PROBE_S,
    PROXY_KEEPALIVE_PROBES,
    PROXY_KEEPALIVE_S,
    PROXY_STOP_S,
    PROXY_SWEEP_S,
)
from ..logs import MemberLog
from .held_bytes import HeldBytes
from .http1_protocol import Http1Protocol
from .http2_frames import PREFACE
from .http2_protocol import Http2Protocol
from .http_exchange import HttpHandler, answer_not_found
from .proxy_acceptor import ProxyAcceptor
from .proxy_context import ProxyContext, bound_reads, client_source, has_unread
from .proxy_tls import ProxyTlsContext
from .rpc_methods import RpcMethods


class Greeting(asyncio.Protocol):
    """A connection that has not said what it speaks.

    Args:
        begun: called as soon as it is a connection of the proxy.
    """

    protocol = "unknown"

    def __init__(self, context: ProxyContext, begun: Callable[[], None]) -> None:
        self._context = context
        self._begun = begun
        self._since = context.loop.time()
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        began = self._context.loop.time()
        self._transport = cast(asyncio.Transport, transport)
        self._begun()
        bound_reads(transport, self._context.read_bytes)
        tune_socket(transport.get_extra_info("socket"))
        if not self._context.add(self, client_source(transport)):
            self._transport.abort()
        self._context.admissions.spend(began)

    def data_received(self, data: bytes) -> None:
        """Its first bytes. What follows from them is the first request's, and no longer what it takes to let in."""
        began = self._context.loop.time()
        protocol = self._hear(data)
        self._context.admissions.spend(began)
        if protocol is not None:
            protocol.data_received(self._data)

    def _hear(self, data: bytes) -> Http2Protocol | Http1Protocol | None:
        """The protocol that it speaks, once that is known."""
        self._data += data
        transport = self._transport
        if transport is None or transport.is_closing():
            return None
        if self._data.startswith(PREFACE):
            protocol: Http2Protocol | Http1Protocol = Http2Protocol(self._context)
        elif not PREFACE.startswith(self._data):
            protocol = Http1Protocol(self._context)
        else:
            return None
        transport.set_protocol(protocol)
        self._context.replace(self, protocol)
        protocol.connection_made(transport)
        return protocol

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone."""
        self._transport = None
        self._context.discard(self)

    def idle_since(self) -> float | None:
        """Since the beginning."""
        return self._since

    def heard_at(self) -> float:
        """At its beginning."""
        return self._since

    def set_read_bytes(self, size: int) -> None:
        """See ``ProxyConnection``."""
        if self._transport is not None:
            bound_reads(self._transport, size)

    def check_times(self, now: float) -> None:
        """Close a connection that says nothing."""
        if now - self._since > PROXY_GREETING_S and not has_unread(self._transport):
            self._context.end_late(self)
            self.abort()

    def drain(self) -> None:
        """Close."""
        self.abort()

    def stop(self) -> None:
        """Close."""
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def tune_socket(sock: socket.socket) -> None:
    """Have TCP send small answers at once, and notice that a client's machine is gone.

    Otherwise the second part of an answer waits until the client has acknowledged the first, for up to 40 ms. asyncio
    sees to that for the connections that it accepts itself, and these are not such."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROXY_KEEPALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROXY_KEEPALIVE_PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROXY_KEEPALIVE_PROBES)


def _may_open(wanted: int) -> int:
    """How many connections the process may have; its limit of descriptors is raised as far as is needed and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = wanted * PROXY_DESCRIPTOR_DIVISOR
    if resource.RLIM_INFINITY not in (soft, hard):
        descriptors = min(descriptors, hard)
    if soft == resource.RLIM_INFINITY or soft >= descriptors:
        return min(wanted, descriptors // PROXY_DESCRIPTOR_DIVISOR)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    return descriptors // PROXY_DESCRIPTOR_DIVISOR


class ProxyListener:
    """See the module. Made and used on the loop that serves.

    Args:
        methods: what is served by gRPC.
        log: for an operator.
        http: what is served by plain HTTP.
        held: the bound of the memory.
        max_connections: at most; fewer if the process may not open enough descriptors. Its soft limit is raised if need
            be.
    """

    def __init__(
        self,
        methods: RpcMethods,
        log: MemberLog,
        http: HttpHandler = answer_not_found,
        held: HeldBytes | None = None,
        max_connections: int = MAX_PROXY_CONNECTIONS,
        tls: ProxyTlsContext | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.context = ProxyContext(loop, methods, http, log, held or HeldBytes(), _may_open(max_connections))
        self.acceptor = ProxyAcceptor(self.context, self._greet, tls)
        self._loop = loop
        self._listens = False
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Begin to accept connections; returns the address. Port 0 is any free one.

        Raises:
            OSError: the address cannot be had.
        """
        address = await self.acceptor.listen(host, port)
        self._listens = True
        self._sweeper = self._loop.call_later(PROXY_SWEEP_S, self._sweep)
        return address

    def _greet(self, begun: Callable[[], None]) -> Greeting:
        return Greeting(self.context, begun)

    def connection_count(self) -> int:
        """Connections that are open."""
        return len(self.acceptor) + len(self.context.connections())

    async def close(self, grace: float = PROXY_DRAIN_S) -> None:
        """Accept no more, let calls end for ``grace`` seconds, end the others, and close all connections."""
        self.acceptor.close()
        if not self._listens:
            return
        self._listens = False
        for connection in self.context.connections():
            connection.drain()
        await self._wait_for_clients(grace)
        for connection in self.context.connections():
            connection.stop()
        await self._wait_for_clients(PROXY_STOP_S)
        for connection in self.context.connections():
            connection.abort()
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.context.deadlines.close()

    async def _wait_for_clients(self, seconds: float) -> None:
        """Wait until all connections are closed, but no longer."""
        until = self._loop.time() + seconds
        while self.context.connections() and self._loop.time() < until:
            await asyncio.sleep(min(POLL_PAUSE_S, seconds))

    def _sweep(self) -> None:
        """Check the times of all connections."""
        self._sweeper = self._loop.call_later(PROXY_SWEEP_S, self._sweep)
        now = self._loop.time()
        self.acceptor.expire(now)
        self.acceptor.review()
        self.context.share_passes(now - PROXY_SWEEP_S)
        for connection in self.context.connections():
            try:
                connection.check_times(now)
            except Exception as error:
                self.context.log.log(logging.ERROR, "a connection's times", exc_info=error)
                connection.abort()
