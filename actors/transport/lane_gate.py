"""The gate of a member's lanes: where it listens, and who is let in.

It listens on TCP, at the Ray node's own address, and on a Unix socket with an abstract name drawn at random: such a
socket leaves no file behind when a process is killed, and nobody can take its name who was not told it. A port is open
to everybody, so whoever comes is a stranger until the token is shown that an actor call gave out, and is told nothing
before. Strangers are few, have little time, and a new one pushes out the oldest, so that they cannot keep others out.

The loop's thread runs it; only tokens are given out on other threads.
"""

from __future__ import annotations

import secrets
import select
import socket
import threading
import time
from collections.abc import Callable

from ...limits import LANE_HELLO_TIMEOUT, LANE_TOKEN_TTL, MAX_LANE_STRANGERS, MAX_LANE_TOKENS, TURN_EVENTS
from .lane_frames import HELLO_BYTES, SECRET_BYTES, FrameKind, Hello, LaneOffer, pack, tune, unpack_hello


class Tokens:
    """Tokens that are good once, and not for long; each with the proof that its lane's opener is shown."""

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
            self._open[token] = now + LANE_TOKEN_TTL, proof
        return token, proof

    def redeem(self, token: bytes) -> bytes | None:
        """The proof of a token, which is void from now on; ``None`` if it was void before."""
        with self._lock:
            until, proof = self._open.pop(token, (0.0, b""))
        return proof if proof and self._clock() < until else None

    def __len__(self) -> int:
        return len(self._open)


class _Stranger:
    """A connection that has not shown a token."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self.sock = sock
        self.until = until
        self.said = b""


class Gate:
    """See the module.

    Args:
        cluster, member: whose gate it is.
        node: the Ray node that it is on.
        host: the node's address; empty for none but the Unix socket.
        watch: the epoll that is told of the sockets, and whose owner calls :meth:`look`.
        room: whether there is room for a connection of that descriptor, of a peer or of a client.
        admit: takes the connection of somebody who has shown a token.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        cluster: int,
        member: int,
        node: str,
        host: str,
        watch: select.epoll,
        room: Callable[[int, bool], bool],
        admit: Callable[[socket.socket, Hello], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._member = member
        self._node = node
        self._watch = watch
        self._room = room
        self._admit = admit
        self._clock = clock
        self.tokens = Tokens(clock)
        self._strangers: dict[int, _Stranger] = {}
        self._resting_until = 0.0
        self._local, self._host, self._port = "", host, 0
        self._listeners: dict[int, socket.socket] = {}
        self._listen_locally()
        if host:
            self._listen_on(host)

    def _listen_locally(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"raykeeper-{secrets.token_hex(SECRET_BYTES)}"
        try:
            sock.bind("\0" + name)
        except OSError:  # a kernel without abstract names: TCP serves as well
            sock.close()
            return
        self._local = name
        self._begin(sock)

    def _listen_on(self, host: str) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.bind((host, 0))
        except OSError:  # an address that is not this machine's own, behind some translation
            sock.close()
            return
        self._port = sock.getsockname()[1]
        self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        sock.listen(MAX_LANE_STRANGERS)
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._watch.register(sock.fileno(), select.EPOLLIN)

    def offer(self) -> LaneOffer:
        """How somebody may open a lane. Any thread."""
        token, proof = self.tokens.issue()
        return LaneOffer(
            self._cluster, self._member, self._node, self._local, self._host, self._port, token=token, proof=proof
        )

    def owns(self, fd: int) -> bool:
        """Whether a ready descriptor is the gate's."""
        return fd in self._listeners or fd in self._strangers

    def look(self, fd: int) -> None:
        """See who is at the door."""
        stranger = self._strangers.get(fd)
        if stranger is not None:
            self._hear(fd, stranger)
            return
        listener = self._listeners[fd]
        for _ in range(TURN_EVENTS):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors, say: look again later, rather than over and over
                self._rest()
                return
            while len(self._strangers) >= MAX_LANE_STRANGERS:
                self._turn_away(next(iter(self._strangers)))
            sock.setblocking(False)
            self._strangers[sock.fileno()] = _Stranger(sock, self._clock() + LANE_HELLO_TIMEOUT)
            self._watch.register(sock.fileno(), select.EPOLLIN)

    def _hear(self, fd: int, stranger: _Stranger) -> None:
        try:
            said = stranger.sock.recv(HELLO_BYTES - len(stranger.said))
        except BlockingIOError:
            return
        except OSError:
            said = b""
        stranger.said += said
        if said and len(stranger.said) < HELLO_BYTES:
            return
        hello = unpack_hello(stranger.said) if said else None
        proof = self.tokens.redeem(hello.token) if hello is not None and hello.cluster == self._cluster else None
        if hello is None or proof is None:
            self._turn_away(fd)
            return
        del self._strangers[fd]
        self._watch.unregister(fd)
        room = self._room(fd, hello.peer != 0)
        try:
            tune(stranger.sock)
            stranger.sock.send(pack(FrameKind.WELCOME if room else FrameKind.NO_ROOM, self._member, proof))
        except OSError:
            room = False
        if room:
            self._admit(stranger.sock, hello)
        else:
            stranger.sock.close()

    def _turn_away(self, fd: int) -> None:
        self._strangers.pop(fd).sock.close()

    def _rest(self) -> None:
        for fd in self._listeners:
            self._watch.modify(fd, 0)
        self._resting_until = self._clock() + 1.0

    def tick(self) -> None:
        """Time has passed: who has not shown a token by now has none."""
        now = self._clock()
        while self._strangers:
            fd, oldest = next(iter(self._strangers.items()))
            if oldest.until > now:
                break
            self._turn_away(fd)
        if self._resting_until and now >= self._resting_until:
            self._resting_until = 0.0
            for fd in self._listeners:
                self._watch.modify(fd, select.EPOLLIN)

    def close(self) -> None:
        """Let nobody in any more."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        for fd in list(self._strangers):
            self._turn_away(fd)
