"""The format of what travels on a lane, and one end of a lane.

The process that opens a lane sends a hello of fixed length: which process it is, and the token that an actor call gave
it. The member answers with one frame, whose payload is the proof that came with the token, so a process that has taken
over a dead member's address is detected too. After that, frames go both ways, each preceded by its length. A request
and its reply share a number; replies come in any order.

A :class:`Connection` never blocks: what the socket does not accept is kept and sent later. Many threads may write to
it, and one reads.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from ...limits import LANE_READ_BYTES, LANE_SILENCE_S, MAX_LANE_FRAME_BYTES
from ...schema.portable import Portable
from .lane_tls import LaneSocket, TlsSocket, TlsUnusable, tls_files, wrap_client

HAS_LANES = hasattr(select, "epoll") and hasattr(socket, "AF_UNIX")
"""Whether this platform supports lanes; without them everything goes by actor calls."""

SECRET_BYTES = 16
_MAGIC = b"RKlane\x00\x01"
_HELLO = struct.Struct(f"!8s{SECRET_BYTES}sQQ")
HELLO_BYTES = _HELLO.size
_HEADER = struct.Struct("!IQB")
HEADER_BYTES = _HEADER.size


class LaneBroken(Exception):
    """The lane has ended, or what arrived on it is not a valid frame."""


class LaneUnreachable(LaneBroken):
    """The address in an offer does not lead to the member that made it."""


class NoRoom(LaneBroken):
    """The member has no room for another lane; actor calls still work."""


class LaneOffer(Portable, frozen=True):
    """How to open one lane to a member; valid once, and for a few seconds."""

    cluster: int
    member: int
    node: str
    """Ray node id; on the same node ``local`` can be used."""
    local: str
    """Name of an abstract Unix socket; empty if there is none."""
    host: str
    port: int
    """Of TCP; 0 if there is none. It is opened for the first offer to a process on another node."""
    token: bytes
    proof: bytes
    """The payload of the member's answer."""
    certificate: bytes = b""
    """SHA-256 of the certificate that it shows on TCP; empty if it uses no TLS there."""


class Hello(NamedTuple):
    """The first bytes on a lane: which process opens it."""

    token: bytes
    peer: int
    """Member id, 0 for a client."""
    cluster: int


class FrameKind(enum.IntEnum):
    """The kind of a frame."""

    WELCOME = 0
    REQUEST = 1
    """A client's (``frames.Request``)."""
    REPLY = 2
    BY_CALL = 3
    """The reply is too large for a lane: repeat the request as an actor call."""
    MESSAGES = 4
    """A member's (``peer_frames.PeerFrame``)."""
    NO_ROOM = 5
    """Instead of a welcome."""


class LaneFrame(NamedTuple):
    """A frame that has arrived."""

    kind: int
    number: int
    payload: bytes


def pack_hello(hello: Hello) -> bytes:
    """A hello as it travels."""
    return _HELLO.pack(_MAGIC, *hello)


def unpack_hello(data: bytes) -> Hello | None:
    """The hello in these bytes; ``None`` if they are not one."""
    magic, token, peer, cluster = _HELLO.unpack(data)
    return Hello(token, peer, cluster) if magic == _MAGIC else None


def pack(kind: FrameKind, number: int, payload: bytes) -> bytes:
    """A frame as it travels.

    Raises:
        ValueError: it is longer than the other side accepts (``FrameDecoder``).
    """
    if len(payload) > MAX_LANE_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes")
    return _HEADER.pack(len(payload), number, kind) + payload


