"""A client's frames by lane, and by actor calls where there is no lane.

A lane to a member is opened with the second request to it, on a thread of its own; until it is open, and whenever there
is none, frames go by actor calls. Each thread writes its own frames, without blocking; one thread of the process reads
all lanes, except while a thread or an event loop that waits alone reads one itself (:mod:`client_lane`). When a lane
ends, the requests in flight on it fail at once, and the hub sends them again.

A forked child closes the sockets that it inherited, without touching its parent's connections: it has hubs and lanes of
its own.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
import weakref
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from ...limits import (
    LANE_LINGER_S,
    LANE_MAX_PAUSE_S,
    LANE_OPEN_TIMEOUT_S,
    LANE_PAUSE_S,
    LANE_REFUSED_PAUSE_S,
    MAX_LANE_FRAME_BYTES,
)
from .. import finalizer_guard
from ..background import background, collect_young
from ..naming import member_name
from ..one_thread import NoThreadLeft, OneThread, start_thread
from .client_lane import ClientLane
from .client_transport import FrameTransport, Reader, ReplyReceiver
from .lane import Connection, LaneBroken, LaneOffer, NoRoom, open_lane
from .lane_retry import LaneRetry
from .loop_reader import LoopReader, PollAudience
from .waiter import LaneReader

_log = logging.getLogger("raykeeper.transport")
_random = random.SystemRandom()


class ActorCalls(FrameTransport, Protocol):
    """The transport by actor calls, which also asks members for lanes."""

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        """Ask a member for a lane."""
        ...

    def is_held_here(self) -> bool:
        """See ``ClientTransport``."""
        ...


class _MemberRoute:
    """The lane to one member, and when to open it again."""

    def __init__(self) -> None:
        self.asked = 0
        self.lane: ClientLane | None = None
        self.opener = OneThread()
        self.retry = LaneRetry(_random)


class LaneTransport:
    """A hub's transport (``ClientTransport``) that uses lanes where it can.

    Args:
        calls: the transport by actor calls, which always works.
    """

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls
        self._lock = threading.RLock()
        self._routes: dict[int, _MemberRoute] = {}
        self._by_fd: dict[int, ClientLane] = {}
        self._polls = PollAudience()
        self._epoll: select.epoll | None = None
        self._wake_fd = -1
        self._closed = False
        self._linger_until = 0.0
        _transports.add(self)

    @property
    def node(self) -> str:
        """See ``ClientTransport``."""
        return self._calls.node

    def members(self) -> dict[int, str]:
        """See ``ClientTransport``."""
        return self._calls.members()

    def refresh(self) -> None:
        """See ``ClientTransport``; lanes to former members are closed."""
        self._calls.refresh()
        known = self._calls.members()
        with finalizer_guard.gc_deferred, self._lock:
            strays = [
                route.lane for member, route in self._routes.items() if member not in known and route.lane is not None
            ]
        for lane in strays:
            lane.connection.shut_down(abruptly=True)

    def valid(self) -> bool:
        """See ``ClientTransport``."""
        return self._calls.valid()

    def send(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """See ``ClientTransport``."""
        if self._by_lane(member, frame, done) is None:
            self._calls.send(member, frame, done)

    def send_alone(self, member: int, frame: bytes, done: ReplyReceiver, reader: Reader) -> LaneReader | None:
        """See ``ClientTransport``."""
        lane = self._by_lane(member, frame, done, reader)
        if lane is None:
            self._calls.send(member, frame, done)
        return lane

    def poll(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """See ``ClientTransport``."""
        if self._by_lane(member, frame, done, self._polls) is None:
            self._calls.poll(member, frame, done)

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        """See ``ActorCalls``: for others than this transport."""
        return self._calls.ask_for_lane(member)

    def set_poll_audience(self, loop: LoopReader | None, *, empty: bool) -> None:
        """See ``ClientTransport``."""
        self._polls.loop, self._polls.empty = loop, empty

    def is_held_here(self) -> bool:
        """See ``ClientTransport``."""
        for lane in list(self._by_fd.values()):  # every call passes here, and a generator costs more
            if lane.is_held_here():
                return True
        return self._calls.is_held_here()

    def take_back(self, *, if_overdue: bool = False) -> None:
        """See ``ClientTransport``."""
        for lane in list(self._by_fd.values()):
            lane.take_back(if_overdue=if_overdue)

    def _by_lane(
        self, member: int, frame: bytes, done: ReplyReceiver, asker: Reader | PollAudience | None = None
    ) -> ClientLane | None:
        """Send by lane, and return it; ``None`` if there is none, or not for this frame. The second request to a member
        opens one: a process that only asks once should not pay for it."""
        route = self._routes.get(member)
        if route is not None and (lane := route.lane) is not None:
            sent = len(frame) <= MAX_LANE_FRAME_BYTES and lane.send_request(frame, done, asker)
            return lane if sent else None
        with finalizer_guard.gc_deferred, self._lock:
            route = self._routes.setdefault(member, _MemberRoute())
            route.asked += 1
            wanted = (
                route.asked > 1
                and not route.opener.runs
                and not self._closed
                and time.monotonic() >= route.retry.not_before
            )
            if wanted and route.lane is None:
                found = route.opener.start(partial(self._open, member, route), f"raykeeper-lane-{member}")
                if not found:  # the system has no thread left
                    route.retry.failed(time.monotonic(), None)
        return None

    def close(self) -> None:
        """Close all lanes, after what was sent has gone out. Returns at once."""
        with finalizer_guard.gc_deferred, self._lock:
            if self._closed:
                return
            self._closed = True
            self._linger_until = time.monotonic() + LANE_LINGER_S
            if self._epoll is not None:
                os.eventfd_write(self._wake_fd, 1)
        self._calls.close()

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self, member: int, route: _MemberRoute) -> None:
        """Ask for an offer and connect. The lane may end before it is entered in the route: then it counts as
        failed."""
        deadline = time.monotonic() + LANE_OPEN_TIMEOUT_S
        longest, problem = LANE_MAX_PAUSE_S, ""
        lane: ClientLane | None = None
        failure: Exception | None = None
        try:
            offer = self._calls.ask_for_lane(member).result(LANE_OPEN_TIMEOUT_S)
            if offer is None:
                longest = LANE_REFUSED_PAUSE_S
            else:
                lane = self._connect(member, offer, deadline)
        except NoRoom:
            longest = LANE_REFUSED_PAUSE_S
        except Exception as error:  # Ray's, of many kinds
            failure = error
            _log.debug("no lane to member %d: %s", member, error)
        with finalizer_guard.gc_deferred, self._lock:
            now = time.monotonic()
            route.opener.done()
            route.lane = lane
            if lane is None:
                if route.retry.failed(now, failure, longest):
                    problem = route.retry.problem(now)
            else:
                route.retry.opened(now)
                if self._by_fd.get(lane.connection.fd) is not lane:  # it has ended by now
                    problem = self._ended(route, lane)
        self._warn(member, problem)

    def _ended(self, route: _MemberRoute, lane: ClientLane) -> str:
        """With the lock held: the lane of a route has ended; returns what an operator should hear of it. One that has
        answered nothing is taken for swallowed, whatever has ended it."""
        route.lane = None
        now, swallowed = time.monotonic(), lane.connection.timed_out or lane.was_useless
        told = route.retry.ended(now, swallowed=swallowed, longest=LANE_PAUSE_S)
        return route.retry.problem(now) if told else ""

    def _warn(self, member: int, problem: str) -> None:
        if problem:
            message = (
                "no lane to member %s: %s; its requests go by actor calls, which are slower (lane_ports, a firewall?)"
            )
            background.log(_log, logging.WARNING, message, member_name(member), problem)

    def _connect(self, member: int, offer: LaneOffer, deadline: float) -> ClientLane | None:
        """Connect, and have the reading thread watch the socket; the first lane starts that thread. ``None`` if the
        transport was closed meanwhile: the check and the registration are under one lock, so no socket is left open."""
        sock = open_lane(offer, self._calls.node, 0, deadline - time.monotonic())
        with finalizer_guard.gc_deferred, self._lock:
            if self._closed:
                sock.close()
                return None
            if self._epoll is None:
                epoll = select.epoll()
                try:
                    self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                except OSError:  # no descriptor is left
                    epoll.close()
                    raise
                epoll.register(self._wake_fd, select.EPOLLIN)
                try:
                    start_thread(threading.Thread(target=self._run, args=(epoll,), name="raykeeper-lanes", daemon=True))
                except NoThreadLeft:  # the next attempt tries again
                    epoll.close()
                    os.close(self._wake_fd)
                    raise
                self._epoll = epoll
            lane = ClientLane(member, Connection(sock, self._epoll), self._calls.send, self._polls)
            self._by_fd[lane.connection.fd] = lane
            return lane

    # -- the thread that reads ----------------------------------------------------------------------------------------

    def _run(self, epoll: select.epoll) -> None:
        thread = finalizer_guard.ServiceThread()
        try:
            self._run_loop(epoll, thread)
        finally:
            thread.close()

    def _run_loop(self, epoll: select.epoll, thread: finalizer_guard.ServiceThread) -> None:
        """Read all lanes until the transport is closed, and then let their last bytes leave, for ``LANE_LINGER_S`` at
        most: a process that ends must not lose what it has just sent."""
        while not self._closed:
            thread.idle()
            ready = epoll.poll()
            thread.busy()
            for fd, events in ready:
                self._handle_event(fd, events)
            if finalizer_guard.collection_overdue():
                background.submit(collect_young)
        # Closed: send what the sockets have not accepted yet, and then the end of file.
        shut_down: set[int] = set()
        while self._by_fd and (left := self._linger_until - time.monotonic()) > 0:
            for lane in list(self._by_fd.values()):
                lane.take_back()
                if not lane.connection.backlog and lane.connection.fd not in shut_down:
                    shut_down.add(lane.connection.fd)
                    lane.connection.shut_down()
            thread.idle()
            ready = epoll.poll(left)
            thread.busy()
            for fd, events in ready:
                self._handle_event(fd, events)
        for lane in list(self._by_fd.values()):
            self._drop(lane)
        with finalizer_guard.gc_deferred, self._lock:
            epoll.close()
            os.close(self._wake_fd)
            self._epoll = None

    def _handle_event(self, fd: int, events: int) -> None:
        """Write and read one lane; its end fails its requests."""
        lane = self._by_fd.get(fd)
        if lane is None:
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            return
        if events & select.EPOLLOUT:
            lane.connection.flush()
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            lane.take_in()
        except LaneBroken as error:
            background.log(_log, logging.DEBUG, "the lane to member %d has ended: %s", lane.member, str(error))
            self._drop(lane)

    def _drop(self, lane: ClientLane) -> None:
        """Remove a lane that has ended, and fail its requests, outside the lock: their callbacks may send again."""
        left, problem = lane.end_all(), ""
        with finalizer_guard.gc_deferred, self._lock:
            self._by_fd.pop(lane.connection.fd, None)
            route = self._routes.get(lane.member)
            if route is not None and route.lane is lane:
                problem = self._ended(route, lane)
        lane.connection.close()
        self._warn(lane.member, problem)
        for done in left:
            try:
                done(LaneBroken(f"the lane to member {lane.member} has ended"))
            except Exception as error:
                background.log(_log, logging.ERROR, "the callback of a failed request raised", error=error)

    def _close_in_child(self) -> None:
        """In a forked child: close what it inherited."""
        for lane in self._by_fd.values():
            lane.connection.close_in_child()
        if self._epoll is not None:
            self._epoll.close()
            os.close(self._wake_fd)


_transports: weakref.WeakSet[LaneTransport] = weakref.WeakSet()


def _close_all_in_child() -> None:
    for transport in list(_transports):
        transport._close_in_child()
    _transports.clear()


os.register_at_fork(after_in_child=_close_all_in_child)
