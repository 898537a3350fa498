"""One request of plain HTTP and its answer, whatever version of HTTP carries them: what the JSON gateway is written to.

The proxy is given one handler for all of them, ``async def handler(exchange: HttpExchange) -> None``. It runs on the
proxy's loop and is cancelled when its client is gone.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from ...limits import MAX_RPC_MESSAGE_BYTES
from ..logs import MemberLog


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
    """

    def __init__(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.started = False
        self.status = 0
        self.added: Mapping[str, str] = {}

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

        Raises:
            HttpError: 413, it has more than ``MAX_RPC_MESSAGE_BYTES``.
        """
        parts: list[bytes] = []
        size = 0
        while part := await self.receive():
            size += len(part)
            if size > MAX_RPC_MESSAGE_BYTES:
                raise HttpError(413, "request is too large")
            parts.append(part)
        return b"".join(parts)

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
