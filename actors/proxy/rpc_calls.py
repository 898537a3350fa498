"""Calls of gRPC on streams of HTTP/2: from a request's data to its handler, and from what that says to the answer.

A unary call whose message comes in one frame, as most do, is handed to its handler from that frame. Its handler begins
when the client has sent all, so one answer always follows one request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from ...limits import PROXY_REQUEST_S, PROXY_STREAM_SEND_BYTES
from ..logs import MemberLog
from ..tracing import TRACEPARENT, GivenParent
from .call_deadlines import CallDeadlines
from .held_bytes import HeldBytes
from .http2_connection import Http2Connection
from .http2_sender import Stream
from .incoming_messages import IncomingMessages
from .request_heads import RequestHead
from .rpc_messages import PREFIX, PREFIX_BYTES, pack_message
from .rpc_methods import CERTIFICATE_USER, RpcMethod, StreamCall, UnaryCall
from .rpc_status import (
    ANSWER_HEAD,
    CANCELED,
    DEADLINE_EXCEEDED,
    NO_ROOM,
    OK_TRAILERS,
    SERVER_STOPPED,
    RpcCode,
    RpcError,
    encode_status,
)


class CallHost(Protocol):
    """What calls share: their connection, and what their process has once."""

    connection: Http2Connection[Any]
    loop: asyncio.AbstractEventLoop
    held: HeldBytes
    deadlines: CallDeadlines
    log: MemberLog
    client: str
    """The address of the client, for people."""
    certificate_user: str
    """Whom the client's certificate names; empty without one."""
    running: int
    """Handlers that have not ended, even if their streams have..."""
    streaming: int
    """... and those of them that are not of one request and one answer."""
    now: float
    """When the socket was last read, in the loop's time."""

    def answer(self, stream: Stream, head: bytes, data: bytes, trailers: bytes) -> None:
        """Send the whole answer of a unary call that has ended."""

    def soon(self, work: Callable[[], None]) -> None:
        """Do something once all has been taken in that is being read."""


def start_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task; where Python can do it, its first step is taken at once."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)


def end_of(call: str, error: Exception, log: MemberLog) -> RpcError:
    """How a call ends whose handler raised; a mistake of ours is logged."""
    if isinstance(error, RpcError):
        # Services raise the same objects again and again, and each would keep the frames of all calls that it ended.
        error.__traceback__ = error.__context__ = None
        return error
    log.log(logging.ERROR, "%s failed", call, exc_info=error)
    return RpcError(RpcCode.UNKNOWN, f"internal error: {type(error).__name__}")


