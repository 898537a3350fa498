"""Accepts lanes to a member, from processes that show a token.

It listens on a Unix socket with an abstract name drawn at random: such a socket leaves no file when a process is
killed, and no process can take its name without knowing it. Once a process on another node asks for a lane, it listens
on TCP as well, at one address; where all is on one node, no port is ever opened.

Any process can connect to a port, so a connection is unauthenticated, and gets no answer, until it has shown a token
that an actor call gave out. Unauthenticated connections are few and have little time, and a new one displaces the
oldest, so that they cannot keep others out.

The loop's thread runs it; only offers are made on other threads.
"""

from __future__ import annotations

import secrets
import select
import socket
import threading
import time
from collections.abc import Callable

from ...limits import LANE_HELLO_TIMEOUT_S, LANE_TOKEN_TTL_S, MAX_LANE_TOKENS, MAX_UNAUTHENTICATED_LANES, TURN_EVENTS
from ..logs import MemberLog
from .lane import HELLO_BYTES, SECRET_BYTES, FrameKind, Hello, LaneOffer, pack, tune, unpack_hello


class Tokens:
    """Tokens that are valid once, and for ``LANE_TOKEN_TTL_S``; each with a proof, which the member sends in answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[bytes, tuple[float, bytes]] = {}

    def issue(self) -> tuple[bytes, bytes]:
        """A new token, and its proof. Any thread."""
        token, proof = secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES)
        now = self._clock()
        with self._lock:
            while self._open:
                oldest = next(iter(self._open))
                if len(self._open) < MAX_LANE_TOKENS and self._open[oldest][0] > now:
                    break
                del self._open[oldest]
            self._open[token] = now + LANE_TOKEN_TTL_S, proof
        return token, proof

    def redeem(self, token: bytes) -> bytes | None:
        """The proof of a token, which is void from now on; ``None`` if the token is not valid."""
        with self._lock:
            until, proof = self._open.pop(token, (0.0, b""))
        return proof if proof and self._clock() < until else None

    def __len__(self) -> int:
        return len(self._open)


class _Handshake:
    """A connection that has not shown a token yet."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock = sock
        self.until = until
        self.received = b""


