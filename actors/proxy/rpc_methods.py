"""What services register: methods by path, each with a handler, and what a handler knows of its call.

A handler is one of three kinds:

- *unary*: ``async def handler(request: bytes, call: RpcCall) -> bytes``;
- *direct*: ``def handler(request: bytes, call: UnaryCall) -> bool``, which ends the call at once or later, from the
  loop's thread, by ``call.answer`` or ``call.fail``. It costs no task, so it is for calls that come by the thousand. If
  it returns False it has done nothing, and the method's coroutine has to answer the call;
- *stream*: ``async def handler(call: StreamCall) -> None``, for streams of requests, of answers, or of both.

All run on the proxy's loop. A coroutine is cancelled when its client is gone or its deadline has passed; a direct
handler may ask to be told (``call.when_ended``). What a handler raises as :class:`RpcError` reaches the client; any
other exception is logged, and the client gets ``UNKNOWN``.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Final, TypeAlias

from .rpc_status import RpcCode, RpcError

CERTIFICATE_USER = ":certificate-user"
"""The name in a call's metadata of the user whom the client's certificate names. No client can send such a name."""


class RpcCall:
    """What a handler knows of its call.

    Attributes:
        method: the path, ``/etcdserverpb.KV/Range``.
        metadata: the first value of each name, in lower case. Not to be changed.
        client: the address that it came from, for people.
        deadline: in seconds of ``time.monotonic``; infinity if the client named none.
        ended: whether the call is over, so that nobody waits for an answer.
        when_ended: called once if the call ends in another way than by its handler.
    """

    __slots__ = ("client", "deadline", "ended", "metadata", "method", "when_ended")

    def __init__(self, method: str, metadata: Mapping[str, str], deadline: float = math.inf, client: str = "") -> None:
        self.method = method
        self.metadata = metadata
        self.client = client
        self.deadline = deadline
        self.ended = False
        self.when_ended: Callable[[], None] | None = None

    def time_left(self) -> float:
        """Seconds until the deadline, not less than 0."""
        return max(0.0, self.deadline - time.monotonic())


class UnaryCall(RpcCall, ABC):
    """A call with one request and one answer. Once it has ended, :meth:`answer` and :meth:`fail` do nothing."""

    __slots__ = ()

    @abstractmethod
    def answer(self, message: bytes) -> None:
        """End the call with its answer."""

    @abstractmethod
    def fail(self, error: RpcError) -> None:
        """End the call without one."""

    @abstractmethod
    def fail_by(self, error: Exception) -> None:
        """End the call as an exception of its handler does."""

    @abstractmethod
    def soon(self, work: Callable[[], None]) -> None:
        """For a direct handler, before it returns: have something done once all requests have been handed to their
        handlers that were read with this one."""


class StreamCall(RpcCall, ABC):
    """A call in which either side may send many messages."""

    __slots__ = ()

    @abstractmethod
    async def receive(self) -> bytes | None:
        """The client's next message; ``None`` when it has sent all.

        Raises:
            RpcError: what came is not a message; the handler should let it through.
        """

    @abstractmethod
    async def send(self, message: bytes) -> None:
        """Send a message; waits while too much of what was sent before has not left.

        Raises:
            RpcError: the call has ended.
        """

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The client's messages to the last one."""
        return self._messages()

    async def _messages(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message


UnaryHandler: TypeAlias = Callable[[bytes, RpcCall], Awaitable[bytes]]
DirectHandler: TypeAlias = Callable[[bytes, UnaryCall], bool]
StreamHandler: TypeAlias = Callable[[StreamCall], Awaitable[None]]


class RpcMethod:
    """A registered method; one of the handlers is set, or a direct one and the coroutine for what that leaves. What
    becomes of its calls is counted here.

    Attributes:
        kind: unary, server_stream, client_stream or bidi_stream.
        started: calls so far...
        succeeded: ... and how many of them have ended well...
        failed: ... or with which code.
        received, sent: messages...
        received_bytes, sent_bytes: ... and their bytes.
    """

    __slots__ = (
        "direct",
        "failed",
        "kind",
        "path",
        "received",
        "received_bytes",
        "sent",
        "sent_bytes",
        "started",
        "stream",
        "succeeded",
        "unary",
    )

    def __init__(
        self,
        path: str,
        *,
        unary: UnaryHandler | None = None,
        direct: DirectHandler | None = None,
        stream: StreamHandler | None = None,
        kind: str = "unary",
    ) -> None:
        self.path: Final = path
        self.kind: Final = kind
        self.started = self.succeeded = self.received = self.sent = self.received_bytes = self.sent_bytes = 0
        self.failed: dict[RpcCode, int] = {}
        self.unary: Final = unary
        self.direct: Final = direct
        self.stream: Final = stream

    def count_failure(self, code: RpcCode) -> None:
        """A call has ended without success."""
        self.failed[code] = self.failed.get(code, 0) + 1


class RpcMethods:
    """The methods that a proxy serves. All are added before it listens."""

    def __init__(self) -> None:
        self._methods: dict[str, RpcMethod] = {}
        self._services: set[str] = set()

    def add_unary(self, path: str, handler: UnaryHandler, direct: DirectHandler | None = None) -> None:
        """Serve a method by a coroutine, or by a function those of its calls that this takes."""
        self._add(RpcMethod(path, unary=handler, direct=direct))

    def add_direct(self, path: str, handler: DirectHandler) -> None:
        """Serve a unary method by a function, which takes every call."""
        self._add(RpcMethod(path, direct=handler))

    def add_stream(self, path: str, handler: StreamHandler, kind: str = "bidi_stream") -> None:
        """Serve a method with a stream of requests or of answers."""
        self._add(RpcMethod(path, stream=handler, kind=kind))

    def all(self) -> Collection[RpcMethod]:
        """Those that are served."""
        return self._methods.values()

    def get(self, path: str) -> RpcMethod | None:
        """The method with that path, if it is served."""
        return self._methods.get(path)

    def _add(self, method: RpcMethod) -> None:
        assert method.path not in self._methods, method.path
        self._methods[method.path] = method
        self._services.add(method.path[1:].rpartition("/")[0])

    def find(self, path: str) -> RpcMethod:
        """The method with that path.

        Raises:
            RpcError: there is none; the text is that of gRPC for Go.
        """
        method = self._methods.get(path)
        if method is not None:
            return method
        service, slash, name = path.removeprefix("/").rpartition("/")
        if not slash:
            text = f'malformed method name: "{path}"'
        elif service not in self._services:
            text = f"unknown service {service}"
        else:
            text = f"unknown method {name} for service {service}"
        raise RpcError(RpcCode.UNIMPLEMENTED, text)