def _with_user(user: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
    """A call's metadata, and the user of the connection's certificate."""
    return {**metadata, CERTIFICATE_USER: user}


class WireUnaryCall(UnaryCall):
    """A unary call that came by HTTP/2."""

    __slots__ = (
        "_begun",
        "_encoding",
        "_host",
        "_incoming",
        "_opened",
        "_rpc",
        "_running",
        "_size",
        "_started",
        "_stream",
        "_task",
    )

    def __init__(self, host: CallHost, stream: Stream, head: RequestHead, rpc: RpcMethod, deadline: float) -> None:
        metadata, user = head.metadata, host.certificate_user
        super().__init__(rpc.path, _with_user(user, metadata) if user else metadata, deadline, host.client)
        self._encoding = head.encoding
        self._host = host
        self._stream = stream
        self._rpc = rpc
        self._incoming: IncomingMessages | None = None
        self._task: asyncio.Task[None] | None = None
        self._opened = host.now
        self._begun = False
        self._running = False
        self._size = 0
        self._started = False
        rpc.started += 1
        if deadline != math.inf:
            host.deadlines.add(self)

    # --- the request -------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, ended: bool) -> None:
        """A part of the request."""
        if self._incoming is None:
            if ended and data[:PREFIX_BYTES] == PREFIX.pack(0, max(0, len(data) - PREFIX_BYTES)):
                self._begin(data[PREFIX_BYTES:])
                return
            self._incoming = IncomingMessages(self._host.connection, self._stream, self._host.held, self._encoding)
        try:
            self._incoming.put(data)
            if not ended:
                return
            message = self._incoming.take()
            if message is None:
                raise RpcError(RpcCode.INTERNAL, "cardinality violation: received no request message")
            if not self._incoming.is_empty():
                raise RpcError(RpcCode.INTERNAL, "cardinality violation: received multiple request messages")
        except RpcError as error:
            self.fail(error)
            return
        self._incoming.close()
        self._incoming = None
        self._begin(message)

    def is_overdue(self, now: float) -> bool:
        """Whether the request has been incomplete for too long."""
        if self._incoming is not None:
            return self._incoming.is_overdue(now)
        return not self._begun and now - self._opened > PROXY_REQUEST_S

    def _begin(self, message: bytes) -> None:
        """Hand the request to its handler."""
        if self.ended:
            return
        host = self._host
        size = len(message)
        if not host.connection.share.make_room(size):
            self.fail(NO_ROOM)
            return
        host.running += 1
        self._begun = self._running = True
        self._size = size
        host.connection.share.begin_work(size)
        self._rpc.received += 1
        self._rpc.received_bytes += size
        if TRACEPARENT in self.metadata:
            with GivenParent(self.metadata[TRACEPARENT]):
                self._hand_over(message)
        else:
            self._hand_over(message)

    def _hand_over(self, message: bytes) -> None:
        direct = self._rpc.direct
        if direct is not None:
            try:
                if direct(message, self):
                    return
            except Exception as error:
                self.fail_by(error)
                return
        self._task = start_task(self._host.loop, self._run(message))

    async def _run(self, message: bytes) -> None:
        self._started = True
        unary = self._rpc.unary
        assert unary is not None
        try:
            self.answer(await unary(message, self))
        except asyncio.CancelledError:
            self.fail(SERVER_STOPPED)
            raise
        except Exception as error:
            self.fail_by(error)
        finally:
            # A task that was cancelled keeps the frames that it left, with long answers in them. Nothing may keep it.
            self._task = None

    # --- the answer --------------------------------------------------------------------------------------------------

    def answer(self, message: bytes) -> None:
        """End the call with its answer."""
        data = pack_message(message)
        host = self._host
        if self._running:
            self._stop_running()
        if not self.ended:
            self.ended = True
            rpc = self._rpc
            rpc.succeeded += 1
            rpc.sent += 1
            rpc.sent_bytes += len(message)
            if self.deadline != math.inf:
                host.deadlines.discard(self)
            host.answer(self._stream, ANSWER_HEAD, data, OK_TRAILERS)

    def fail(self, error: RpcError) -> None:
        """End the call without one."""
        if self._running:
            self._stop_running()
        if not self.ended:
            self._leave(error.code)
            self._host.connection.end(self._stream, encode_status(error, alone=True))

    def fail_by(self, error: Exception) -> None:
        """End the call as an exception of its handler does."""
        self.fail(end_of(self.method, error, self._host.log))

    def soon(self, work: Callable[[], None]) -> None:
        """Have something done once all has been taken in that was read with this call."""
        self._host.soon(work)

    def expire(self) -> None:
        """The deadline has passed."""
        self._end_from_outside(DEADLINE_EXCEEDED)

    def stop(self) -> None:
        """The proxy stops."""
        self._end_from_outside(SERVER_STOPPED)

    def receive_reset(self) -> None:
        """The client is gone, or wants no answer."""
        self._end_from_outside(CANCELED, told=False)

    def continue_sending(self) -> None:
        """The one answer waits for nothing."""

    def _end_from_outside(self, error: RpcError, *, told: bool = True) -> None:
        """End the call whatever its handler does; that counts as running until it has ended itself."""
        if self.ended:
            return
        self._leave(error.code)
        if told:
            self._host.connection.end(self._stream, encode_status(error, alone=True))
        if self._task is not None:
            self._task.cancel()
            if not self._started and self._running:  # then nothing of it will run
                self._task = None
                self._stop_running()
        if self.when_ended is not None:  # in a pass of its own, so that a mistake in it ends nothing else
            self._host.loop.call_soon(self.when_ended)

    def _stop_running(self) -> None:
        """The handler has ended: nothing of the request is needed any more."""
        host = self._host
        self._running = False
        host.running -= 1
        host.connection.share.end_work(self._size)

    def _leave(self, code: RpcCode) -> None:
        self.ended = True
        self._rpc.count_failure(code)
        self._host.deadlines.discard(self)
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None


class WireStreamCall(StreamCall):
    """A call with a stream of requests, answers, or both, that came by HTTP/2."""

    __slots__ = ("_host", "_incoming", "_reader", "_rpc", "_sender", "_size", "_started", "_stream", "_task")

    def __init__(self, host: CallHost, stream: Stream, head: RequestHead, rpc: RpcMethod, deadline: float) -> None:
        metadata, user = head.metadata, host.certificate_user
        super().__init__(rpc.path, _with_user(user, metadata) if user else metadata, deadline, host.client)
        self._host = host
        self._stream = stream
        self._rpc = rpc
        self._incoming = IncomingMessages(host.connection, stream, host.held, head.encoding)
        self._reader: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None
        self._size = 0
        """Of the message that the handler works at."""
        self._started = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the handler."""
        self._host.running += 1
        self._host.streaming += 1
        self._rpc.started += 1
        self._host.deadlines.add(self)
        with GivenParent(self.metadata.get(TRACEPARENT, "")):  # the task keeps it
            self._task = start_task(self._host.loop, self._run())

    async def _run(self) -> None:
        self._started = True
        handler = self._rpc.stream
        assert handler is not None
        try:
            await handler(self)
            if not self._stream.answered:
                self._host.connection.send_head(self._stream, ANSWER_HEAD)
            self._end(None)
        except asyncio.CancelledError:
            self._end(SERVER_STOPPED)
            raise
        except Exception as error:
            self._end(end_of(self.method, error, self._host.log))
        finally:
            self._task = None
            self._host.running -= 1
            self._host.streaming -= 1
            self._work_at(0)

    def _work_at(self, size: int) -> None:
        """The handler is done with the last message, and has one of this size."""
        share = self._host.connection.share
        if self._size:
            share.end_work(self._size)
        self._size = size
        if size:
            share.begin_work(size)

    async def receive(self) -> bytes | None:
        """The client's next message; ``None`` when it has sent all. It counts as held until the next is asked for."""
        self._work_at(0)
        while True:
            message = self._incoming.take()
            if message is not None:
                self._work_at(len(message))
                self._rpc.received += 1
                self._rpc.received_bytes += len(message)
                return message
            if self._stream.ended:
                return None
            if self.ended:
                raise RpcError(CANCELED.code, CANCELED.text)
            self._reader = self._host.loop.create_future()
            await self._reader

    async def send(self, message: bytes) -> None:
        """Send a message; waits while too much of what was sent before has not left."""
        if self.ended:
            raise RpcError(CANCELED.code, CANCELED.text)
        if not self._stream.answered:
            self._host.connection.send_head(self._stream, ANSWER_HEAD)
        self._host.connection.send_data(self._stream, pack_message(message))
        self._rpc.sent += 1
        self._rpc.sent_bytes += len(message)
        while self._stream.unsent > PROXY_STREAM_SEND_BYTES and not self.ended:
            self._sender = self._host.loop.create_future()
            await self._sender

    # --- what happens to the stream ----------------------------------------------------------------------------------

    def receive_data(self, data: bytes, ended: bool) -> None:
        """A part of the requests."""
        try:
            self._incoming.put(data)
        except RpcError as error:
            self._end_from_outside(error)
            return
        _wake(self._reader)

    def is_overdue(self, now: float) -> bool:
        """Whether a message has been incomplete for too long."""
        return not self._incoming.is_empty() and self._incoming.is_overdue(now) and not self._waits_for_handler()

    def _waits_for_handler(self) -> bool:
        """Whether the client waits for the handler to take what has come."""
        return self._reader is None or self._reader.done()

    def continue_sending(self) -> None:
        """There is room for messages."""
        _wake(self._sender)

    def expire(self) -> None:
        """The deadline has passed."""
        self._end_from_outside(DEADLINE_EXCEEDED)

    def stop(self) -> None:
        """The proxy stops."""
        self._end_from_outside(SERVER_STOPPED)

    def receive_reset(self) -> None:
        """The client is gone, or wants no more."""
        self._end_from_outside(CANCELED)

    def _end_from_outside(self, error: RpcError) -> None:
        if self.ended:
            return
        self._end(error)
        _wake(self._reader)
        _wake(self._sender)
        if self._task is not None:
            self._task.cancel()
            if not self._started:  # then nothing of it will run
                self._task = None
                self._host.running -= 1
                self._host.streaming -= 1
        if self.when_ended is not None:  # in a pass of its own, so that a mistake in it ends nothing else
            self._host.loop.call_soon(self.when_ended)

    def _end(self, error: RpcError | None) -> None:
        """The end of the answer. What was sent before goes out first."""
        if self.ended:
            return
        self.ended = True
        if error is None:
            self._rpc.succeeded += 1
        else:
            self._rpc.count_failure(error.code)
        self._host.deadlines.discard(self)
        self._incoming.close()
        trailers = OK_TRAILERS if error is None else encode_status(error, alone=not self._stream.answered)
        self._host.connection.end(self._stream, trailers)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def refuse(connection: Http2Connection[Any], stream: Stream, error: RpcError) -> None:
    """Answer a call that has no handler. What the client still sends is ignored."""
    connection.end(stream, encode_status(error, alone=True))
