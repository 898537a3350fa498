"""An HTTP/1.1 connection on asyncio; the library h11 reads and writes the protocol.

One request at a time. A body is read as its handler takes it. While a request is answered the socket is still read, as
far as ``MAX_HEADER_LIST_BYTES``, because that is how the end of a client is noticed; what comes are later requests,
which wait. What waits in either direction is counted in the connection's share. A client that closes its side of the
connection wants no more answers, as with Go's server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http.client import responses
from typing import cast

import h11

from ...limits import (
    MAX_HEADER_LIST_BYTES,
    PROXY_DROPPED_BYTES,
    PROXY_GREETING_S,
    PROXY_IDLE_S,
    PROXY_REQUEST_S,
    PROXY_SEND_BYTES,
    PROXY_STALL_S,
    PROXY_STREAM_WINDOW_BYTES,
)
from .http_exchange import ClientGone, HttpExchange, run_exchange
from .proxy_context import ProxyContext, bound_reads, client_address, has_unread


class Http1Exchange(HttpExchange):
    """One request on such a connection."""

    def __init__(self, protocol: Http1Protocol, request: h11.Request) -> None:
        headers: dict[str, str] = {}
        for name, value in request.headers:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        target = request.target.decode("latin-1")
        super().__init__(request.method.decode("latin-1"), target, headers, protocol.share, protocol.client)
        self._protocol = protocol
        self._finished = False
        self.kept = bytearray()
        """What has come of the body and was not taken."""
        self.complete = False
        """Whether the whole body has come."""
        self.closed = False
        self.waits_since: float | None = None
        """Since when the handler has waited for a part of the body."""
        self.waiter: asyncio.Future[None] | None = None

    async def receive(self) -> bytes:
        """The next part of the request's body; empty when all of it was given."""
        if not self.kept:
            self._protocol.want_body()  # which may find that it is there
        while not self.kept and not self.complete and not self.closed:
            self.waits_since = self._protocol.loop.time()
            try:
                await self._wait()
            finally:
                self.waits_since = None
        part, self.kept = bytes(self.kept), bytearray()
        return part

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer."""
        self._protocol.write(self._head(status, headers))

    async def send(self, data: bytes) -> None:
        """A part of the answer's body."""
        self.share.add(len(data))  # all of it is in memory until the last of it was taken
        try:
            for begin in range(0, max(1, len(data)), PROXY_SEND_BYTES):
                if self.closed:
                    raise ClientGone
                if self.method != "HEAD":
                    self._protocol.write(h11.Data(data=data[begin : begin + PROXY_SEND_BYTES]))
                await asyncio.sleep(0)  # a handler that always has something to send shares the loop
                while self._protocol.stalled_since is not None and not self.closed:
                    await self._wait()
        finally:
            self.share.add(-len(data))

    async def finish(self) -> None:
        """The end of the answer."""
        if not self._finished:
            self._finished = True
            self._protocol.write(h11.EndOfMessage())

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """A whole answer: in one write, or, if it is long, as much at a time as may wait in the socket."""
        if len(body) > PROXY_SEND_BYTES:
            await super().respond(status, body, headers)
            return
        head = self._head(status, {**headers, "content-length": str(len(body))})
        self._finished = True
        parts = [] if self.method == "HEAD" else [h11.Data(data=body)]
        self._protocol.write(head, *parts, h11.EndOfMessage())
        while self._protocol.stalled_since is not None and not self.closed:
            await self._wait()

    def _head(self, status: int, headers: Mapping[str, str]) -> h11.Response:
        self.started, self.status = True, status
        fields = [(name, " ".join(value.splitlines())) for name, value in {**self.added, **headers}.items()]
        return h11.Response(status_code=status, headers=fields, reason=responses.get(status, ""))

    def abort(self) -> None:
        """End an answer that cannot be completed."""
        self._protocol.abort()

    async def _wait(self) -> None:
        self.waiter = self._protocol.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def wake(self) -> None:
        """Something has changed that the handler may wait for."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Http1Protocol(asyncio.Protocol):
    """See the module."""

    protocol = "http1"

    def __init__(self, context: ProxyContext) -> None:
        self.context = context
        self.loop = context.loop
        self.client = ""
        """The address of the client, for people."""
        self.stalled_since: float | None = None
        """Since when the socket has taken nothing of what waits."""
        self.share = context.held.open_share(self._expel)
        self._counted = 0
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_LIST_BYTES)
        self._transport: asyncio.Transport | None = None
        self._exchange: Http1Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._since = self.loop.time()
        """When the last request ended, or the first byte of the next one came."""
        self._heard = self._since
        self._begun = False
        self._used = False
        """Whether there was a request."""
        self._droppable = 0
        """Bytes of a body that may come after its answer."""
        self._closing_since = 0.0
        self._draining = False

    # --- the socket --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast(asyncio.Transport, transport)
        self.client = client_address(transport)
        self._transport.set_write_buffer_limits(high=PROXY_SEND_BYTES)

    def data_received(self, data: bytes) -> None:
        """The socket was read."""
        if self._closing_since or self._transport is None:
            return
        self._heard = self.loop.time()
        if not self._begun:
            self._begun = True
            self._since = self._heard
        self._http.receive_data(data)
        self._take_events()
        self._count()

    def eof_received(self) -> bool:
        """The client wants no more."""
        return False

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self.stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        """The socket has taken most of what there was."""
        self.stalled_since = None
        self._count()
        if self._exchange is not None:
            self._exchange.wake()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        self._transport = None
        self.context.discard(self)
        self.share.close()
        if self._exchange is not None:
            self._exchange.closed = True
            self._exchange.wake()
        if self._task is not None:
            self._task.cancel()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        """Go on with what h11 has. The socket is not read while much of a body waits for the handler."""
        while not self._closing_since:
            if self._exchange is not None and len(self._exchange.kept) >= PROXY_STREAM_WINDOW_BYTES:
                self._read(False)
                return
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error)
                return
            if event is h11.NEED_DATA:
                self._read(True)
                return
            if event is h11.PAUSED:  # the next request has come before this one was answered
                self._read(len(self._http.trailing_data[0]) < MAX_HEADER_LIST_BYTES)
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._take_body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._exchange is None:
                    self._http.start_next_cycle()
                else:
                    self._exchange.complete = True
                    self._exchange.wake()

    def _take_body(self, data: bytes) -> None:
        """A part of a body.

        After an answer it is dropped, as far as the client may have sent it before it saw the answer.
        """
        exchange = self._exchange
        if exchange is not None:
            exchange.kept += data
            exchange.wake()
            return
        self._droppable -= len(data)
        if self._droppable < 0:
            self._close()

    def _begin(self, request: h11.Request) -> None:
        if not self._used:
            self._used = True
            self.context.begin_requests(self)
        self._exchange = Http1Exchange(self, request)
        self._task = self.loop.create_task(self._run(self._exchange))

    async def _run(self, exchange: Http1Exchange) -> None:
        try:
            await run_exchange(exchange, self.context.http, self.context.log)
        finally:
            self._exchange = self._task = None
            exchange.closed = True
            self._end_cycle()

    def _end_cycle(self) -> None:
        """After an answer: the next request, once client and server are both through with this one."""
        self._since = self.loop.time()
        self._begun = bool(self._http.trailing_data[0])
        if self._transport is None or self._closing_since:
            return
        theirs = self._http.their_state
        if self._draining or self._http.our_state is not h11.DONE or theirs not in (h11.DONE, h11.SEND_BODY):
            self._close()
            return
        if theirs is h11.DONE:
            self._http.start_next_cycle()
        else:
            self._begun, self._droppable = True, PROXY_DROPPED_BYTES
        self._take_events()

    def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Not HTTP, or more than may be."""
        if self._exchange is not None:
            self.abort()
            return
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            text = f"{error}\n".encode()
            fields = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(text)))]
            head = h11.Response(status_code=error.error_status_hint, headers=[*fields, ("connection", "close")])
            self.write(head, h11.Data(data=text), h11.EndOfMessage())
        self._close()

    def want_body(self) -> None:
        """The handler waits for a part of the body."""
        if self._http.they_are_waiting_for_100_continue:
            self.write(h11.InformationalResponse(status_code=100, headers=[]))
        self._take_events()

    def write(self, *events: h11.Event) -> None:
        """Parts of an answer; nothing if the client is gone."""
        transport = self._transport
        if transport is None:
            return
        data = b"".join(self._http.send(event) or b"" for event in events)
        if transport.is_closing():
            if self._exchange is not None:
                self._exchange.closed = True
        elif data:
            transport.write(data)
            self._count()

    def _count(self) -> None:
        """Count what waits now: unsent answers, heads that are not complete, later requests, and parts of a body."""
        transport = self._transport
        if transport is None:
            return
        exchange = self._exchange
        body = len(exchange.kept) if exchange is not None else 0
        waits = transport.get_write_buffer_size() + len(self._http.trailing_data[0]) + body
        if waits != self._counted:
            change, self._counted = waits - self._counted, waits
            self.share.add(change)

    def _expel(self) -> None:
        """The connection holds too much. Whatever is being done to it is finished first."""
        self.context.report_abuse("it held too many bytes")
        self.loop.call_soon(self.abort)

    def _read(self, wanted: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _close(self) -> None:
        if self._transport is not None and not self._closing_since:
            self._closing_since = self.loop.time()
            self._transport.close()

    # --- times -------------------------------------------------------------------------------------------------------

    def idle_since(self) -> float | None:
        """Since when the connection has had no request."""
        return self._since if self._exchange is None else None

    def heard_at(self) -> float:
        """When the socket was last read."""
        return self._heard

    def set_read_bytes(self, size: int) -> None:
        """See ``ProxyConnection``."""
        if self._transport is not None:
            bound_reads(self._transport, size)

    def check_times(self, now: float) -> None:
        """Close the connection if its client is too slow."""
        exchange = self._exchange
        self._count()
        if self._closing_since:
            if now - self._closing_since > PROXY_STALL_S:
                self.abort()
        elif exchange is None:
            late = now - self._since > (PROXY_GREETING_S if self._begun else PROXY_IDLE_S)
            if late and not has_unread(self._transport):
                self.context.end_late(self)
                self._close()
        else:
            waits = exchange.waits_since is not None and now - exchange.waits_since > PROXY_REQUEST_S
            stalls = self.stalled_since is not None and now - self.stalled_since > PROXY_STALL_S
            if waits or stalls or exchange.is_body_overdue(now):
                self.abort()

    def drain(self) -> None:
        """Take no new requests, and close when the one that runs has ended."""
        self._draining = True
        if self._exchange is None:
            self._close()

    def stop(self) -> None:
        """End the request that runs, and close."""
        if self._exchange is not None:
            self.abort()
        self._close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
