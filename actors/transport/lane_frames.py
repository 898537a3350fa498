"""What travels on a lane, and one end of it.

Whoever opens a lane says hello in a fixed number of bytes: who it is, and the token that an actor call gave it. The
member answers with one frame, whose payload is the other half of what that call told: so a stranger who has taken over
a dead member's address is found out too. From then on frames go both ways, each with its length before it. A request
and its reply share a number; replies come in any order.

A :class:`Wire` never blocks: what the socket does not take is kept until it does. It may be written by many threads,
and is read by one.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import NamedTuple

from ...limits import LANE_READ_BYTES, LANE_SILENCE, MAX_LANE_FRAME_BYTES
from ...store.portable import Portable

HAS_LANES = hasattr(select, "epoll") and hasattr(socket, "AF_UNIX")
"""Whether this platform has what lanes are made of; without it all goes by actor calls."""

SECRET_BYTES = 16
_MAGIC = b"RKlane\x00\x01"
_HELLO = struct.Struct(f"!8s{SECRET_BYTES}sQQ")
HELLO_BYTES = _HELLO.size
_HEADER = struct.Struct("!IQB")
HEADER_BYTES = _HEADER.size


class LaneBroken(Exception):
    """The lane has ended, or what came over it is no frame."""


class NoRoom(LaneBroken):
    """The member has no room for another lane; it can be spoken to by actor calls."""


class LaneOffer(Portable, frozen=True):
    """How to open one lane to a member; good once, and for a few seconds."""

    cluster: int
    member: int
    node: str
    """Ray node id: on the same node ``local`` will do."""
    local: str
    """Name of an abstract Unix socket; empty if there is none."""
    host: str
    port: int
    """Of TCP; 0 if there is none."""
    token: bytes
    proof: bytes
    """What the member will answer."""


class Hello(NamedTuple):
    """Who opens a lane."""

    token: bytes
    peer: int
    """Member id, 0 for a client."""
    cluster: int


class FrameKind(enum.IntEnum):
    """What a frame is."""

    WELCOME = 0
    REQUEST = 1
    """A client's (``protocol.Request``)."""
    REPLY = 2
    BY_CALL = 3
    """The reply is too large for a lane: ask by an actor call."""
    MESSAGES = 4
    """A member's (``seam.Frame``)."""
    NO_ROOM = 5
    """Instead of a welcome."""


class Received(NamedTuple):
    """A frame that has arrived."""

    kind: int
    number: int
    payload: bytes


def pack_hello(hello: Hello) -> bytes:
    """The first bytes on a lane."""
    return _HELLO.pack(_MAGIC, *hello)


def unpack_hello(data: bytes) -> Hello | None:
    """The inverse; ``None`` for anything else."""
    magic, token, peer, cluster = _HELLO.unpack(data)
    return Hello(token, peer, cluster) if magic == _MAGIC else None


def pack(kind: FrameKind, number: int, payload: bytes) -> bytes:
    """A frame as it travels."""
    return _HEADER.pack(len(payload), number, kind) + payload


