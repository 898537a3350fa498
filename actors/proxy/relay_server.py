"""The socket by which shells of this user on this node reach the members through a proxy: see ``transport/relay.py``.

It lies in the folder of the proxies' notices, which only this user may enter; the kernel is asked who connects all the
same. Nothing is kept but the requests under way, of which each connection may have ``MAX_RELAY_REQUESTS``. Whose the
requests are is said by the token in each: the proxy adds no rights.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from concurrent.futures import Future
from typing import Protocol, cast

import msgspec

from ...limits import (
    LANE_OPEN_TIMEOUT_S,
    MAX_RELAY_CONNECTIONS,
    MAX_RELAY_FRAME_BYTES,
    MAX_RELAY_REQUESTS,
)
from ...proxy_notices import relay_path
from ..logs import MemberLog
from ..transport.client_transport import FrameSender, FrameTransport
from ..transport.lane import LaneOffer
from ..transport.relay import LENGTH, RelayKind, RelayMembers, RelayReply, RelayRequest

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RelayRequest).decode
_CREDENTIALS = struct.Struct("3i")


class MemberTransport(FrameTransport, Protocol):
    """What is needed of a hub's transport."""

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        """Ask a member for a lane."""
        ...


class RelayServer:
    """See the module. Made and used on one event loop.

    Args:
        transport: to the members.
        log: for an operator.
    """

    def __init__(self, transport: MemberTransport, log: MemberLog) -> None:
        self._transport = transport
        self._log = log
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.path = ""
        """Of the socket."""

    async def start(self, path: str) -> None:
        """Listen.

        Raises:
            OSError: it cannot be had; a path may have some hundred bytes.
        """
        self._server = await asyncio.start_unix_server(self._accept, path)
        self.path = path

    async def close(self) -> None:
        """Close the socket and all connections."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) <= MAX_RELAY_CONNECTIONS and _is_of_this_user(writer):
                await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError, asyncio.CancelledError):
            pass  # it has ended, or sent something else
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = asyncio.Semaphore(MAX_RELAY_REQUESTS)
        answering: set[asyncio.Task[None]] = set()
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                if length > MAX_RELAY_FRAME_BYTES:
                    return
                request = _decode(await reader.readexactly(length))
                await room.acquire()
                # Frames are handed on here: the last ones of a shell come with the end of its connection.
                task = asyncio.create_task(self._answer(request.number, self._ask(request), writer))
                answering.add(task)
                task.add_done_callback(answering.discard)
                task.add_done_callback(lambda _: room.release())
        finally:
            for task in list(answering):
                task.cancel()

    async def _answer(self, number: int, answer: asyncio.Future[bytes], writer: asyncio.StreamWriter) -> None:
        try:
            reply = RelayReply(number, await answer)
        except Exception as error:  # Ray's, of many kinds
            reply = RelayReply(number, error=f"{type(error).__name__}: {error}")
        data = _encode(reply)
        with contextlib.suppress(OSError):
            writer.write(LENGTH.pack(len(data)) + data)
            await writer.drain()

    def _ask(self, request: RelayRequest) -> asyncio.Future[bytes]:
        """Begin to do what was asked for."""
        if request.kind is RelayKind.REQUEST:
            return _sent(self._transport.send, request)
        if request.kind is RelayKind.POLL:
            return _sent(self._transport.poll, request)
        return asyncio.ensure_future(self._look(request))

    async def _look(self, request: RelayRequest) -> bytes:
        if request.kind is RelayKind.LANE:
            offer = await asyncio.to_thread(self._offer, request.member)
            return b"" if offer is None else _encode(offer)
        if request.kind is RelayKind.REFRESH:
            await asyncio.to_thread(self._transport.refresh)
        return _encode(RelayMembers(self._transport.node, self._transport.members()))

    def _offer(self, member: int) -> LaneOffer | None:
        return self._transport.ask_for_lane(member).result(LANE_OPEN_TIMEOUT_S)


async def relay_server(transport: object, log: MemberLog) -> RelayServer | None:
    """Listen in the folder of the proxies' notices; ``None``, and a line in the log, if that is not possible."""
    if not hasattr(transport, "ask_for_lane"):  # a transport of tests
        return None
    server = RelayServer(cast("MemberTransport", transport), log)
    try:
        await server.start(relay_path())
    except OSError as error:
        log.warning("shells on this node go by Ray: %s", error)
        return None
    return server


def _sent(send: FrameSender, request: RelayRequest) -> asyncio.Future[bytes]:
    """Hand on a frame; the reply of the member is to come."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def settle(reply: bytes | Exception) -> None:
        if future.done():  # the shell has gone
            return
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def done(reply: bytes | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, reply)

    try:
        send(request.member, request.frame, done)
    except Exception as error:  # there is no such member
        settle(error)
    return future


def _is_of_this_user(writer: asyncio.StreamWriter) -> bool:
    """By the kernel's word."""
    sock: socket.socket = writer.get_extra_info("socket")
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())
