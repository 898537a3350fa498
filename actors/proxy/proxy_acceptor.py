"""Accepts the connections of a proxy's port, in the clear or under TLS, so that a flood of them costs others little.

To become a connection of asyncio costs a client much more than to be accepted. So there are three steps, each of them
bounded:

- What the kernel has is accepted, since a client that the kernel has no room for tries again after one, three, seven,
  fifteen seconds, whichever client has filled it. While many arrive, that is done every few milliseconds, and takes a
  limited part of the loop's time.
- The first byte is looked at, and not taken: a connection that begins no request, or no TLS, is closed here. One whose
  client has said nothing yet is *silent*.
- The others *wait*, and are let in, those of each source in turn. While requests of others are served, that is done at
  a limited rate, and takes a limited part of the loop's time (``loop_share.py``), TLS handshakes included.

Silent and waiting connections, and TLS handshakes, are limited in number; one more ends the oldest of the source that
has most. A source is an address, or a network of IPv6. All that runs on the loop that serves: on a thread of its own,
each system call would wait for Python's lock as long as that loop is busy.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Generic, TypeVar

from ...limits import (
    MAX_ADMISSION_CHECKS,
    MAX_PROXY_HANDSHAKES,
    MAX_PROXY_SILENT,
    MAX_PROXY_WAITING,
    MIN_PROXY_STARVED_ROUNDS,
    PROXY_ACCEPT_PAUSE_S,
    PROXY_ACCEPTS_AT_ONCE,
    PROXY_ACCEPTS_PER_S,
    PROXY_ADMIT_DIVISOR,
    PROXY_ADMIT_PAUSE_S,
    PROXY_ADMITS_AT_ONCE,
    PROXY_ADMITS_PER_S,
    PROXY_BACKLOG,
    PROXY_CROWD_AT_ONCE,
    PROXY_CROWD_PAUSE_S,
    PROXY_CROWD_PER_S,
    PROXY_FLOOD_ADMIT_DIVISOR,
    PROXY_GREETING_S,
    PROXY_HANDSHAKE_TURN_S,
    PROXY_HANDSHAKES_AT_ONCE,
    PROXY_HANDSHAKES_PER_S,
    PROXY_LOOK_AT_ONCE_S,
    PROXY_LOOK_DIVISOR,
    PROXY_PASS_ACCEPTS,
    PROXY_PASS_ADMITS,
    PROXY_ROUND_S,
    PROXY_SERVING_ADMITS,
)
from ..transport.accept_rate import AcceptRate, source_of_address
from .loop_share import MeasuredSteps
from .proxy_context import ProxyContext
from .proxy_tls import ProxyTlsContext
from .useless_connections import UselessConnections

T = TypeVar("T", bound=Hashable)

_TLS_HANDSHAKE = 0x16
_BEGINS_REQUEST = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\r\n")
"""A method of HTTP/1.1, an empty line before it, or the preface of HTTP/2."""

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""A client that closes its side while it waits has most likely given up. What it has said by then counts first: where
nobody has to wait it gets its answer."""


