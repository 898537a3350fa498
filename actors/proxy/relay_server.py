"""The socket by which shells of this user on this node reach the members through a proxy: see ``transport/relay.py``.

It lies in the folder of the proxies' notices, which only this user may enter; a kernel that says who connects is asked
all the same. Nothing is kept but the requests under way, of which each connection may have ``MAX_RELAY_REQUESTS``.
Whose the requests are is said by the token in each: the proxy adds no rights.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import struct
from typing import Protocol, cast

import msgspec

from ...limits import (
    CLIENT_LOOKUP_TIMEOUT_S,
    LANE_OPEN_TIMEOUT_S,
    MAX_RELAY_CONNECTIONS,
    MAX_RELAY_FRAME_BYTES,
    MAX_RELAY_OFFERS,
    MAX_RELAY_REQUESTS,
    RELAY_LOOK_S,
    RELAY_MOVE_LEADER_S,
    RELAY_RAY_VIEW_S,
)
from ...proxy_notices import relay_path
from ..client.aio_timeout import on_thread, within
from ..deadline import covering, time_left
from ..logs import MemberLog
from ..ray_calls import in_time
from ..transport.client_transport import FrameSender, FrameTransport
from ..transport.lane import LaneOffer
from ..transport.relay import LENGTH, RelayKind, RelayMembers, RelayReply, RelayRequest

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RelayRequest).decode
_CREDENTIALS = struct.Struct("3i")


class MemberTransport(FrameTransport, Protocol):
    """What is needed of a hub's transport."""

    def ask_for_lane(self, member: int) -> concurrent.futures.Future[LaneOffer | None]:
        """Ask a member for a lane."""
        ...


class RelayRay(Protocol):
    """What only Ray can do."""

    def view_ray(self) -> bytes:
        """What it knows around the members: ``RayView``, encoded."""
        ...

    def move_leader(self, leader: int, target: int) -> None:
        """Have a member hand leadership to another one.

        Raises:
            Unavailable: it does not, or does not answer.
        """
        ...


class RelayServer:
    """See the module. Made and used on one event loop.

    Args:
        transport: to the members.
        ray: what only Ray can do; its calls may block, until the deadline of the current call.
        log: for an operator.
    """

    def __init__(self, transport: MemberTransport, ray: RelayRay, log: MemberLog) -> None:
        self._transport = transport
        self._ray = ray
        self._log = log
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._looking: concurrent.futures.Future[None] | None = None
        """The one look for the members, for all who ask meanwhile."""
        self._viewing: concurrent.futures.Future[bytes] | None = None
        """As well: what is around them."""
        self._moving: concurrent.futures.Future[None] | None = None
        """The one change of the leader that was asked for and has not begun."""
        self._offers: list[concurrent.futures.Future[LaneOffer | None]] = []
        """Of lanes, as they are being asked for."""
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
            offer = await self._offer(request.member)
            return b"" if offer is None else _encode(offer)
        if request.kind is RelayKind.RAY_VIEW:
            return await self._ray_view()
        if request.kind is RelayKind.MOVE_LEADER:
            await self._move_leader(request.member, int(request.frame))
            return b""
        if request.kind is RelayKind.REFRESH:
            await self._refresh()
        return _encode(RelayMembers(self._transport.node, self._transport.members()))

    # Ray may not answer for as long as it likes. So it is asked on threads of their own, which end at a deadline, and
    # of which there are few.

    async def _refresh(self) -> None:
        """Look the members up, for ``RELAY_LOOK_S`` at most: then the shell is told those that are known."""
        if self._looking is None or self._looking.done():
            self._looking = on_thread("raykeeper-relay-members", self._look_them_up)
        looking: asyncio.Future[None] = asyncio.wrap_future(self._looking)
        await within(RELAY_LOOK_S, looking)

    async def _ray_view(self) -> bytes:
        if self._viewing is None or self._viewing.done():
            self._viewing = on_thread("raykeeper-relay-view", self._view_ray_in_time)
        return await asyncio.shield(asyncio.wrap_future(self._viewing))  # others may wait for it

    def _view_ray_in_time(self) -> bytes:
        with covering(0.9 * RELAY_RAY_VIEW_S):
            return self._ray.view_ray()

    async def _move_leader(self, leader: int, target: int) -> None:
        if self._moving is not None and not self._moving.done():
            raise BlockingIOError("leadership is being moved")
        self._moving = on_thread("raykeeper-relay-leader", self._move_leader_in_time, leader, target)
        await asyncio.wrap_future(self._moving)

    def _move_leader_in_time(self, leader: int, target: int) -> None:
        with covering(RELAY_MOVE_LEADER_S):
            self._ray.move_leader(leader, target)

    def _look_them_up(self) -> None:
        with covering(CLIENT_LOOKUP_TIMEOUT_S):
            self._transport.refresh()

    async def _offer(self, member: int) -> LaneOffer | None:
        """A member's offer of a lane; none if too many are being asked for."""
        self._offers = [each for each in self._offers if not each.done()]
        if len(self._offers) >= MAX_RELAY_OFFERS:
            return None
        asked = on_thread("raykeeper-relay-lane", self._ask_for_lane, member)
        self._offers.append(asked)
        return await asyncio.wrap_future(asked)

    def _ask_for_lane(self, member: int) -> LaneOffer | None:
        with covering(LANE_OPEN_TIMEOUT_S):
            return in_time(self._transport.ask_for_lane, member).result(time_left())


async def relay_server(transport: object, ray: RelayRay, log: MemberLog) -> RelayServer | None:
    """Listen in the folder of the proxies' notices; ``None``, and a line in the log, if that is not possible."""
    if not hasattr(transport, "ask_for_lane"):  # a transport of tests
        return None
    server = RelayServer(cast("MemberTransport", transport), ray, log)
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
    """By the kernel's word; where it has none, the folder's mode must do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    sock: socket.socket = writer.get_extra_info("socket")
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())
