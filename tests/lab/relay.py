"""A proxy's relay for shells, over one member, on an event loop of its own; and one that hangs."""

from __future__ import annotations

import asyncio
import socket
import threading

import msgspec

from lab.onemember import OneMember
from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.relay_server import RelayServer
from raykeeper.actors.ray_view import ProxyInfo, RayNode, RayView, encode_ray_view
from raykeeper.actors.transport.relay import LENGTH, RelayMembers, RelayReply, RelayRequest
from raykeeper.errors import Unavailable

AROUND = RayView(
    nodes=(RayNode("ab12", "10.0.0.1", frozenset(("node:10.0.0.1",))),),
    placement=(),
    alarms=("a disk is slow",),
    situation=(),
    proxies=(ProxyInfo("proxy-ab12", "http://10.0.0.1:2379", "ab12", 4711, 1, 3),),
)


class LabRay:
    """What Ray knows, for a proxy (``RelayRay``)."""

    def __init__(self) -> None:
        self.around = AROUND
        self.moved: list[tuple[int, int]] = []

    def view_ray(self) -> bytes:
        return encode_ray_view(self.around)

    def move_leader(self, leader: int, target: int) -> None:
        self.moved.append((leader, target))
        if target != leader:
            raise Unavailable("there is one member")


class Served:
    """The relay; it serves until ``end``.

    Args:
        member: that frames go to.
        path: of the socket.
    """

    def __init__(self, member: OneMember, path: str) -> None:
        self.path = path
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.ray = LabRay()
        self.server = RelayServer(member, self.ray, MemberLog("proxy", member.name, "proxy"))
        asyncio.run_coroutine_threadsafe(self.server.start(self.path), self.loop).result(PATIENCE)

    def end(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.server.close(), self.loop).result(PATIENCE)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


class SilentProxy:
    """Tells one shell the members; then it takes in what comes, and answers nothing.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.taken = b""
        """What has come since, once the connection has ended."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rwb") as stream:
            (length,) = LENGTH.unpack(stream.read(LENGTH.size))
            request = msgspec.msgpack.decode(stream.read(length), type=RelayRequest)
            members = msgspec.msgpack.encode(RelayMembers("", {1: "m1"}))
            reply = msgspec.msgpack.encode(RelayReply(request.number, members))
            stream.write(LENGTH.pack(len(reply)) + reply)
            stream.flush()
            self.taken = stream.read()

    def wait_for_end(self) -> None:
        """Until the shell has closed its connection."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()
