"""What all connections of one proxy share: its methods, its memory, its deadlines, its log, and the list of them."""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import termios
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from ...limits import (
    MAX_ADMISSION_CHECKS,
    PROXY_ADMIT_AT_ONCE_S,
    PROXY_ADMIT_DIVISOR,
    PROXY_LEAST_READ_BYTES,
    PROXY_PASS_BYTES,
    PROXY_READ_BYTES,
    PROXY_SHARE_PAUSE_S,
    PROXY_STEP_S,
    PROXY_SWEEP_S,
)
from ..logs import MemberLog
from ..transport.accept_rate import source_of_address
from .call_deadlines import CallDeadlines
from .held_bytes import HeldBytes
from .http_exchange import HttpHandler
from .loop_share import LoopShare
from .request_heads import RequestHeads
from .rpc_methods import RpcMethods


def bound_reads(transport: asyncio.BaseTransport, size: int) -> None:
    """Bound what one pass of the loop reads of a connection."""
    if hasattr(transport, "max_size"):  # of asyncio's own loop; another reads in parts of its own size
        transport.max_size = size


def has_unread(transport: asyncio.BaseTransport | None) -> bool:
    """Whether a client has sent more than was read so far: then it is the proxy that takes its time, not the client.

    What a client may send before it has completed a frame or the head of a request is bounded, so it cannot put off a
    deadline in this way for long.
    """
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0] > 0


def client_address(transport: asyncio.BaseTransport) -> str:
    """The address of a connection's client, for people."""
    name = transport.get_extra_info("peername")
    return f"{name[0]} port {name[1]}" if isinstance(name, tuple) else "an unknown address"


def client_source(transport: asyncio.BaseTransport) -> str:
    """Whose address it is."""
    name = transport.get_extra_info("peername")
    return source_of_address(name[0]) if isinstance(name, tuple) else ""


class ProxyConnection(Protocol):
    """One client's connection, whatever it speaks."""

    protocol: str
    """http1, http2, or unknown."""

    def idle_since(self) -> float | None:
        """Since when it has had no request, in the loop's time; ``None`` if it has one."""

    def heard_at(self) -> float:
        """When its client last sent something, in the loop's time."""

    def set_read_bytes(self, size: int) -> None:
        """Bound what one pass of the loop reads of it."""

    def check_times(self, now: float) -> None:
        """Close what has taken too long."""

    def drain(self) -> None:
        """Take no new requests, and close when those that run have ended."""

    def stop(self) -> None:
        """End the requests that run, and close."""

    def abort(self) -> None:
        """Close at once."""


