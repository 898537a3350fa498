"""Accepts lanes to a member, from processes that show a token, on a thread of its own.

It listens on a Unix socket with an abstract name drawn at random: such a socket leaves no file when a process is
killed, and no process can take its name without knowing it. Once a process on another node asks for a lane, it listens
on TCP as well, at one address; where all is on one node, no port is ever opened.

Any process can connect, so a connection is unauthenticated, and gets no answer, until it has shown a token that an
actor call gave out. What those without one can cost is bounded: they are accepted at a limited rate, there are few of
them, fewer still from one source, they have little time, and a new one displaces the oldest of its own source first.
All that happens here, and the loop only takes over what was let in.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

from ...limits import (
    LANE_ACCEPTS_AT_ONCE,
    LANE_ACCEPTS_PER_S,
    LANE_HELLO_TIMEOUT_S,
    LANE_TOKEN_TTL_S,
    MAX_LANE_TOKENS,
    MAX_UNAUTHENTICATED_LANES,
    MAX_UNAUTHENTICATED_LANES_OF_ONE,
)
from ..logs import MemberLog
from ..one_thread import start_thread
from .accept_rate import AcceptRate, source_of_address
from .lane import HELLO_BYTES, SECRET_BYTES, FrameKind, Hello, LaneOffer, pack, tune, unpack_hello
from .lane_tls import LaneSocket, ServerTls, TlsSocket, TlsUnusable

_OWN_USER = ("user", os.getuid())
"""The source that most clients are: it is not held to the share of one."""
_CREDENTIALS = struct.Struct("3i")
_LOOK_S = 0.25
"""How often connections are looked at that may have used up their time."""


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

    def __init__(self, sock: socket.socket, address: object, until: float) -> None:
        self.sock = sock
        self.source, self.shown = _source_of(sock, address)
        self.until = until
        self.received = b""
        self.encrypted = True
        """Nothing is left to do for TLS, or there is none."""


class LaneListener:
    """See the module.

    Args:
        cluster, member: the member that listens.
        node: the Ray node that it is on.
        host: the address to listen on; empty to listen on the Unix socket only.
        ports: those that may be listened on; empty: any free one.
        tls: for connections from other nodes; ``None`` for none.
        room: whether there is room for one more connection, beside as many that were let in and not taken over yet; of
            a peer or of a client. Any thread.
        wake: called when a connection was let in; its owner calls :meth:`hand_over`. Any thread.
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
        tls: ServerTls | None = None,
        room: Callable[[int, int, bool], bool],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        log: MemberLog,
    ) -> None:
        self._log = log
        self._cluster = cluster
        self._member = member
        self._node = node
        self._tls = tls
        self._room = room
        self._wake = wake
        self._clock = clock
        self.tokens = Tokens(clock)
        self._epoll = select.epoll()
        self._end_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._unauthenticated: dict[int, _Handshake] = {}
        self._admitted: deque[tuple[LaneSocket, Hello, str]] = deque()
        self._paused: set[int] = set()
        """Descriptors of listeners that accept nothing until the next look."""
        self._local, self._host, self._port = "", host, 0
        self._ports = ports
        self._listeners: dict[int, tuple[socket.socket, AcceptRate]] = {}
        self._lock = threading.Lock()
        """Guards the set of listeners and the end."""
        self._tried = not host
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lane listener", daemon=True)
        try:
            self._epoll.register(self._end_fd, select.EPOLLIN)
            self._listen_locally()
            start_thread(self._thread)
        except BaseException:
            self.close()
            raise

    # -- listening ----------------------------------------------------------------------------------------------------

    def _listen_locally(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"raykeeper-{secrets.token_hex(SECRET_BYTES)}"
        try:
            sock.bind("\0" + name)
        except OSError:  # a kernel without abstract names: TCP will do
            sock.close()
            return
        self._local = name
        try:
            self._listen(sock)
        except BaseException:
            sock.close()
            raise

    def _listen_on_port(self) -> None:
        """Listen on TCP, once. Any thread."""
        with self._lock:
            if self._tried or self._closed:
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
        # Each has a rate of its own: what comes from elsewhere does not hold up processes of this node.
        rate = AcceptRate(time.monotonic, LANE_ACCEPTS_PER_S, LANE_ACCEPTS_AT_ONCE)
        self._listeners[sock.fileno()] = sock, rate
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def offer_lane(self, node: str) -> LaneOffer:
        """An offer to a process on that Ray node to open a lane, with a new token. Any thread."""
        if node != self._node or not self._local:
            self._listen_on_port()
        certificate, port = b"", self._port
        if port and self._tls is not None:
            try:
                certificate = self._tls.context()[1]
            except TlsUnusable as error:
                self._log.warning("TLS is wanted, so there are no lanes to other nodes: %s", error)
                port = 0
        token, proof = self.tokens.issue()
        return LaneOffer(
            self._cluster,
            self._member,
            self._node,
            self._local,
            self._host,
            port,
            token=token,
            proof=proof,
            certificate=certificate,
        )

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Whatever happens meanwhile, what is paused stays so until the next look: a flood that is held back must not
        keep this thread busy."""
        look_at = 0.0
        while not self._closed:
            events = self._epoll.poll(_LOOK_S if self._unauthenticated or self._paused else -1)
            for fd, _ in events:
                if fd in self._unauthenticated:
                    self._continue(fd, self._unauthenticated[fd])
                elif fd in self._listeners:
                    self._accept(fd, *self._listeners[fd])
            now = time.monotonic()
            if now >= look_at or not events:
                look_at = now + _LOOK_S
                self._expire()
        for handshake in list(self._unauthenticated.values()):
            self._reject(handshake)

    def _accept(self, fd: int, listener: socket.socket, rate: AcceptRate) -> None:
        """Accept one connection. The kernel keeps further ones, as many as ``listen`` said, and refuses the rest."""
        if not rate.take():
            self._set_accepting(fd, accepting=False)
            return
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors, say: pause, rather than try again and again
            if not self._closed:
                self._log.warning("no connection can be accepted: %s", error)
                self._set_accepting(fd, accepting=False)
            return
        sock.setblocking(False)
        handshake = _Handshake(sock, address, self._clock() + LANE_HELLO_TIMEOUT_S)
        self._make_way(handshake.source)
        if self._tls is not None and sock.family != socket.AF_UNIX:
            try:
                context, _ = self._tls.context()
                handshake.sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except (OSError, TlsUnusable):
                sock.close()
                return
            handshake.encrypted = False
        self._unauthenticated[handshake.sock.fileno()] = handshake
        self._epoll.register(handshake.sock.fileno(), select.EPOLLIN)

    def _make_way(self, source: Hashable) -> None:
        """End the oldest connection of a source that has many, or of all."""
        waiting = self._unauthenticated.values()
        same = [handshake for handshake in waiting if handshake.source == source]
        if source != _OWN_USER and len(same) >= MAX_UNAUTHENTICATED_LANES_OF_ONE:
            self._reject(same[0])
        elif len(self._unauthenticated) >= MAX_UNAUTHENTICATED_LANES:
            self._reject(next(iter(waiting)))

    def _continue(self, fd: int, handshake: _Handshake) -> None:
        """Go on with TLS, and then read the hello. A wrong hello is closed without an answer: an answer would tell a
        port scanner what listens here."""
        try:
            if not handshake.encrypted:
                assert isinstance(handshake.sock, ssl.SSLSocket)
                handshake.sock.do_handshake()
                handshake.encrypted = True
                self._epoll.modify(fd, select.EPOLLIN)
            data = handshake.sock.recv(HELLO_BYTES - len(handshake.received))
        except ssl.SSLWantWriteError:
            self._epoll.modify(fd, select.EPOLLOUT)
            return
        except (BlockingIOError, ssl.SSLWantReadError):
            self._epoll.modify(fd, select.EPOLLIN)
            return
        except (OSError, ValueError):
            data = b""
        handshake.received += data
        if data and len(handshake.received) < HELLO_BYTES:
            return
        hello = unpack_hello(handshake.received) if data else None
        proof = self.tokens.redeem(hello.token) if hello is not None and hello.cluster == self._cluster else None
        if hello is None or proof is None:
            self._reject(handshake)
            return
        del self._unauthenticated[fd]
        self._epoll.unregister(fd)
        self._admit(fd, handshake, hello, proof)

    def _admit(self, fd: int, handshake: _Handshake, hello: Hello, proof: bytes) -> None:
        sock = handshake.sock
        room = self._room(fd, len(self._admitted), hello.peer != 0)
        lane_socket: LaneSocket = TlsSocket(sock) if isinstance(sock, ssl.SSLSocket) else sock
        try:
            tune(sock)
            lane_socket.send(pack(FrameKind.WELCOME if room else FrameKind.NO_ROOM, self._member, proof))
        except OSError:
            room = False
        with self._lock:
            room = room and not self._closed
            if room:
                self._admitted.append((lane_socket, hello, handshake.shown))
        if room:
            self._wake()
        else:
            sock.close()

    @property
    def waiting(self) -> int:
        """Connections that were let in and not taken over yet. Any thread."""
        return len(self._admitted)

    def hand_over(self, take: Callable[[LaneSocket, Hello, str], None]) -> None:
        """Give out the connections that have shown a token since the last call, with who has connected. The loop's.
        Each counts as waiting until it was taken, so that none is in neither count."""
        while self._admitted:
            take(*self._admitted[0])
            self._admitted.popleft()

    def _reject(self, handshake: _Handshake) -> None:
        self._unauthenticated.pop(handshake.sock.fileno(), None)
        handshake.sock.close()

    def _set_accepting(self, fd: int, *, accepting: bool) -> None:
        """Accept a listener's connections, or leave them to the kernel until the next look."""
        with self._lock:
            self._paused.discard(fd)
            if not accepting:
                self._paused.add(fd)
            if not self._closed:
                self._epoll.modify(fd, select.EPOLLIN if accepting else 0)

    def _expire(self) -> None:
        """Reject connections that have shown no token in time, and accept again after a pause."""
        now = self._clock()
        while self._unauthenticated:
            oldest = next(iter(self._unauthenticated.values()))
            if oldest.until > now:
                break
            self._reject(oldest)
        for fd in list(self._paused):
            self._set_accepting(fd, accepting=True)

    def close(self) -> None:
        """Accept nothing any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for listener, _ in self._listeners.values():
                listener.close()
            self._listeners.clear()
            for sock, _, _ in self._admitted:
                sock.close()
            self._admitted.clear()
            os.eventfd_write(self._end_fd, 1)
        if self._thread.ident is not None:  # it was started
            self._thread.join()  # before that, the number could be another's by now
        self._epoll.close()
        os.close(self._end_fd)


def _source_of(sock: socket.socket, address: object) -> tuple[Hashable, str]:
    """Who connects, by the kernel's word: a user of this machine, or an address; and the same in full, for people."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(credentials)
        return ("user", user), f"process {process} of user {user} on {socket.gethostname()}"
    assert isinstance(address, tuple)
    host: str = address[0]
    return source_of_address(host), f"{host} port {address[1]}"
