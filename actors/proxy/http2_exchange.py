"""Plain HTTP on a stream of HTTP/2: a request whose content type is not gRPC's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from ...limits import PROXY_REQUEST_S, PROXY_STREAM_SEND_BYTES, PROXY_STREAM_WINDOW_BYTES
from .header_blocks import encode_block
from .http2_frames import INTERNAL_ERROR
from .http2_sender import Stream
from .http_exchange import ClientGone, HttpExchange, HttpHandler, run_exchange
from .request_heads import RequestHead
from .rpc_calls import CallHost, start_task

_OF_CONNECTION = ("connection", "transfer-encoding", "keep-alive", "upgrade")
_BAD_VALUE = re.compile(r"[\0\r\n]")


class Http2Exchange(HttpExchange):
    """See the module. It is the receiver of its stream, and its handler's task runs as long as it wants."""

    def __init__(self, host: CallHost, stream: Stream, head: RequestHead, handler: HttpHandler) -> None:
        fields = head.metadata
        headers = {name: value for name, value in fields.items() if name[0] != ":"}
        if ":authority" in fields:
            headers.setdefault("host", fields[":authority"])
        super().__init__(fields[":method"], fields[":path"], headers, host.connection.share, host.client)
        self._host = host
        self._stream = stream
        self._handler = handler
        self._kept = bytearray()
        self._heard = host.loop.time()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._started_task = False

    def begin(self) -> None:
        """Start the handler."""
        self._host.running += 1
        self._task = start_task(self._host.loop, self._run())

    async def _run(self) -> None:
        self._started_task = True
        try:
            await run_exchange(self, self._handler, self._host.log)
        finally:
            self._task = None
            self._host.running -= 1
            self._drop_parts()

    async def receive(self) -> bytes:
        """The next part of the request's body; empty when all of it was given."""
        while not self._kept:
            if self._stream.ended or self._stream.closed:
                return b""
            await self._wait()
        part = bytes(self._kept)
        self._drop_parts()
        missing = PROXY_STREAM_WINDOW_BYTES - self._stream.credit
        if missing >= PROXY_STREAM_WINDOW_BYTES // 2:
            self._host.connection.open_window(self._stream, missing)
        return part

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer."""
        self.started, self.status = True, status
        fields = [(b":status", b"%d" % status)]
        for name, value in {**self.added, **headers}.items():
            if name.lower() not in _OF_CONNECTION:
                fields.append((name.lower().encode(), _BAD_VALUE.sub(" ", value).encode()))
        self._host.connection.send_head(self._stream, encode_block(tuple(fields)))

    async def send(self, data: bytes) -> None:
        """A part of the answer's body."""
        if self._stream.closed:
            raise ClientGone
        if self.method != "HEAD":
            self._host.connection.send_data(self._stream, data)
        while self._stream.unsent > PROXY_STREAM_SEND_BYTES and not self._stream.closed:
            await self._wait()

    async def finish(self) -> None:
        """The end of the answer."""
        self._host.connection.end(self._stream, b"")

    def abort(self) -> None:
        """End an answer that cannot be completed."""
        self._host.connection.reset(self._stream, INTERNAL_ERROR)

    # --- what happens to the stream ----------------------------------------------------------------------------------

    def receive_data(self, data: bytes, ended: bool) -> None:
        """A part of the body."""
        self._heard = self._host.loop.time()
        if data:
            self._kept += data
            self._host.connection.share.add(len(data))
        self._wake()

    def receive_reset(self) -> None:
        """The client is gone, or wants no answer."""
        self.stop()

    def stop(self) -> None:
        """The handler is no longer needed."""
        self._drop_parts()
        if self._task is not None:
            self._task.cancel()
            if not self._started_task:  # then nothing of it will run
                self._task, self._started_task = None, True
                self._host.running -= 1
        if not self._stream.closed:
            self.abort()

    def continue_sending(self) -> None:
        """There is room for more of the answer."""
        self._wake()

    def is_overdue(self, now: float) -> bool:
        """Whether the handler has waited for a part of the body, or for all of it, for too long."""
        if self.is_body_overdue(now):
            return True
        return not self._stream.ended and self._waiter is not None and now - self._heard > PROXY_REQUEST_S

    async def _wait(self) -> None:
        self._waiter = self._host.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _drop_parts(self) -> None:
        self._host.connection.share.add(-len(self._kept))
        self._kept = bytearray()