class ProxyContext:
    """See the module.

    Args:
        loop: the proxy's.
        methods: what it serves by gRPC.
        http: what it serves by plain HTTP.
        log: for an operator.
        held: the bound of its memory.
        max_connections: another one displaces an idle one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        methods: RpcMethods,
        http: HttpHandler,
        log: MemberLog,
        held: HeldBytes,
        max_connections: int,
    ) -> None:
        self.loop = loop
        self.heads = RequestHeads(methods)
        self.http = http
        self.log = log
        self.held = held
        self.deadlines = CallDeadlines(loop)
        self.draining = False
        self.max_connections = max_connections
        self.read_bytes = PROXY_READ_BYTES
        """What one pass of the loop reads of one connection."""
        self.accepted = 0
        """Connections so far, those included that have said nothing yet..."""
        self.ends: Counter[str] = Counter()
        """... and what became of those which did not simply end: refused, displaced, or closed for doing harm."""
        self.count_silent: Callable[[], int] = int
        """How many connections are open and not listed here yet."""
        self.note_useless: Callable[[str], object] = str
        """Called with the source of each connection that is closed and has made no request, unless a deadline of its
        own has closed it: it came so long ago that it says nothing of who begins connections now."""
        self.serving = False
        """Whether requests came, within the last sweep, on connections from before the one before: a crowd that has
        just connected serves nobody yet."""
        self.admissions = self.share_while_serving(PROXY_ADMIT_DIVISOR, PROXY_ADMIT_AT_ONCE_S)
        """What it takes to make connections of those that are let in, until they have said what they speak."""
        self._connections: dict[ProxyConnection, tuple[str, float]] = {}
        """With the source of each, and since when it is listed."""
        self._of_source: Counter[str] = Counter()
        self._unused: set[ProxyConnection] = set()
        """Those that have made no request."""

    def share_while_serving(self, divisor: float, at_once_s: float) -> LoopShare:
        """A part of the loop's time, which is bounded while requests of others are served."""
        return LoopShare(
            self.loop.time, 1 / divisor, at_once_s, PROXY_SHARE_PAUSE_S, lambda: self.serving, PROXY_STEP_S
        )

    def add(self, connection: ProxyConnection, source: str = "") -> bool:
        """List a new connection; ``False`` if there is no room for it.

        If there are too many, an idle one is closed: of those which are looked at, one of the source that has most, and
        of these the one that has been idle longest. Few are looked at, so that a flood of connections costs little, and
        others the next time.
        """
        if len(self._connections) >= self.max_connections and not self._close_an_idle_one():
            self.ends["refused"] += 1
            self.log.log(logging.WARNING, "refuses connections: %d are open", len(self._connections))
            return False
        self._connections[connection] = source, self.loop.time()
        self._of_source[source] += 1
        self._unused.add(connection)
        return True

    def replace(self, old: ProxyConnection, new: ProxyConnection) -> None:
        """A connection has said what it speaks. It is listed at any time, whichever thread looks."""
        self._connections[new] = self._connections[old]
        del self._connections[old]
        self._unused.discard(old)
        self._unused.add(new)

    def discard(self, connection: ProxyConnection) -> None:
        """A connection is closed."""
        listed = self._connections.pop(connection, None)
        if listed is not None:
            source = listed[0]
            self._of_source[source] -= 1
            if not self._of_source[source]:
                del self._of_source[source]
            if connection in self._unused:
                self._unused.remove(connection)
                self.note_useless(source)

    def begin_requests(self, connection: ProxyConnection) -> None:
        """A connection makes its first request."""
        self._unused.discard(connection)

    def end_late(self, connection: ProxyConnection) -> None:
        """A connection is about to be closed because a deadline of its own has passed: it is not noted as useless."""
        self._unused.discard(connection)

    def share_passes(self, since: float) -> None:
        """Divide what a pass of the loop reads among the connections that have sent something since then."""
        heard = [listed for connection, (_, listed) in self._connections.items() if connection.heard_at() >= since]
        busy = len(heard)
        self.serving = any(listed < since - PROXY_SWEEP_S for listed in heard)
        size = max(PROXY_LEAST_READ_BYTES, min(PROXY_READ_BYTES, PROXY_PASS_BYTES // max(1, busy)))
        if size != self.read_bytes:
            self.read_bytes = size
            for connection in self._connections:
                connection.set_read_bytes(size)

    def connections(self) -> list[ProxyConnection]:
        """All that are open."""
        return list(self._connections)

    def report_abuse(self, what: str) -> None:
        """Log why a connection was closed."""
        self.ends["harmful"] += 1
        self.log.log(logging.WARNING, "closed a connection: %s", what)

    def _close_an_idle_one(self) -> bool:
        looked_at: list[tuple[int, float, ProxyConnection]] = []
        for connection, listed in list(islice(self._connections.items(), MAX_ADMISSION_CHECKS)):
            since = connection.idle_since()
            if since is not None:
                looked_at.append((-self._of_source[listed[0]], since, connection))
            del self._connections[connection]
            self._connections[connection] = listed
        if not looked_at:
            return False
        _, _, idle = min(looked_at, key=lambda found: found[:2])
        self.ends["displaced"] += 1
        self.discard(idle)
        idle.abort()
        return True