class LaneListener:
    """See the module.

    Args:
        cluster, member: the member that listens.
        node: the Ray node that it is on.
        host: the address to listen on; empty to listen on the Unix socket only.
        ports: those that may be listened on; empty: any free one.
        epoll: the sockets are registered here; its owner calls :meth:`handle_event`.
        room: whether there is room for a connection with that descriptor, of a peer or of a client.
        admit: takes over a connection that has shown a token.
        clock: monotonic seconds.
        log: for what an operator should see.
    """

    def __init__(
        self,
        *,
        cluster: int,
        member: int,
        node: str,
        host: str,
        ports: range = range(0),
        epoll: select.epoll,
        room: Callable[[int, bool], bool],
        admit: Callable[[socket.socket, Hello], None],
        clock: Callable[[], float] = time.monotonic,
        log: MemberLog,
    ) -> None:
        self._log = log
        self._cluster = cluster
        self._member = member
        self._node = node
        self._epoll = epoll
        self._room = room
        self._admit = admit
        self._clock = clock
        self.tokens = Tokens(clock)
        self._unauthenticated: dict[int, _Handshake] = {}
        self._paused_until = 0.0
        self._local, self._host, self._port = "", host, 0
        self._ports = ports
        self._listeners: dict[int, socket.socket] = {}
        self._opening = threading.Lock()
        self._tried = not host
        self._listen_locally()

    def _listen_locally(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"raykeeper-{secrets.token_hex(SECRET_BYTES)}"
        try:
            sock.bind("\0" + name)
        except OSError:  # a kernel without abstract names: TCP will do
            sock.close()
            return
        self._local = name
        self._listen(sock)

    def _listen_on_port(self) -> None:
        """Listen on TCP, once. Any thread."""
        with self._opening:
            if self._tried:
                return
            self._tried = True
            problem: object = "there is none"
            for port in self._ports or (0,):
                sock = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
                # Two members never listen on one port, but one that is started again may do so at once.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((self._host, port))
                    self._listen(sock)
                except OSError as error:  # in use; or not an address of this machine: it is translated somewhere
                    sock.close()
                    problem = error
                else:
                    self._port = sock.getsockname()[1]
                    return
            where = f"ports {self._ports[0]}-{self._ports[-1]}" if self._ports else "any port"
            self._log.warning("cannot listen on %s of %s: %s; other nodes use actor calls", where, self._host, problem)

    def _listen(self, sock: socket.socket) -> None:
        sock.listen(MAX_UNAUTHENTICATED_LANES)
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def offer_lane(self, node: str) -> LaneOffer:
        """An offer to a process on that Ray node to open a lane, with a new token. Any thread."""
        if node != self._node or not self._local:
            self._listen_on_port()
        token, proof = self.tokens.issue()
        return LaneOffer(
            self._cluster, self._member, self._node, self._local, self._host, self._port, token=token, proof=proof
        )

    def owns(self, fd: int) -> bool:
        """Whether a descriptor is the listener's."""
        return fd in self._listeners or fd in self._unauthenticated

    def handle_event(self, fd: int) -> None:
        """Accept connections, or read the hello of one that was accepted."""
        handshake = self._unauthenticated.get(fd)
        if handshake is not None:
            self._read_hello(fd, handshake)
            return
        listener = self._listeners[fd]
        for _ in range(TURN_EVENTS):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors, say: pause, rather than try again and again
                self._log.warning("no connection can be accepted: %s", error)
                self._pause_accepting()
                return
            while len(self._unauthenticated) >= MAX_UNAUTHENTICATED_LANES:
                self._reject(next(iter(self._unauthenticated)))
            sock.setblocking(False)
            self._unauthenticated[sock.fileno()] = _Handshake(sock, self._clock() + LANE_HELLO_TIMEOUT_S)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read_hello(self, fd: int, handshake: _Handshake) -> None:
        """Admit the connection once its hello is whole and its token valid. A wrong hello is closed without an answer:
        an answer would tell a port scanner what listens here."""
        try:
            data = handshake.sock.recv(HELLO_BYTES - len(handshake.received))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        handshake.received += data
        if data and len(handshake.received) < HELLO_BYTES:
            return
        hello = unpack_hello(handshake.received) if data else None
        proof = self.tokens.redeem(hello.token) if hello is not None and hello.cluster == self._cluster else None
        if hello is None or proof is None:
            self._reject(fd)
            return
        del self._unauthenticated[fd]
        self._epoll.unregister(fd)
        room = self._room(fd, hello.peer != 0)
        try:
            tune(handshake.sock)
            handshake.sock.send(pack(FrameKind.WELCOME if room else FrameKind.NO_ROOM, self._member, proof))
        except OSError:
            room = False
        if room:
            self._admit(handshake.sock, hello)
        else:
            handshake.sock.close()

    def _reject(self, fd: int) -> None:
        self._unauthenticated.pop(fd).sock.close()

    def _pause_accepting(self) -> None:
        for fd in list(self._listeners):
            self._epoll.modify(fd, 0)
        self._paused_until = self._clock() + 1.0

    def expire_unauthenticated(self) -> None:
        """Reject connections that have shown no token in time, and accept again after a pause."""
        if not self._unauthenticated and not self._paused_until:
            return
        now = self._clock()
        while self._unauthenticated:
            fd, oldest = next(iter(self._unauthenticated.items()))
            if oldest.until > now:
                break
            self._reject(fd)
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            for fd in list(self._listeners):
                self._epoll.modify(fd, select.EPOLLIN)

    def close(self) -> None:
        """Accept nothing any more."""
        with self._opening:
            self._tried = True
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()
        for fd in list(self._unauthenticated):
            self._reject(fd)
