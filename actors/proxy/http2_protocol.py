"""An HTTP/2 connection on asyncio: its socket, its requests' handlers, and its times."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import cast

from ...limits import (
    MAX_PROXY_STREAMS,
    PROXY_IDLE_S,
    PROXY_PARTIAL_S,
    PROXY_PING_TIMEOUT_S,
    PROXY_SEND_BYTES,
    PROXY_STALL_S,
)
from .header_blocks import Fields
from .http2_connection import Http2Connection
from .http2_exchange import Http2Exchange
from .http2_frames import CANCEL, INTERNAL_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, Http2Error
from .http2_sender import Stream
from .proxy_context import ProxyContext, bound_reads, client_address, has_unread
from .proxy_tls import common_name
from .request_heads import Understood
from .rpc_calls import WireStreamCall, WireUnaryCall, refuse
from .rpc_status import DEADLINE_EXCEEDED

_GONE = Http2Error(INTERNAL_ERROR, "the connection is closed")


class Http2Protocol(asyncio.Protocol):
    """See the module. It is the owner of its :class:`Http2Connection` and the host of its calls."""

    protocol = "http2"

    def __init__(self, context: ProxyContext) -> None:
        self.context = context
        self.loop = context.loop
        self.held = context.held
        self.deadlines = context.deadlines
        self.log = context.log
        self._used = False
        """Whether there was a request."""
        self.running = 0
        self.streaming = 0
        self.now = self.loop.time()
        self._understand = context.heads.understand
        self._share = context.held.open_share(self._expel)
        self.connection: Http2Connection[Understood] = Http2Connection(self, self._share, self._wake)
        self.client = ""
        self.certificate_user = ""
        """The common name in the certificate that the client has shown."""
        self._transport: asyncio.Transport | None = None
        self._unsent = 0
        """What the transport holds, when that was last counted."""
        self._pinged = 0.0
        self._closing_since = 0.0
        self._then: list[Callable[[], None]] = []
        """What is to be done after what is being read."""

    # --- the socket --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast(asyncio.Transport, transport)
        self.client = client_address(transport)
        self.certificate_user = common_name(transport)
        self._transport.set_write_buffer_limits(high=PROXY_SEND_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """The socket was read."""
        self.now = self.loop.time()
        self._pinged = 0.0
        self.connection.receive(data, self.now)
        while self._then:
            try:
                self._then.pop()()
            except Exception as error:  # as of any callback of the loop
                self.loop.call_exception_handler({"message": "what was to be done soon failed", "exception": error})
        self._flush()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read, but gRPC's clients do not do that: the socket is closed."""
        return False

    def pause_writing(self) -> None:
        """The socket takes no more. A client that does not read is not read either."""
        self.connection.paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The socket has taken most of what there was."""
        self.connection.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        self._transport = None
        self.connection.failed = self.connection.failed or _GONE
        self.connection.end_streams()
        self._share.close()
        self.context.discard(self)

    def _wake(self) -> None:
        """Output has come up outside of :meth:`data_received`: all of this pass of the loop goes out in one write."""
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        while data := self.connection.take_output():
            transport.write(data)
        unsent = transport.get_write_buffer_size()
        if unsent != self._unsent:
            change, self._unsent = unsent - self._unsent, unsent
            self._share.add(change)
        if self.connection.failed is not None or self.connection.is_drained():
            self._close()

    def _close(self) -> None:
        """Close once what was written has been taken."""
        if self._transport is not None and not self._closing_since:
            self._closing_since = self.loop.time()
            error = self.connection.failed
            if error is not None:
                self.context.report_abuse(error.text)
            self._transport.close()

    def _expel(self) -> None:
        """The connection holds too much. Whatever is being done to it is finished first."""
        self.context.report_abuse("it held too many bytes")
        self.loop.call_soon(self.abort)

    # --- requests ----------------------------------------------------------------------------------------------------

    def understand(self, fields: Fields) -> Understood:
        """What a request's fields mean."""
        return self._understand(fields)

    def open_stream(self, stream: Stream, understood: Understood) -> None:
        """A request has begun."""
        if not self._used:
            self._used = True
            self.context.begin_requests(self)
        head, timeout = understood
        rpc = head.rpc
        if head.malformed:
            self.connection.reset(stream, PROTOCOL_ERROR)
        elif self.running >= MAX_PROXY_STREAMS:
            self.connection.reset(stream, REFUSED_STREAM)
        elif rpc is None:
            if head.refusal is not None:
                refuse(self.connection, stream, head.refusal)
                return
            exchange = Http2Exchange(self, stream, head, self.context.http)
            stream.receiver = exchange
            exchange.begin()
        elif timeout is not None and timeout <= 0:
            refuse(self.connection, stream, DEADLINE_EXCEEDED)
        else:
            deadline = math.inf if timeout is None else self.now + timeout
            if rpc.stream is not None:
                stream_call = WireStreamCall(self, stream, head, rpc, deadline)
                stream.receiver = stream_call
                stream_call.begin()
                return
            call = WireUnaryCall(self, stream, head, rpc, deadline)
            stream.receiver = call
            if stream.ended:
                call.receive_data(b"", True)

    def answer(self, stream: Stream, head: bytes, data: bytes, trailers: bytes) -> None:
        """The whole answer of a unary call, which does not run any more. If no other one runs, nothing else could leave
        with it, so it leaves at once: another pass of the loop would only cost time."""
        connection = self.connection
        alone = self.running == self.streaming and not connection.awake
        connection.awake = connection.awake or alone
        connection.answer(stream, head, data, trailers)
        if alone:
            self._flush()

    def soon(self, work: Callable[[], None]) -> None:
        """See ``UnaryCall.soon``. If other callbacks of the loop are to run in this pass, they come first: they may
        bring requests of other connections. A loop that does not show them is taken to have some."""
        if getattr(self.loop, "_ready", True):
            self.loop.call_soon(work)
        else:
            self._then.append(work)

    def take_pong(self) -> None:
        """The client lives, which :meth:`data_received` has noted."""

    # --- times -------------------------------------------------------------------------------------------------------

    def idle_since(self) -> float | None:
        """Since when the connection has had no request, roughly."""
        return None if self.connection.streams or self.running else self.now

    def heard_at(self) -> float:
        """When the socket was last read."""
        return self.now

    def set_read_bytes(self, size: int) -> None:
        """See ``ProxyConnection``."""
        if self._transport is not None:
            bound_reads(self._transport, size)

    def check_times(self, now: float) -> None:
        """Close or reset what has taken too long; ask a silent client for a sign of life."""
        connection = self.connection
        self._flush()  # which counts what is unsent
        if self._closing_since:
            if now - self._closing_since > PROXY_STALL_S:
                self.abort()
            return
        late = connection.partial_since and now - connection.partial_since > PROXY_PARTIAL_S
        if late and not connection.paused and not has_unread(self._transport):
            self.context.end_late(self)
            self._fail("a frame or header block was not completed")
            return
        for stream in list(connection.streams.values()):
            receiver = stream.receiver
            assert isinstance(receiver, WireUnaryCall | WireStreamCall | Http2Exchange)
            if receiver.is_overdue(now):
                connection.reset(stream, CANCEL)
                receiver.receive_reset()
        if self._pinged:
            if now - self._pinged > PROXY_PING_TIMEOUT_S:
                self.context.end_late(self)
                self.context.report_abuse("it did not answer a PING")
                self.abort()
        elif now - self.now > PROXY_IDLE_S:
            self._pinged = now
            connection.ping()

    def _fail(self, text: str) -> None:
        self.connection.fail(Http2Error(PROTOCOL_ERROR, text))
        self._flush()

    def drain(self) -> None:
        """Take no new requests, and close when those that run have ended."""
        self.connection.announce_end()
        self._flush()

    def stop(self) -> None:
        """End the requests that run, and close."""
        self.connection.refuse_streams()
        for stream in list(self.connection.streams.values()):
            receiver = stream.receiver
            assert isinstance(receiver, WireUnaryCall | WireStreamCall | Http2Exchange)
            receiver.stop()
        self._flush()  # which closes once all is sent

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
