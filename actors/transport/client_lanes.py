"""A client's frames over lanes, and over actor calls where there is none.

A lane to a member is opened once the process has more to say to it than a single question, on a thread of its own;
until it is open, and whenever it is not, frames go by actor calls. Frames are written by whoever has them, without
blocking; one thread of the process reads all of its lanes. When a lane ends, what is under way on it fails at once: the
hub knows how to send it again.

A forked child lets go of its parent's sockets without a trace: it has hubs, and lanes, of its own.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from ...limits import (
    LANE_BACKLOG_BYTES,
    LANE_LINGER,
    LANE_MAX_PAUSE,
    LANE_OPEN_TIMEOUT,
    LANE_PAUSE,
    LANE_REFUSED_PAUSE,
    MAX_LANE_FRAME_BYTES,
    MAX_LANE_REQUESTS,
)
from ..client import undisturbed
from ..client.errands import collect_young, errands
from .lane_frames import FrameKind, LaneBroken, LaneOffer, NoRoom, Wire, open_lane, pack

_log = logging.getLogger(__name__)
_random = random.SystemRandom()
Done = Callable[[bytes | Exception], None]


class Calls(Protocol):
    """The way by actor calls."""

    @property
    def node(self) -> str:
        """The Ray node that this process is on."""
        ...

    def send(self, member: int, frame: bytes, done: Done) -> None:
        """See ``hub.Transport``."""
        ...

    def poll(self, member: int, frame: bytes, done: Done) -> None:
        """See ``hub.Transport``."""
        ...

    def members(self) -> dict[int, str]:
        """See ``hub.Transport``."""
        ...

    def refresh(self) -> None:
        """See ``hub.Transport``."""
        ...

    def valid(self) -> bool:
        """See ``hub.Transport``."""
        ...

    def close(self) -> None:
        """See ``hub.Transport``."""
        ...

    def offer(self, member: int) -> Future[LaneOffer | None]:
        """Ask a member for a lane."""
        ...


class ClientLane:
    """A lane to one member."""

    def __init__(self, member: int, wire: Wire) -> None:
        self.member = member
        self.wire = wire
        self._lock = threading.RLock()
        self._number = 0
        self._waiting: dict[int, tuple[bytes, Done]] = {}
        self._ended = False

    def ask(self, frame: bytes, done: Done) -> bool:
        """Send a frame; False if the lane takes none now. All that leaves for a member by lane leaves here."""
        if undisturbed.held_here(self._lock):
            return False
        with undisturbed.here:
            with self._lock:
                if self._ended or len(self._waiting) >= MAX_LANE_REQUESTS or self.wire.backlog > LANE_BACKLOG_BYTES:
                    return False
                self._number += 1
                number = self._number
                self._waiting[number] = frame, done
            if self.wire.send(pack(FrameKind.REQUEST, number, frame)):
                return True
            return self.take(number) is None  # if somebody else has taken it, it has failed already

    def take(self, number: int) -> tuple[bytes, Done] | None:
        """The frame that a reply answers, and who waits for that. On a thread that is undisturbed."""
        with self._lock:
            return self._waiting.pop(number, None)

    def end(self) -> list[Done]:
        """Take no more; who waits in vain."""
        with undisturbed.here, self._lock:
            self._ended = True
            left = [done for _, done in self._waiting.values()]
            self._waiting.clear()
            return left


class _Way:
    """What is known of the way to one member."""

    def __init__(self) -> None:
        self.asked = 0
        self.lane: ClientLane | None = None
        self.opening = False
        self.failures = 0
        self.not_before = 0.0


class LaneTransport:
    """A hub's transport (``hub.Transport``) that goes by lanes where it can.

    Args:
        calls: the way that always works.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lock = threading.RLock()
        self._ways: dict[int, _Way] = {}
        self._by_fd: dict[int, ClientLane] = {}
        self._watch: select.epoll | None = None
        self._bell = -1
        self._closed = False
        self._linger_until = 0.0
        _transports.add(self)

    @property
    def node(self) -> str:
        """See ``hub.Transport``."""
        return self._calls.node

    def members(self) -> dict[int, str]:
        """See ``hub.Transport``."""
        return self._calls.members()

    def refresh(self) -> None:
        """See ``hub.Transport``; lanes to members that are none any more are closed."""
        self._calls.refresh()
        known = self._calls.members()
        with undisturbed.here, self._lock:
            strays = [way.lane for member, way in self._ways.items() if member not in known and way.lane is not None]
        for lane in strays:
            lane.wire.finish(abruptly=True)

    def valid(self) -> bool:
        """See ``hub.Transport``."""
        return self._calls.valid()

    def send(self, member: int, frame: bytes, done: Done) -> None:
        """See ``hub.Transport``."""
        if not self._by_lane(member, frame, done):
            self._calls.send(member, frame, done)

    def poll(self, member: int, frame: bytes, done: Done) -> None:
        """See ``hub.Transport``."""
        if not self._by_lane(member, frame, done):
            self._calls.poll(member, frame, done)

    def _by_lane(self, member: int, frame: bytes, done: Done) -> bool:
        way = self._ways.get(member)
        if way is not None and (lane := way.lane) is not None:
            return len(frame) <= MAX_LANE_FRAME_BYTES and lane.ask(frame, done)
        with undisturbed.here, self._lock:
            way = self._ways.setdefault(member, _Way())
            way.asked += 1
            wanted = way.asked > 1 and not way.opening and not self._closed and time.monotonic() >= way.not_before
            if wanted and way.lane is None:
                way.opening = True
                name = f"raykeeper-lane-{member}"
                threading.Thread(target=self._open, args=(member, way), name=name, daemon=True).start()
        return False

    def close(self) -> None:
        """Close all lanes, once what was sent has gone out. Comes back at once."""
        with undisturbed.here, self._lock:
            if self._closed:
                return
            self._closed = True
            self._linger_until = time.monotonic() + LANE_LINGER
            if self._watch is not None:
                os.eventfd_write(self._bell, 1)
        self._calls.close()

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self, member: int, way: _Way) -> None:
        deadline = time.monotonic() + LANE_OPEN_TIMEOUT
        lane = None
        offered = True
        try:
            offer = self._calls.offer(member).result(LANE_OPEN_TIMEOUT)
            offered = offer is not None
            if offer is not None:
                lane = self._begin(member, offer, deadline)
        except NoRoom:
            offered = False
        except Exception as error:  # Ray's, of many kinds; or the member does not know what a lane is
            _log.debug("no lane to member %d: %s", member, error)
        with undisturbed.here, self._lock:
            way.opening = False
            way.lane = lane
            if lane is None or self._by_fd.get(lane.wire.fd) is not lane:  # it may have ended by now
                way.lane = None
                longest = LANE_MAX_PAUSE if offered else LANE_REFUSED_PAUSE
                pause = min(longest, LANE_PAUSE * 2 ** min(way.failures, 10))
                way.failures += 1
                way.not_before = time.monotonic() + pause * _random.uniform(0.5, 1.0)
            else:
                way.failures = 0

    def _begin(self, member: int, offer: LaneOffer, deadline: float) -> ClientLane | None:
        sock = open_lane(offer, self._calls.node, 0, deadline - time.monotonic())
        with undisturbed.here, self._lock:
            if self._closed:
                sock.close()
                return None
            if self._watch is None:
                watch = select.epoll()
                try:
                    self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                except OSError:  # no descriptor is left
                    watch.close()
                    raise
                self._watch = watch
                self._watch.register(self._bell, select.EPOLLIN)
                threading.Thread(target=self._run, args=(self._watch,), name="raykeeper-lanes", daemon=True).start()
            lane = ClientLane(member, Wire(sock, self._watch))
            self._by_fd[lane.wire.fd] = lane
            return lane

    # -- the thread that reads ----------------------------------------------------------------------------------------

    def _run(self, watch: select.epoll) -> None:
        thread = undisturbed.OurThread()
        try:
            self._run_undisturbed(watch, thread)
        finally:
            thread.over()

    def _run_undisturbed(self, watch: select.epoll, thread: undisturbed.OurThread) -> None:
        while not self._closed:
            thread.rest()
            ready = watch.poll()
            thread.wake()
            for fd, events in ready:
                self._look(fd, events)
            if undisturbed.held_off():
                errands.do(collect_young)
        # Last words: what the sockets have not taken yet, and then the end of file.
        said: set[int] = set()
        while self._by_fd and (left := self._linger_until - time.monotonic()) > 0:
            for lane in list(self._by_fd.values()):
                if not lane.wire.backlog and lane.wire.fd not in said:
                    said.add(lane.wire.fd)
                    lane.wire.finish()
            thread.rest()
            ready = watch.poll(left)
            thread.wake()
            for fd, events in ready:
                self._look(fd, events)
        for lane in list(self._by_fd.values()):
            self._drop(lane)
        with undisturbed.here, self._lock:
            watch.close()
            os.close(self._bell)
            self._watch = None

    def _look(self, fd: int, events: int) -> None:
        lane = self._by_fd.get(fd)
        if lane is None:
            if fd == self._bell:
                os.eventfd_read(fd)
            return
        if events & select.EPOLLOUT:
            lane.wire.flush()
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            frames = lane.wire.receive()
        except LaneBroken as error:
            errands.log(_log, logging.DEBUG, "the lane to member %d has ended: %s", lane.member, str(error))
            self._drop(lane)
            return
        for kind, number, payload in frames:
            asked = lane.take(number)
            if asked is None:
                continue
            frame, done = asked
            try:
                if kind == FrameKind.BY_CALL:
                    self._calls.send(lane.member, frame, done)
                else:
                    done(payload)
            except Exception as error:  # one reply's trouble must not cost the others
                message = "a reply of member %d could not be taken in"
                errands.log(_log, logging.ERROR, message, lane.member, error=error)

    def _drop(self, lane: ClientLane) -> None:
        with undisturbed.here, self._lock:
            self._by_fd.pop(lane.wire.fd, None)
            way = self._ways.get(lane.member)
            if way is not None and way.lane is lane:
                way.lane = None
                way.not_before = time.monotonic() + LANE_PAUSE
        left = lane.end()
        lane.wire.close()
        for done in left:
            try:
                done(LaneBroken(f"the lane to member {lane.member} has ended"))
            except Exception as error:
                errands.log(_log, logging.ERROR, "the end of a lane could not be told", error=error)

    def _forget(self) -> None:
        """In a forked child."""
        for lane in self._by_fd.values():
            lane.wire.forget()
        if self._watch is not None:
            self._watch.close()
            os.close(self._bell)


_transports: weakref.WeakSet[LaneTransport] = weakref.WeakSet()


def _forget_all() -> None:
    for transport in list(_transports):
        transport._forget()
    _transports.clear()


os.register_at_fork(after_in_child=_forget_all)