class FrameDecoder:
    """Splits a stream of bytes into frames.

    Args:
        limit: bytes of the longest frame that is accepted.
    """

    def __init__(self, limit: int = MAX_LANE_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._needed = HEADER_BYTES

    @property
    def buffered(self) -> int:
        """Bytes of a frame that has not arrived whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[LaneFrame]:
        """The frames that these bytes complete. What remains is kept, at most one frame's bytes.

        Raises:
            LaneBroken: one is longer than the limit.
        """
        whole: bytes | bytearray = data
        if not self._buffer and len(data) >= HEADER_BYTES:
            length, number, kind = _HEADER.unpack_from(data)
            if length == len(data) - HEADER_BYTES <= self._limit:  # mostly, one frame comes at a time
                return [LaneFrame(kind, number, data[HEADER_BYTES:])]
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return []
            whole = self._buffer
        frames: list[LaneFrame] = []
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
            frames.append(LaneFrame(kind, number, bytes(view[start:position])))
        rest = bytes(view[position:])
        view.release()
        self._buffer = bytearray(rest)
        return frames


class Connection:
    """One end of a lane.

    Args:
        sock: connected and not blocking, perhaps under TLS; the connection closes it.
        epoll: the connection registers here; the epoll's owner reads it.
    """

    def __init__(self, sock: LaneSocket, epoll: select.epoll) -> None:
        self.fd = sock.fileno()
        self._sock = sock
        self._epoll = epoll
        self._decoder = FrameDecoder()
        self._lock = threading.RLock()  # never taken twice: an RLock knows which thread holds it
        self._backlog: deque[bytes | memoryview] = deque()
        self._backlog_bytes = 0
        self._reading = True
        self._closed = False
        self.timed_out = False
        """Whether the connection has ended because the other side acknowledged nothing any more. Only the first read
        after it says so."""
        epoll.register(self.fd, select.EPOLLIN)

    @property
    def buffered(self) -> int:
        """Bytes that this end holds: of a frame that has not arrived whole, and of what could not be sent yet."""
        return self._decoder.buffered + self._backlog_bytes

    @property
    def backlog(self) -> int:
        """Bytes that could not be sent yet."""
        return self._backlog_bytes

    def is_held_here(self) -> bool:
        """Whether this thread was interrupted in the middle of sending, or of a change of who reads."""
        held: bool = self._lock._is_owned()  # type: ignore[attr-defined]
        return held

    def send(self, data: bytes) -> bool:
        """Send now what the socket accepts, and the rest later; False if the lane has ended, or if this thread was
        interrupted in the middle of sending. Any thread.

        Whole frames must reach the socket in order, so everything is queued after a backlog once there is one."""
        if self.is_held_here():
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
                    return False  # the thread that reads this connection will see its end
                if sent == len(data):
                    return True
                rest = memoryview(data)[sent:]
            self._backlog.append(rest)
            self._backlog_bytes += len(rest)
            if len(self._backlog) == 1:
                self._update_events(self._reading)
            return True

    def flush(self) -> None:
        """The socket is writable again: send the backlog."""
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
            self._update_events(self._reading)

    def receive(self) -> list[LaneFrame]:
        """The frames that one read completes.

        Raises:
            LaneBroken: the lane has ended.
        """
        try:
            data = self._sock.recv(LANE_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            self.timed_out = self.timed_out or isinstance(error, TimeoutError)
            raise LaneBroken(str(error)) from None
        if not data:
            raise LaneBroken("end of file")
        return self._decoder.feed(data)

    def set_reading(self, wanted: bool) -> None:
        """Read, or leave what arrives in the kernel, which then slows down the sender. Any thread."""
        with self._lock:
            if wanted is not self._reading:
                self._reading = False  # in between, an interrupted thread may leave it: then it is not known to be read
                self._update_events(wanted)
                self._reading = wanted

    def is_reading(self) -> bool:
        """Whether the connection is read."""
        return self._reading

    def shut_down(self, *, abruptly: bool = False) -> None:
        """Send no more: the other side sees the end of file once it has read everything. ``abruptly`` ends both
        directions, which the thread that reads this connection sees too. Any thread."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR if abruptly else socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket. For the thread that reads it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._backlog.clear()
                self._backlog_bytes = 0
                self._sock.close()  # which takes it off the epoll

    def close_in_child(self) -> None:
        """In a forked child: close the inherited socket without touching the parent's connection."""
        self._closed = True
        self._sock.close()

    def _update_events(self, reading: bool) -> None:
        """With the lock held: have the epoll wait for the events that are wanted now."""
        if not self._closed:
            mask = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if self._backlog else 0)
            self._epoll.modify(self.fd, mask)


def tune(sock: socket.socket) -> None:
    """For TCP: send small frames at once, and notice a host that has vanished."""
    if sock.family == socket.AF_INET or sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(LANE_SILENCE_S)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(LANE_SILENCE_S)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LANE_SILENCE_S * 1000))


def open_lane(
    offer: LaneOffer, node: str, peer: int, timeout: float, environment: Mapping[str, str] = os.environ
) -> LaneSocket:
    """Open the lane that was offered; blocks for at most ``timeout`` seconds.

    Args:
        node: the Ray node that this process is on.
        peer: the id of the member that opens it, 0 for a client.
        environment: says whether and how this process uses TLS (:mod:`lane_tls`).

    Returns:
        A socket that does not block.

    Raises:
        LaneUnreachable: no connection can be made, none with TLS as both ends want it, or not the process that made the
            offer answers there.
        LaneBroken: the process that made the offer, on this node, has stopped.
        NoRoom: the member has as many lanes as it can have.
    """
    deadline = time.monotonic() + timeout
    sock = _connect(offer, node, deadline)
    try:
        if sock.family != socket.AF_UNIX:
            sock = _secured(sock, offer, environment)
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
            raise LaneBroken("another process answers")
        sock.setblocking(False)
        return TlsSocket(sock) if isinstance(sock, ssl.SSLSocket) else sock
    except NoRoom:
        sock.close()
        raise
    except TlsUnusable as error:
        sock.close()
        raise LaneUnreachable(f"no TLS with member {offer.member}: {error}") from None
    except (OSError, LaneBroken) as error:
        local = sock.family == socket.AF_UNIX
        sock.close()
        if local:
            raise LaneBroken(f"no welcome: {error}") from None
        raise LaneUnreachable(f"{offer.host}, port {offer.port}, accepts, and does not answer: {error}") from None
    except BaseException:
        sock.close()
        raise


def _secured(sock: socket.socket, offer: LaneOffer, environment: Mapping[str, str]) -> socket.socket:
    """The socket under TLS if both ends want that, as it is if neither does."""
    files = tls_files(environment)
    if files is None and offer.certificate:
        raise TlsUnusable("it wants TLS, and this process has no certificate")
    if files is None:
        return sock
    if not offer.certificate:
        raise TlsUnusable("this process wants TLS, and it does not")
    return wrap_client(sock, files, offer.certificate)


def _connect(offer: LaneOffer, node: str, deadline: float) -> socket.socket:
    """Connect by Unix socket on the same node, else by TCP: whichever of the offered addresses works first."""
    addresses: list[tuple[socket.AddressFamily, str | tuple[str, int]]] = []
    if offer.local and offer.node == node:
        addresses.append((socket.AF_UNIX, "\0" + offer.local))
    if offer.port:
        addresses.append((socket.AF_INET6 if ":" in offer.host else socket.AF_INET, (offer.host, offer.port)))
    problem = "it has no address"
    for family, address in addresses:
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
    raise LaneUnreachable(f"{offer.host or 'its address'}, port {offer.port}, cannot be reached: {problem}")