class BySource(Generic[T]):
    """Things of several sources, those of each in order of age."""

    def __init__(self) -> None:
        self._of: dict[str, dict[T, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, source: str, item: T) -> None:
        """One more, the youngest of its source."""
        self._of.setdefault(source, {})[item] = None
        self._count += 1

    def discard(self, source: str, item: T) -> None:
        """One less, if it is there."""
        items = self._of.get(source, {})
        if item in items:
            del items[item]
            self._count -= 1
            if not items:
                del self._of[source]

    def take(self) -> tuple[str, T]:
        """The oldest of the source whose turn it is. There must be one."""
        source, items = next(iter(self._of.items()))
        item = next(iter(items))
        self.discard(source, item)
        if items:  # the next turn is another's
            self._of[source] = self._of.pop(source)
        return source, item

    def take_of_largest(self) -> tuple[str, T]:
        """The oldest of the source that has most, among the few that are looked at. There must be one."""
        source, items = max(islice(self._of.items(), MAX_ADMISSION_CHECKS), key=lambda pair: len(pair[1]))
        item = next(iter(items))
        self.discard(source, item)
        return source, item


class ProxyAcceptor:
    """See the module.

    Args:
        context: the proxy's; its loop is the one that all of this runs on.
        protocol: makes the protocol of a connection that was let in, given what to call as soon as it is made, which is
            once its TLS handshake is done.
        tls: the context; ``None`` for a port in the clear.
    """

    def __init__(
        self,
        context: ProxyContext,
        protocol: Callable[[Callable[[], None]], asyncio.Protocol],
        tls: ProxyTlsContext | None = None,
    ) -> None:
        self._context = context
        context.count_silent = self.__len__
        self._loop = loop = context.loop
        self._protocol = protocol
        self._tls = tls
        if tls is not None:
            tls.measure(context.admissions)
        self._listeners: list[socket.socket] = []
        self.useless = UselessConnections(context.log)
        context.note_useless = self.useless.count
        self._reviewed_at = loop.time()
        self._starved = 0
        """Rounds since the last review that ended before all that had come was accepted."""
        self._closed = False
        self._silent: dict[int, tuple[socket.socket, str, float]] = {}
        """By descriptor, oldest first: with its source, and until when it may stay silent."""
        self._of_silent: BySource[int] = BySource()
        self._waiting: dict[int, tuple[socket.socket, str]] = {}
        self._of_waiting: BySource[int] = BySource()
        self._epoll = select.epoll()
        """Watches them, each for one event, and is itself watched by the loop: that is cheaper than a reader of the
        loop for each."""
        self._begun: BySource[asyncio.Task[None]] = BySource()
        """Those that were let in, until their TLS handshake is done: what is the proxy's may not be displaced here."""
        self._begun_at: dict[asyncio.Task[None], float] = {}
        """Since when, oldest first."""
        self._accepts = AcceptRate(loop.time, PROXY_ACCEPTS_PER_S, PROXY_ACCEPTS_AT_ONCE)
        self._calm = AcceptRate(loop.time, PROXY_CROWD_PER_S, PROXY_CROWD_AT_ONCE)
        per_s, at_once = (
            (PROXY_ADMITS_PER_S, PROXY_ADMITS_AT_ONCE)
            if tls is None
            else (PROXY_HANDSHAKES_PER_S, PROXY_HANDSHAKES_AT_ONCE)
        )
        self._admits = AcceptRate(loop.time, per_s, at_once)
        self._looks = context.share_while_serving(PROXY_LOOK_DIVISOR, PROXY_LOOK_AT_ONCE_S)
        """What is accepted and looked at, while requests of others are served."""
        self._next_admission: asyncio.Handle | None = None
        self._next_round: asyncio.TimerHandle | None = None
        """While the loop does not tell of new connections."""

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Begin to accept; returns the first address. Raises ``OSError`` if an address cannot be had."""
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                sock = socket.socket(family, socket.SOCK_STREAM)
                self._listeners.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.listen(PROXY_BACKLOG)
                sock.setblocking(False)
        except OSError:
            for sock in self._listeners:
                sock.close()
            self._listeners.clear()
            raise
        self._attend()
        bound = self._listeners[0].getsockname()
        return bound[0], bound[1]

    def __len__(self) -> int:
        """Connections that were accepted and have not become the proxy's yet."""
        return len(self._silent) + len(self._waiting)

    # --- from the kernel ---------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Have the loop tell of each connection, and of each that says something."""
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def _accept(self, listener: socket.socket) -> None:
        """There is a connection, and mostly its first bytes have come as well. A pass of a busy loop can last, so
        it is to wait for as few of them as possible."""
        pause = self._look_round([listener])
        if pause and self._next_round is None:
            for each in self._listeners:
                self._loop.remove_reader(each.fileno())
            self._loop.remove_reader(self._epoll.fileno())
            self._next_round = self._loop.call_later(pause, self._round)

    def _round(self) -> None:
        """While a crowd arrives, look at all of it now and then: to be told of each would cost a pass of the loop."""
        self._next_round = None
        self._listeners.append(self._listeners.pop(0))  # none is always the last
        pause = self._look_round(self._listeners)
        if pause:
            self._next_round = self._loop.call_later(pause, self._round)
        else:
            self._attend()

    def _look_round(self, listeners: list[socket.socket]) -> float:
        """Accept what there is, look at all, and let in; returns after how many seconds to do so again, 0 for as soon
        as there is something. On a machine that has no time for it, the most of the time is left to those who are
        served: what this has taken beyond its part is waited for, and meanwhile the kernel keeps what comes."""
        pause = 0.0
        for listener in listeners:
            began = self._loop.time()
            pause = max(pause, self._take_in(listener, began + PROXY_ROUND_S / len(listeners)))
            self._looks.spend(began)
        began = self._loop.time()
        self._admit_now()  # before it is looked at who has closed: one that has said all it has to say is answered
        self._look()
        self._looks.spend(began)
        return max(pause, self._looks.pause())

    def _take_in(self, listener: socket.socket, until: float) -> float:
        """Accept what the kernel has. Returns after how many seconds to do so again; 0 for as soon as there is one.

        Args:
            until: while requests of others are served, no longer, but one at least.
        """
        pause = 0.0
        for accepted in range(PROXY_PASS_ACCEPTS):
            if self._context.serving:
                if accepted and self._loop.time() > until:
                    self._starved += 1
                    return PROXY_CROWD_PAUSE_S
                if not self._accepts.take():
                    self._starved += 1
                    return PROXY_ACCEPT_PAUSE_S
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                break
            except ConnectionError:  # its client is gone already
                continue
            except OSError as error:  # out of descriptors, say
                self._context.log.warning("no connection can be accepted: %s", error)
                return PROXY_ACCEPT_PAUSE_S
            self._context.accepted += 1
            if self._context.serving and not self._calm.take():
                pause = PROXY_CROWD_PAUSE_S
            self._meet(sock, source_of_address(address[0]))
        return pause

    def _meet(self, sock: socket.socket, source: str) -> None:
        """Look at a connection for the first time."""
        first = self._first_byte(sock)
        if first is None:
            self._keep_silent(sock, source)
        else:
            self._have_wait(sock, source, first)

    @staticmethod
    def _first_byte(sock: socket.socket) -> bytes | None:
        """What a connection begins with; empty if its client is gone, ``None`` if it has said nothing yet."""
        try:
            return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _keep_silent(self, sock: socket.socket, source: str) -> None:
        while len(self._silent) >= MAX_PROXY_SILENT and self._look():
            pass  # those that have said something are not silent
        if len(self._silent) >= MAX_PROXY_SILENT:
            self._context.ends["displaced"] += 1
            self._drop(self._of_silent.take_of_largest()[1])
        number = sock.fileno()
        self._silent[number] = sock, source, self._loop.time() + PROXY_GREETING_S
        self._of_silent.add(source, number)
        self._epoll.register(number, select.EPOLLIN | _GONE | select.EPOLLONESHOT)

    # --- until they are let in ---------------------------------------------------------------------------------------

    def _look(self) -> int:
        """Look at some of those that have said something or are gone; how many there were."""
        if self._closed:
            return 0
        looked = self._epoll.poll(0, PROXY_PASS_ACCEPTS)
        for number, events in looked:
            if events & select.EPOLLIN and number in self._silent:
                sock, source, _ = self._silent.pop(number)
                self._of_silent.discard(source, number)
                self._epoll.unregister(number)
                self._have_wait(sock, source, self._first_byte(sock) or b"")
            else:
                self._drop(number)
        self._admit_soon()
        return len(looked)

    def _have_wait(self, sock: socket.socket, source: str, data: bytes) -> None:
        """Let a connection wait, or close it, by its first byte."""
        if not data:
            self.useless.count(source)
            sock.close()
        elif data[0] in _BEGINS_REQUEST if self._tls is None else data[0] == _TLS_HANDSHAKE:
            if len(self._waiting) >= MAX_PROXY_WAITING:
                self._context.ends["refused"] += 1
                self._context.log.warning("refuses connections: %d wait to be let in", len(self._waiting))
                largest, displaced = self._of_waiting.take_of_largest()
                self.useless.count(largest)
                self._drop(displaced)
            number = sock.fileno()
            self._waiting[number] = sock, source
            self._of_waiting.add(source, number)
            self._epoll.register(number, _GONE | select.EPOLLONESHOT)
        else:
            self.useless.count(source)
            self._refuse(sock, data)

    def _drop(self, number: int, *, late: bool = False) -> None:
        """Close a connection that is silent, which was of no use then, or waits.

        Args:
            late: its time is over. It came so long ago that it says nothing of who begins connections now.
        """
        if number in self._silent and not late:
            self.useless.count(self._silent[number][1])
        found = self._silent.pop(number, None) or self._waiting.pop(number, None)
        if found is not None:
            for of in (self._of_silent, self._of_waiting):
                of.discard(found[1], number)
            found[0].close()

    def _refuse(self, sock: socket.socket, data: bytes) -> None:
        if self._tls is not None:
            self._context.report_abuse("it does not speak TLS, and this port does")
        elif data[0] == _TLS_HANDSHAKE:
            self._context.report_abuse("it speaks TLS, and this port does not")
        else:
            self._context.report_abuse("it speaks no HTTP")
        sock.close()

    def review(self) -> None:
        """Look at who begins connections of no use; once in each sweep."""
        if self._closed:
            return
        now = self._loop.time()
        self.useless.review(now - self._reviewed_at, self._context.serving, self._starved >= MIN_PROXY_STARVED_ROUNDS)
        self._reviewed_at, self._starved = now, 0
        divisor = PROXY_FLOOD_ADMIT_DIVISOR if self.useless.floods else PROXY_ADMIT_DIVISOR
        self._context.admissions.set_fraction(1 / divisor)

    def expire(self, now: float) -> None:
        """Close those that have been silent for too long; not those whose first byte waits for a slow loop."""
        while self._look():
            pass
        while self._silent:
            number, (_, _, until) = next(iter(self._silent.items()))
            if until > now:
                return
            self._drop(number, late=True)

    # --- to the proxy ------------------------------------------------------------------------------------------------

    def _admit_soon(self) -> None:
        if self._waiting and self._next_admission is None:
            self._next_admission = self._loop.call_soon(self._admit)

    def _admit_now(self) -> None:
        """Admit in this pass of the loop, unless the rate is exceeded."""
        if self._waiting and not isinstance(self._next_admission, asyncio.TimerHandle):
            if self._next_admission is not None:
                self._next_admission.cancel()
            self._admit()

    def _admit(self) -> None:
        self._next_admission = None
        # What it takes to let one in is known a few passes later: until then there are few.
        most = PROXY_SERVING_ADMITS if self._context.serving else PROXY_PASS_ADMITS
        for _ in range(min(most, len(self._waiting))):
            pause = self._context.admissions.pause()
            if pause or self._handshakes_under_way() or (self._context.serving and not self._admits.take()):
                self._next_admission = self._loop.call_later(max(pause, PROXY_ADMIT_PAUSE_S), self._admit)
                return
            source, number = self._of_waiting.take()
            sock, _ = self._waiting.pop(number)
            self._epoll.unregister(number)
            self._begin(source, sock)
        if self._waiting and self._context.serving:
            self._next_admission = self._loop.call_later(PROXY_ADMIT_PAUSE_S, self._admit)
        self._admit_soon()

    def _handshakes_under_way(self) -> bool:
        """Whether there are as many handshakes as there may be, none of which has had its time yet."""
        if self._tls is None or len(self._begun) < MAX_PROXY_HANDSHAKES:
            return False
        return self._loop.time() - next(iter(self._begun_at.values())) < PROXY_HANDSHAKE_TURN_S

    def _begin(self, source: str, sock: socket.socket) -> None:
        try:
            sock.getpeername()
        except OSError:  # it was reset while it waited: it has given up, and does not count
            sock.close()
            return
        if self._tls is not None and len(self._begun) >= MAX_PROXY_HANDSHAKES:
            self._context.ends["displaced"] += 1
            largest, displaced = self._begun.take_of_largest()
            del self._begun_at[displaced]
            if displaced.cancel():  # otherwise it has just ended, and is counted by how
                self.useless.count(largest)
        sock.setblocking(False)
        taken = made = False

        def leave() -> None:
            self._begun.discard(source, task)
            self._begun_at.pop(task, None)

        def begun() -> None:
            nonlocal made
            made = True
            leave()

        async def shake_hands() -> None:
            # Raises OSError if the client speaks no TLS, does not trust the proxy, or shows what it does not trust.
            nonlocal taken
            tls = None if self._tls is None else self._tls.current()
            taken = True  # asyncio closes it, with a reader that the loop has for it, if this fails or is cancelled
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(begun),
                sock,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else PROXY_GREETING_S,
            )

        def done(task: asyncio.Task[None]) -> None:
            leave()
            if not taken:
                sock.close()
            if task.cancelled():  # it made way, and was counted then; or the port was closed
                return
            error = task.exception()
            late = isinstance(error, ConnectionAbortedError)  # so asyncio ends a handshake whose time is over
            if not made and not late:
                self.useless.count(source)
            if error is not None and not isinstance(error, OSError):
                self._context.log.error("a connection could not be begun", exc_info=error)

        steps = MeasuredSteps(shake_hands(), self._context.admissions)
        task = self._loop.create_task(steps)
        self._begun.add(source, task)
        self._begun_at[task] = self._loop.time()
        task.add_done_callback(done)

    def close(self) -> None:
        """Accept no more; those that have not become the proxy's are closed."""
        if self._closed:
            return
        self._closed = True
        for handle in (self._next_admission, self._next_round):
            if handle is not None:
                handle.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for number in [*self._silent, *self._waiting]:
            self._drop(number)
        while self._begun:
            self._begun.take()[1].cancel()
