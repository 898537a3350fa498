"""A member's lanes, on the thread of its loop.

The loop waits here, in epoll, for its next turn. What clients and peers send is read without blocking and put where
actor calls put it, so a frame changes no thread on its way in; and while the loop is at its disk, frames gather in the
kernel: batches form by themselves, and whoever sends more than the member can take is held up by his own full socket.
Answers are written from wherever they are made, without blocking either: those to writes, and to reads of a few keys,
by the loop, what may take long by one of a few threads.

Every lane goes one way: clients ask and members answer on the lane that the client opened; a member sends to each peer
on the lane that it has opened to it, and hears it on the one that the peer has opened. The end of that one is a hint
that the peer is gone, unless the peer has opened another meanwhile.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ...limits import (
    LANE_BACKLOG_BYTES,
    LANE_READ_BYTES,
    LANE_READERS,
    MAX_LANE_BACKLOG_BYTES,
    MAX_LANE_FRAME_BYTES,
    MAX_LANE_REQUESTS,
    MAX_LANES,
    MAX_LANES_BYTES,
    MAX_LANES_REQUESTS,
    TURN_BYTES,
    TURN_EVENTS,
)
from ..protocol import Refusal, Refused
from ..service import MakeReply, Slow, reply_bytes
from . import descriptors
from .lane_frames import FrameKind, Hello, LaneBroken, LaneOffer, Wire, pack
from .lane_gate import Gate

_BROKEN = select.EPOLLHUP | select.EPOLLERR if hasattr(select, "epoll") else 0


class Lane:
    """A lane that somebody has opened to this member, or (``out``) that it has opened to a peer."""

    __slots__ = ("out", "peer", "under_way", "wire")

    def __init__(self, wire: Wire, peer: int, *, out: bool = False) -> None:
        self.wire = wire
        self.peer = peer
        self.out = out
        self.under_way = 0
        """Requests that wait for an answer."""


class Lanes:
    """See the module. Methods are the loop's, unless they say otherwise.

    Args:
        cluster, member: whose lanes these are.
        node, host: the Ray node, and its address.
        submit: takes a client's request (``Service.submit``).
        take_in: takes a frame of a peer.
        lost: told that the lane to a peer has ended: what was sent last may not have arrived.
        came: told that a peer has opened its lane: it is there.
        gone: told that a peer's own lane has ended: the peer may be gone.
    """

    def __init__(
        self,
        *,
        cluster: int,
        member: int,
        node: str,
        host: str,
        submit: Callable[[bytes, Callable[[MakeReply], None]], None],
        take_in: Callable[[bytes], object],
        lost: Callable[[int], None],
        came: Callable[[int], None],
        gone: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._submit = submit
        self._take_in = take_in
        self._lost = lost
        self._came = came
        self._gone = gone
        self._watch = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watch.register(self._bell, select.EPOLLIN)
        self._gate = Gate(
            cluster=cluster,
            member=member,
            node=node,
            host=host,
            watch=self._watch,
            room=self._room,
            admit=self._admit,
            clock=clock,
        )
        self._lanes: dict[int, Lane] = {}
        self._heard_on: dict[int, Lane] = {}
        """Peers: the newest lane that each has opened."""
        self._readers = ThreadPoolExecutor(LANE_READERS, thread_name_prefix="lane reader")
        self._lock = threading.Lock()
        """Around the counts of what is under way, and the bell."""
        self._under_way = 0
        self._turn = 0
        self._closed = False

    def offer(self, *, peer: bool = False) -> LaneOffer | None:
        """How somebody may open a lane to this member; ``None`` if there is no room for one. Any thread."""
        with self._lock:
            if self._closed or not self._room(descriptors.next_number(self._bell), peer):
                return None
        return self._gate.offer()

    def _room(self, number: int, peer: bool) -> bool:
        """Whether a lane may have a descriptor of that number."""
        return (peer or len(self._lanes) < MAX_LANES) and number < descriptors.lane_bound(peer=peer)

    def __len__(self) -> int:
        return len(self._lanes)

    # -- the loop waits -----------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Wait until something can be read or written, or somebody rings; what that is, for :meth:`work`."""
        return self._watch.poll(seconds, TURN_EVENTS)

    def ring(self) -> None:
        """End the wait. Any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def work(self, ready: list[tuple[int, int]], *, clients: bool) -> None:
        """Read and write what can be, peers first; without ``clients`` no requests: enough of them wait already."""
        self._gate.tick()
        later: list[tuple[Lane, int]] = []
        for fd, events in ready:
            lane = self._lanes.get(fd)
            if lane is not None:
                if lane.peer:
                    self._serve(lane, events)
                else:
                    later.append((lane, events))
            elif fd == self._bell:
                os.eventfd_read(self._bell)
            elif self._gate.owns(fd):
                self._gate.look(fd)
        if not later:
            return
        # Somebody else begins each time, so that the bound on a turn hits everybody alike.
        self._turn = (self._turn + 1) % len(later)
        most = TURN_BYTES // LANE_READ_BYTES if clients else 0
        for lane, events in later[self._turn :] + later[: self._turn]:
            self._serve(lane, events, read=most > 0)
            most -= 1

    def _serve(self, lane: Lane, events: int, *, read: bool = True) -> None:
        wire = lane.wire
        try:
            if events & select.EPOLLOUT:
                wire.flush()
                self._read_on(lane)
            if not wire.is_reading() and events & _BROKEN:
                raise LaneBroken("hung up")
            if read and events & (select.EPOLLIN | _BROKEN):
                for kind, number, payload in wire.receive():
                    if kind == FrameKind.MESSAGES and lane.peer and not lane.out:
                        self._take_in(payload)
                    elif kind == FrameKind.REQUEST and not lane.peer:
                        self._ask(lane, number, payload)
                    else:
                        raise LaneBroken(f"a frame of kind {kind}")
                if wire.buffered:
                    self._check_room(lane)
        except LaneBroken:
            self._drop(lane)

    def _check_room(self, lane: Lane) -> None:
        """Close a lane that holds more than it may. The sum is rarely looked at: it costs a walk over all lanes."""
        if lane.wire.backlog > MAX_LANE_BACKLOG_BYTES:
            raise LaneBroken("it does not read its answers")
        if (
            lane.wire.buffered > LANE_READ_BYTES
            and sum(x.wire.buffered for x in self._lanes.values()) > MAX_LANES_BYTES
        ):
            raise LaneBroken("all lanes together hold too much")

    # -- lanes come and go --------------------------------------------------------------------------------------------

    def _admit(self, sock: socket.socket, hello: Hello) -> None:
        lane = Lane(Wire(sock, self._watch), hello.peer)
        self._lanes[lane.wire.fd] = lane
        if hello.peer:
            self._heard_on[hello.peer] = lane
            self._came(hello.peer)

    def attach(self, member: int, sock: socket.socket) -> Lane | None:
        """A lane to a peer has been opened; ``None`` if it comes too late."""
        if self._closed:
            sock.close()
            return None
        lane = Lane(Wire(sock, self._watch), member, out=True)
        self._lanes[lane.wire.fd] = lane
        return lane

    def _drop(self, lane: Lane) -> None:
        if self._lanes.pop(lane.wire.fd, None) is None:
            return
        lane.wire.close()
        if lane.out:
            self._lost(lane.peer)
        elif lane.peer and self._heard_on.get(lane.peer) is lane:
            del self._heard_on[lane.peer]
            self._gone(lane.peer)

    def close(self) -> None:
        """End all lanes; what has been answered by now still arrives."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._gate.close()
        for lane in self._lanes.values():
            lane.wire.finish()
            lane.wire.close()
        self._lanes.clear()
        self._readers.shutdown(wait=False)
        self._watch.close()
        os.close(self._bell)

    # -- clients ------------------------------------------------------------------------------------------------------

    def _ask(self, lane: Lane, number: int, frame: bytes) -> None:
        with self._lock:
            full = self._under_way >= MAX_LANES_REQUESTS
            self._under_way += 1
            lane.under_way += 1
        self._read_on(lane)

        def done(make: MakeReply) -> None:
            if isinstance(make, Slow):
                try:
                    self._readers.submit(self._finish, lane, number, make)
                    return
                except RuntimeError:  # the member has stopped
                    pass
            self._finish(lane, number, make)

        if full:
            done(lambda: reply_bytes(Refused(Refusal.OVERLOADED, message="too many requests wait in this member")))
            return
        try:
            self._submit(frame, done)
        except Exception as error:
            traceback.print_exc()
            refused = Refused(Refusal.NOT_SERVING, message=f"{type(error).__name__}: {error}")
            done(lambda: reply_bytes(refused))

    def _finish(self, lane: Lane, number: int, make: MakeReply) -> None:
        """Make an answer and send it, on the loop's thread or on a reader's."""
        try:
            reply = make()
        except Exception as error:
            if not self._closed:
                traceback.print_exc()
            reply = reply_bytes(Refused(Refusal.NOT_SERVING, message=f"{type(error).__name__}: {error}"))
        if len(reply) > MAX_LANE_FRAME_BYTES:
            lane.wire.send(pack(FrameKind.BY_CALL, number, b""))
        else:
            lane.wire.send(pack(FrameKind.REPLY, number, reply))
        with self._lock:
            self._under_way -= 1
            lane.under_way -= 1
        self._read_on(lane)
        if lane.wire.backlog > MAX_LANE_BACKLOG_BYTES:
            lane.wire.finish(abruptly=True)

    def _read_on(self, lane: Lane) -> None:
        """Read a client's lane as long as it takes its answers. Any thread."""
        if not lane.peer:
            with self._lock:
                lane.wire.read(lane.under_way < MAX_LANE_REQUESTS and lane.wire.backlog <= LANE_BACKLOG_BYTES)
