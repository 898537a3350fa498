"""Lanes without Ray: real sockets, and a thread in place of a member's loop."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from lab import patience
from lab.patience import PATIENCE
from raykeeper.actors.transport.lane import (
    FrameDecoder,
    FrameKind,
    open_lane,
    pack,
)
from raykeeper.actors.transport.lane_server import LaneServer
from raykeeper.actors.transport.lane_tls import ServerTls
from raykeeper.schema.replies import SlowReply

CLUSTER = 77


def until(condition: Callable[[], object], what: str = "") -> None:
    patience.until(condition, what=what)


class LaneHost:
    """A member's lanes with a thread in place of its loop."""

    def __init__(
        self,
        member: int = 1,
        submit: Callable[..., None] | None = None,
        ports: range = range(0),
        tls: ServerTls | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.now = 0.0
        self.member = member
        self.asked: list[bytes] = []
        self.sources: list[str] = []
        """Where they came from."""
        self.open: list[tuple[bytes, Callable[[Any], None]]] = []
        self.heard: list[bytes] = []
        self.news: list[tuple[str, int]] = []
        self.todo: list[Callable[[], None]] = []
        self.lanes = LaneServer(
            cluster=CLUSTER,
            member=member,
            node="here",
            host=host,
            ports=ports,
            tls=tls,
            clock=lambda: self.now,
        )
        self._submit = submit or self._echo
        self.lost: Callable[[int], None] = lambda peer: None
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _echo(self, frame: bytes, done: Callable[[Any], None]) -> None:
        self.asked.append(frame)
        if frame.startswith(b"later"):
            self.open.append((frame, done))
        elif frame.startswith(b"slow"):
            done(SlowReply(lambda: frame + b" by " + threading.current_thread().name.encode()))
        else:
            done(lambda: b"re " + frame)

    def _run(self) -> None:
        while not self._stop:
            arrived = self.lanes.serve(self.lanes.wait(0.02), clients=True)
            self.heard += arrived.frames
            for kind in ("peers_connected", "lanes_lost", "peers_gone"):
                self.news += [(kind, peer) for peer in getattr(arrived, kind)]
            for peer in arrived.lanes_lost:
                self.lost(peer)
            for frame, done, lane in arrived.requests:
                self.sources.append(lane.source)
                self._submit(frame, done)
            while self.todo:
                self.todo.pop(0)()

    def do(self, what: Callable[[], None]) -> None:
        """Have the loop do something."""
        self.todo.append(what)
        self.lanes.wake()

    def end_loop(self) -> None:
        """From now on the test makes the turns."""
        self._stop = True
        self.lanes.wake()
        self._thread.join(PATIENCE)

    def close(self) -> None:
        self.end_loop()
        self.lanes.close()

    def client(self, node: str = "here", peer: int = 0) -> LaneEnd:
        return LaneEnd(open_lane(self.lanes.offer_lane(node, peer=peer != 0), node, peer, PATIENCE))

    def unauthenticated(self) -> socket.socket:
        offer = self.lanes.offer_lane("")
        sock = socket.create_connection((offer.host, offer.port), PATIENCE)
        sock.settimeout(PATIENCE)
        return sock


class LaneEnd:
    """One end of a lane, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE)
        self._decoder = FrameDecoder()
        self._frames: list[Any] = []

    def send(self, number: int, frame: bytes, kind: FrameKind = FrameKind.REQUEST) -> None:
        self.sock.sendall(pack(kind, number, frame))

    def receive(self) -> tuple[int, int, bytes]:
        while not self._frames:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        frame: tuple[int, int, bytes] = self._frames.pop(0)
        return frame

    def ask(self, number: int, frame: bytes) -> bytes:
        self.send(number, frame)
        kind, answered, reply = self.receive()
        assert (kind, answered) == (FrameKind.REPLY, number)
        return reply

    def close(self) -> None:
        self.sock.close()


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side closed without a word."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
