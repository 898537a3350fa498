"""One request of plain HTTP and its answer, whatever version of HTTP carries them: what the JSON gateway is written to.

The proxy is given one handler for all of them, ``async def handler(exchange: HttpExchange) -> None``. It runs on the
proxy's loop and is cancelled when its client is gone.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from ...limits import MAX_RPC_MESSAGE_BYTES, PROXY_REQUEST_S
from ..logs import MemberLog
from .held_bytes import ByteShare


class HttpError(Exception):
    """A request ends with an error that is plain text.

    Attributes:
        status: the HTTP status.
        text: the body.
        headers: of the answer, beside its content type.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = headers or {}


class ClientGone(Exception):
    """Nobody takes the answer any more."""


class HttpExchange(ABC):
    """See the module.

    Attributes:
        method: ``GET``.
        path: of the target, as it was sent: still percent-encoded.
        query: what follows its first question mark, still encoded.
        headers: the first value of each name, in lower case; ``host`` whatever the version calls it.
        started: whether an answer has begun.
        status: its status; 0 before.
        added: headers that every answer gets, whatever it is.
        client: the address that it came from, for people.
        share: where what is kept for the client is counted.
    """

    def __init__(
        self, method: str, target: str, headers: Mapping[str, str], share: ByteShare, client: str = ""
    ) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.started = False
        self.status = 0
        self.added: Mapping[str, str] = {}
        self.share = share
        self.client = client
        self._body_bytes = 0
        self._body_due = 0.0

    @abstractmethod
    async def receive(self) -> bytes:
        """The next part of the request's body; empty when all of it was given."""

    @abstractmethod
    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer. Without a ``content-length`` its body may have any length."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """A part of the answer's body; waits while too much of what was sent before has not left.

        Raises:
            ClientGone: nobody takes it; the handler should let it through.
        """

    @abstractmethod
    async def finish(self) -> None:
        """The end of the answer. The proxy calls it when a handler returns."""

    @abstractmethod
    def abort(self) -> None:
        """End an answer that has begun and cannot be completed, so that the client can tell."""

    async def body(self) -> bytes:
        """The whole body of the request.

        It counts as held until the request is answered.

        Raises:
            HttpError: 413, it has more than ``MAX_RPC_MESSAGE_BYTES``; 429, there is no room for it now.
        """
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > MAX_RPC_MESSAGE_BYTES:
            raise HttpError(413, "request is too large")
        body = bytearray()
        self._body_due = time.monotonic() + PROXY_REQUEST_S
        try:
            while part := await self.receive():
                if len(body) + len(part) > MAX_RPC_MESSAGE_BYTES:
                    raise HttpError(413, "request is too large")
                if not self.share.make_room(len(part)):
                    raise HttpError(429, "too many requests")
                body += part
                self._body_bytes += len(part)
                self.share.begin_work(len(part))
        finally:
            self._body_due = 0.0
        return bytes(body)

    def is_body_overdue(self, now: float) -> bool:
        """Whether a body that is read as a whole has been incomplete for too long, however it comes."""
        return 0 < self._body_due < now

    def release(self) -> None:
        """The request is over: its body is no longer needed."""
        self.share.end_work(self._body_bytes)
        self._body_bytes, self._body_due = 0, 0.0

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """A whole answer."""
        await self.start(status, {**headers, "content-length": str(len(body))})
        await self.send(body)
        await self.finish()


HttpHandler: TypeAlias = Callable[[HttpExchange], Awaitable[None]]


async def answer_not_found(exchange: HttpExchange) -> None:
    """The handler of a proxy that serves gRPC alone."""
    raise HttpError(404, "404 page not found\n")


async def run_exchange(exchange: HttpExchange, handler: HttpHandler, log: MemberLog) -> None:
    """Let the handler answer; where it does not, answer for it."""
    try:
        await _run(exchange, handler, log)
    finally:
        exchange.release()


async def _run(exchange: HttpExchange, handler: HttpHandler, log: MemberLog) -> None:
    failure: HttpError | None = None
    try:
        await handler(exchange)
        if exchange.started:
            await exchange.finish()
        else:
            failure = HttpError(500, "no answer\n")
    except HttpError as error:
        failure = error
    except ClientGone:
        return
    except Exception as error:
        log.log(logging.ERROR, "%s failed", exchange.path[:100], exc_info=error)
        failure = HttpError(500, "internal error\n")
    if failure is None:
        return
    if exchange.started:
        exchange.abort()
    else:
        headers = {"content-type": "text/plain; charset=utf-8", **failure.headers}
        await exchange.respond(failure.status, failure.text.encode(), headers)