class Splitter:
    """Makes frames of a stream of bytes.

    Args:
        limit: bytes of the longest frame that is taken.
    """

    def __init__(self, limit: int = MAX_LANE_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._needed = HEADER_BYTES

    @property
    def buffered(self) -> int:
        """Bytes of a frame that has not come in whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Received]:
        """The frames that are complete with these bytes.

        Raises:
            LaneBroken: one is longer than the limit.
        """
        whole: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return []
            whole = self._buffer
        frames: list[Received] = []
        position, end = 0, len(whole)
        view = memoryview(whole)
        self._needed = HEADER_BYTES
        while end - position >= HEADER_BYTES:
            length, number, kind = _HEADER.unpack_from(whole, position)
            if length > self._limit:
                raise LaneBroken(f"a frame of {length} bytes")
            start = position + HEADER_BYTES
            if end - start < length:
                self._needed = HEADER_BYTES + length
                break
            position = start + length
            frames.append(Received(kind, number, bytes(view[start:position])))
        rest = bytes(view[position:])
        view.release()
        self._buffer = bytearray(rest)
        return frames


class Wire:
    """One end of a lane, watched by an epoll.

    Args:
        sock: connected and not blocking; the wire closes it.
        watch: the epoll whose owner reads this wire.
    """

    def __init__(self, sock: socket.socket, watch: select.epoll) -> None:
        self.fd = sock.fileno()
        self._sock = sock
        self._watch = watch
        self._splitter = Splitter()
        self._lock = threading.RLock()  # nobody takes it twice: it knows who holds it
        self._backlog: deque[bytes | memoryview] = deque()
        self._backlog_bytes = 0
        self._reading = True
        self._closed = False
        watch.register(self.fd, select.EPOLLIN)

    @property
    def buffered(self) -> int:
        """Bytes that this end keeps: of a frame that has not come in whole, and of what could not be sent yet."""
        return self._splitter.buffered + self._backlog_bytes

    @property
    def backlog(self) -> int:
        """Bytes that could not be sent yet."""
        return self._backlog_bytes

    def send(self, data: bytes) -> bool:
        """Send now what the socket takes, and the rest when it can; False if the lane has ended, or if this thread was
        interrupted in the middle of sending. Any thread."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return False
        with self._lock:
            if self._closed:
                return False
            rest: bytes | memoryview = data
            if not self._backlog:
                try:
                    sent = self._sock.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    return False  # whoever reads this wire will see its end
                if sent == len(data):
                    return True
                rest = memoryview(data)[sent:]
            self._backlog.append(rest)
            self._backlog_bytes += len(rest)
            if len(self._backlog) == 1:
                self._follow()
            return True

    def flush(self) -> None:
        """The socket can be written again: send what waits."""
        with self._lock:
            while self._backlog and not self._closed:
                data = self._backlog[0]
                try:
                    sent = self._sock.send(data)
                except BlockingIOError:
                    return
                except OSError:
                    self._backlog.clear()
                    self._backlog_bytes = 0
                    break
                self._backlog_bytes -= sent
                if sent < len(data):
                    self._backlog[0] = memoryview(data)[sent:]
                    return
                self._backlog.popleft()
            self._follow()

    def receive(self) -> list[Received]:
        """The frames that one read completes.

        Raises:
            LaneBroken: the lane has ended.
        """
        try:
            data = self._sock.recv(LANE_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LaneBroken(str(error)) from None
        if not data:
            raise LaneBroken("end of file")
        return self._splitter.feed(data)

    def read(self, wanted: bool) -> None:
        """Read on, or leave what comes in the kernel, which then holds the sender up. Any thread."""
        with self._lock:
            if wanted is not self._reading:
                self._reading = wanted
                self._follow()

    def is_reading(self) -> bool:
        """Whether what comes is read."""
        return self._reading

    def finish(self, *, abruptly: bool = False) -> None:
        """Send no more: the other side sees the end of file once it has read everything. ``abruptly`` ends both ways,
        which whoever reads this wire sees too. Any thread."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR if abruptly else socket.SHUT_WR)

    def close(self) -> None:
        """End the lane. For the thread that reads it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._backlog.clear()
                self._backlog_bytes = 0
                self._sock.close()  # which takes it off the epoll

    def forget(self) -> None:
        """In a forked child: let go of the parent's socket, without a trace on it."""
        self._closed = True
        self._sock.close()

    def _follow(self) -> None:
        """With the lock held: wait for what is wanted."""
        if not self._closed:
            mask = (select.EPOLLIN if self._reading else 0) | (select.EPOLLOUT if self._backlog else 0)
            self._watch.modify(self.fd, mask)


def tune(sock: socket.socket) -> None:
    """Small frames go at once, and a host that is gone without a word is noticed."""
    if sock.family == socket.AF_INET or sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(LANE_SILENCE)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(LANE_SILENCE)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LANE_SILENCE * 1000))


def open_lane(offer: LaneOffer, node: str, peer: int, timeout: float) -> socket.socket:
    """Open the lane that was offered, for a member or (``peer`` 0) a client; blocks for ``timeout`` seconds at most.

    Args:
        node: the Ray node that this process is on.

    Returns:
        a socket that no longer blocks.

    Raises:
        LaneBroken: nobody listens there, or not who made the offer.
        NoRoom: the member has as many lanes as it can have.
    """
    deadline = time.monotonic() + timeout
    sock = _connect(offer, node, deadline)
    try:
        sock.sendall(pack_hello(Hello(offer.token, peer, offer.cluster)))
        expected = pack(FrameKind.WELCOME, offer.member, offer.proof)
        answer = b""
        while len(answer) < len(expected):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            part = sock.recv(len(expected) - len(answer))
            if not part:
                raise LaneBroken("the member closed the lane")
            answer += part
        if answer == pack(FrameKind.NO_ROOM, offer.member, offer.proof):
            raise NoRoom(f"member {offer.member} has no room for another lane")
        if answer != expected:
            raise LaneBroken("somebody else answers")
        sock.setblocking(False)
        return sock
    except OSError as error:
        sock.close()
        raise LaneBroken(f"no welcome: {error}") from None
    except BaseException:
        sock.close()
        raise


def _connect(offer: LaneOffer, node: str, deadline: float) -> socket.socket:
    ways: list[tuple[socket.AddressFamily, str | tuple[str, int]]] = []
    if offer.local and offer.node == node:
        ways.append((socket.AF_UNIX, "\0" + offer.local))
    if offer.port:
        ways.append((socket.AF_INET6 if ":" in offer.host else socket.AF_INET, (offer.host, offer.port)))
    problem = "there is no way to it"
    for family, address in ways:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor is left
            problem = str(error)
            continue
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(address)
            tune(sock)
            return sock
        except OSError as error:
            sock.close()
            problem = str(error)
    raise LaneBroken(f"member {offer.member} cannot be reached: {problem}")
