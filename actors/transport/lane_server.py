"""A member's lanes, on the thread of its loop.

The loop waits here, in epoll, for its next turn. What clients and peers send is read without blocking and returned as
``Arrived``, so a frame does not change threads on its way in. While the loop waits for its disk, frames gather in the
kernel: so batches form by themselves, and a sender that outpaces the member is slowed down by its own full socket.
Replies are written, also without blocking, by the thread that makes them: the loop for writes and for reads of a few
keys, one of a few threads for what may take a long time.

Every lane has one direction: clients send requests and members reply on the lane that the client opened; a member sends
to a peer on the lane that it has opened to it, and receives on the one that the peer has opened. If that one ends, the
peer may be gone, unless another one is left: it may have opened two, and closes the one that it does not keep (see
:mod:`peer_lanes`), which may be either. The death of a client's process, of this machine, is noticed
here too, if it has asked for that (:mod:`process_monitors`).

A lane is a client process with its session, and clients share a member by lane. Where some of them are busy, each may
have ``LANE_SHARE_BYTES`` of requests under way here, or one request if that is longer; the rest stays in its socket. So
what one client has in flight delays the others by its share and no more. A client that is alone keeps the member busy
with as much as it likes. Answers that take long are made by lanes in turn.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from ...limits import (
    LANE_ALONE_BYTES,
    LANE_BACKLOG_BYTES,
    LANE_READ_BYTES,
    LANE_SHARE_BYTES,
    LANE_SHARE_S,
    MAX_LANE_BACKLOG_BYTES,
    MAX_LANE_FRAME_BYTES,
    MAX_LANE_REQUESTS,
    MAX_LANES,
    MAX_LANES_BYTES,
    MAX_LANES_REQUESTS,
    TURN_BYTES,
    TURN_EVENTS,
)
from ...schema.frames import Refusal, Refused, is_poll
from ...schema.replies import MakeReply, SlowReply, reply_bytes
from ..logs import MemberLog
from ..naming import member_name
from . import descriptors
from .lane import Connection, FrameKind, Hello, LaneBroken, LaneOffer, pack
from .lane_listener import LaneListener
from .lane_readers import LaneReaders, Waiting
from .lane_tls import LaneSocket, ServerTls
from .process_monitors import ProcessMonitors, peer_process

_BROKEN = select.EPOLLHUP | select.EPOLLERR if hasattr(select, "epoll") else 0


class Lane:
    """A lane that was opened to this member, or (``out``) that this member has opened to a peer."""

    __slots__ = ("bytes_under_way", "connection", "out", "peer", "pid", "session", "slow", "source", "under_way")

    def __init__(self, connection: Connection, peer: int, *, out: bool = False, pid: int = 0, source: str = "") -> None:
        self.connection = connection
        self.peer = peer
        self.out = out
        self.source = source
        """Who has opened it, for people."""
        self.pid = pid
        """The process that has opened it, if it is one of this machine; else 0."""
        self.session = 0
        """The session of the client that has opened it, once that is known."""
        self.under_way = 0
        """Requests without a reply..."""
        self.bytes_under_way = 0
        """... and their bytes, without polls, for which this member does nothing most of the time."""
        self.slow: Waiting = deque()
        """Replies that take long to make, and wait for their turn."""


class Arrived:
    """What has arrived by lane since the last turn."""

    __slots__ = ("frames", "lanes_lost", "peers_connected", "peers_gone", "requests", "sessions_dead")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        """Frames from peers."""
        self.requests: list[tuple[bytes, Callable[[MakeReply], None], Lane]] = []
        """Requests from clients, each with the callback for its reply, and its lane."""
        self.peers_connected: list[int] = []
        """Peers that have opened their lane, so they are running."""
        self.lanes_lost: list[int] = []
        """Peers to which the lane has ended: what was sent last may not have arrived."""
        self.peers_gone: list[int] = []
        """Peers whose own lane has ended, so they may be gone."""
        self.sessions_dead: list[int] = []
        """Sessions whose processes are dead."""

    @property
    def others(self) -> bool:
        """Whether there is anything but requests."""
        return bool(self.frames or self.peers_connected or self.lanes_lost or self.peers_gone or self.sessions_dead)


class LaneServer:
    """See the module. Methods are the loop's, unless they say otherwise.

    Args:
        cluster, member: the member that these lanes belong to.
        node: its Ray node.
        host, ports: where it may listen for processes on other nodes.
        tls: for these; ``None`` for none.
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
        clock: Callable[[], float] = time.monotonic,
        log: MemberLog | None = None,
    ) -> None:
        self._log = log or MemberLog("transport", f"{cluster:x}", member_name(member))
        self._arrived = Arrived()
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lanes: dict[int, Lane] = {}
        self._closed = False
        self._lock = threading.Lock()
        """Guards the counts of requests, and the wake-up descriptor."""
        self._monitors = ProcessMonitors()
        self._heard_on: dict[int, Lane] = {}
        """By peer: the newest lane that it has opened and that is left."""
        self._readers = LaneReaders(self._finish)
        self._under_way = 0
        self._clock = clock
        self._latest: Lane | None = None
        """The lane of the latest request..."""
        self._shared_until = -math.inf
        """... and until when clients count as several, since that of the one before was another."""
        self._turn = 0
        try:
            self._epoll.register(self._wake_fd, select.EPOLLIN)
            self._listener = LaneListener(
                cluster=cluster,
                member=member,
                node=node,
                host=host,
                ports=ports,
                tls=tls,
                room=self._room,
                wake=self.wake,
                clock=clock,
                log=self._log,
            )
        except BaseException:
            self._epoll.close()
            os.close(self._wake_fd)
            raise

    def offer_lane(self, node: str, *, peer: bool = False) -> LaneOffer | None:
        """An offer to a process on that Ray node to open a lane to this member; ``None`` if there is no room for one.
        Any thread."""
        with self._lock:
            if self._closed or not self._room(descriptors.next_number(self._wake_fd), self._listener.waiting, peer):
                return None
        return self._listener.offer_lane(node)

    def _room(self, number: int, waiting: int, peer: bool) -> bool:
        """Whether a lane may have the descriptor with that number, beside as many that wait to be taken over. Any
        thread."""
        return (peer or len(self._lanes) + waiting < MAX_LANES) and number < descriptors.lane_bound(peer=peer)

    def __len__(self) -> int:
        return len(self._lanes)

    def lanes_open(self) -> tuple[int, int]:
        """How many lanes clients have opened, and how many there are from and to peers. Any thread."""
        peers = sum([1 for lane in list(self._lanes.values()) if lane.peer])
        return len(self._lanes) - peers, peers

    # -- the loop waits -----------------------------------------------------------------------------------------------

    def has_lane_from(self, member: int) -> bool:
        """Whether a peer has a lane to this member, which the peer has opened. Any thread."""
        return member in self._heard_on

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Wait until something can be read or written, or :meth:`wake` is called; returns events for :meth:`serve`."""
        return self._epoll.poll(seconds, TURN_EVENTS)

    def wake(self) -> None:
        """End the wait. Any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    def serve(self, ready: list[tuple[int, int]], *, clients: bool) -> Arrived:
        """Handle these events, peers first; without ``clients``, requests are left in the kernel: enough wait
        already."""
        self._serve_all(ready, clients=clients)
        arrived, self._arrived = self._arrived, Arrived()
        return arrived

    def _serve_all(self, ready: list[tuple[int, int]], *, clients: bool) -> None:
        """Peers first, without a bound: their frames keep the cluster alive. Clients share what one turn may read."""
        self._listener.hand_over(self._admit)
        later: list[tuple[Lane, int]] = []
        for fd, events in ready:
            lane = self._lanes.get(fd)
            if lane is not None:
                if lane.peer:
                    self._serve(lane, events)
                else:
                    later.append((lane, events))
            elif fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            else:
                self._arrived.sessions_dead += self._monitors.process_ended(fd)
        if not later:
            return
        # Start with another lane each time, so that the bound on a turn is fair.
        self._turn = (self._turn + 1) % len(later)
        most = TURN_BYTES // LANE_READ_BYTES if clients else 0
        for lane, events in later[self._turn :] + later[: self._turn]:
            self._serve(lane, events, read=most > 0)
            most -= 1

    def _serve(self, lane: Lane, events: int, *, read: bool = True) -> None:
        """Write and read one lane. A frame that does not belong on this kind of lane ends it: only a peer's own lane
        carries messages, and only a client's lane requests."""
        connection = lane.connection
        try:
            if events & select.EPOLLOUT:
                connection.flush()
                self._update_reading(lane)
            if not connection.is_reading() and events & _BROKEN:
                raise LaneBroken("hung up")
            if read and events & (select.EPOLLIN | _BROKEN):
                for kind, number, payload in connection.receive():
                    if kind == FrameKind.MESSAGES and lane.peer and not lane.out:
                        self._arrived.frames.append(payload)
                    elif kind == FrameKind.REQUEST and not lane.peer:
                        self._add_request(lane, number, payload)
                    else:
                        raise LaneBroken(f"a frame of kind {kind}")
                if connection.buffered:
                    self._check_room(lane)
        except LaneBroken as error:
            self._log_end(lane, error)
            self._drop(lane)

    def _log_end(self, lane: Lane, error: LaneBroken) -> None:
        """Lanes of peers are few and their ends matter; those of clients come and go with their processes."""
        if lane.peer:
            name = member_name(lane.peer)
            self._log.info("the lane %s %s has ended: %s", "to" if lane.out else "from", name, error)
        else:
            self._log.debug("the lane of a client has ended: %s", error)

    def _check_room(self, lane: Lane) -> None:
        """End a lane that holds more than it may. The sum is checked rarely, because it takes a walk over all lanes."""
        if lane.connection.backlog > MAX_LANE_BACKLOG_BYTES:
            raise LaneBroken("its client does not read its replies")
        if (
            lane.connection.buffered > LANE_READ_BYTES
            and sum(x.connection.buffered for x in self._lanes.values()) > MAX_LANES_BYTES
        ):
            raise LaneBroken("all lanes together hold too many bytes")

    # -- lanes come and go --------------------------------------------------------------------------------------------

    def _admit(self, sock: LaneSocket, hello: Hello, source: str) -> None:
        lane = Lane(
            Connection(sock, self._epoll), hello.peer, pid=0 if hello.peer else peer_process(sock), source=source
        )
        self._lanes[lane.connection.fd] = lane
        if hello.peer:
            self._heard_on[hello.peer] = lane
            self._log.info("%s has opened its lane", member_name(hello.peer))
            self._arrived.peers_connected.append(hello.peer)

    def add_outgoing(self, member: int, sock: LaneSocket) -> Lane | None:
        """Add a lane that was opened to a peer; ``None`` if this member has stopped meanwhile."""
        if self._closed:
            sock.close()
            return None
        lane = Lane(Connection(sock, self._epoll), member, out=True)
        self._lanes[lane.connection.fd] = lane
        return lane

    def _drop(self, lane: Lane) -> None:
        if self._lanes.pop(lane.connection.fd, None) is None:
            return
        lane.connection.close()
        if self._latest is lane:
            self._latest = None
        if lane.pid:
            now = self._clock()
            self._monitors.lane_ended(lane, now)
            self._monitors.expire(now)
        if lane.out:
            self._arrived.lanes_lost.append(lane.peer)
        elif lane.peer and self._heard_on.get(lane.peer) is lane:
            # Of a host that is gone, an older lane may be left for a few LANE_SILENCE_S.
            left = [other for other in self._lanes.values() if other.peer == lane.peer and not other.out]
            if left:
                self._heard_on[lane.peer] = left[-1]
            else:
                del self._heard_on[lane.peer]
                self._arrived.peers_gone.append(lane.peer)

    def close(self) -> None:
        """End all lanes; replies that were written by now still arrive."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._listener.close()
        for lane in self._lanes.values():
            lane.connection.shut_down()
            lane.connection.close()
        self._lanes.clear()
        self._heard_on.clear()
        self._readers.close()
        self._monitors.close()
        self._epoll.close()
        os.close(self._wake_fd)

    # -- clients ------------------------------------------------------------------------------------------------------

    def monitor(self, lane: Lane, session: int) -> bool:
        """Notice it when the process at the other end of a lane, which has that session, dies; whether that is
        possible."""
        self._monitors.expire(self._clock())
        before = len(self._monitors)
        try:
            fd = self._monitors.monitor(lane, lane.pid, session)
            if len(self._monitors) > before:
                if fd >= descriptors.lane_bound(peer=False):
                    raise OSError("no descriptor is left")
                self._epoll.register(fd, select.EPOLLIN)
        except ProcessLookupError:  # it has connected, and is no more
            self._arrived.sessions_dead.append(session)
            self.wake()
            return False
        except OSError as error:
            self._log.debug("process %d cannot be monitored: %s", lane.pid, error)
            if len(self._monitors) > before:
                self._monitors.forget_lane(lane)
            return False
        return True

    def _add_request(self, lane: Lane, number: int, frame: bytes) -> None:
        """Count a request, and hand it to the loop; each counts until its reply was sent, by any thread."""
        weight = 0 if is_poll(frame) else len(frame)
        with self._lock:
            full = self._under_way >= MAX_LANES_REQUESTS
            self._under_way += 1
            lane.under_way += 1
            lane.bytes_under_way += weight
        if lane is not self._latest:
            if self._latest is not None:
                self._shared_until = self._clock() + LANE_SHARE_S
            self._latest = lane
        if lane.under_way >= MAX_LANE_REQUESTS or lane.bytes_under_way >= LANE_SHARE_BYTES:
            self._update_reading(lane)

        def done(make: MakeReply) -> None:
            if not isinstance(make, SlowReply) or not self._readers.submit(lane, number, weight, make):
                self._finish(lane, number, weight, make)

        if full:
            done(lambda: reply_bytes(Refused(Refusal.OVERLOADED, message="too many requests wait in this member")))
            return
        self._arrived.requests.append((frame, done, lane))

    def _finish(self, lane: Lane, number: int, weight: int, make: MakeReply) -> None:
        """Make a reply and send it, on the loop's thread or a reader's."""
        try:
            reply = make()
        except Exception as error:
            if not self._closed:
                self._log.exception("a reply could not be made")
            reply = reply_bytes(Refused(Refusal.NOT_SERVING, message=f"{type(error).__name__}: {error}"))
        if len(reply) > MAX_LANE_FRAME_BYTES:
            lane.connection.send(pack(FrameKind.BY_CALL, number, b""))
        else:
            lane.connection.send(pack(FrameKind.REPLY, number, reply))
        with self._lock:
            self._under_way -= 1
            lane.under_way -= 1
            lane.bytes_under_way -= weight
        if not lane.connection.is_reading() or lane.connection.backlog > LANE_BACKLOG_BYTES:
            self._update_reading(lane)
        if lane.connection.backlog > MAX_LANE_BACKLOG_BYTES:
            lane.connection.shut_down(abruptly=True)

    def _update_reading(self, lane: Lane) -> None:
        """Read a client's lane as long as the client reads its replies, and has no more than its share under way. A
        reply gives room for more, so a lane that is not read never waits for others. Any thread."""
        if not lane.peer:
            with self._lock:
                share = LANE_ALONE_BYTES
                if lane.bytes_under_way >= LANE_SHARE_BYTES and self._clock() < self._shared_until:
                    share = LANE_SHARE_BYTES
                lane.connection.set_reading(
                    lane.under_way < MAX_LANE_REQUESTS
                    and lane.bytes_under_way < share
                    and lane.connection.backlog <= LANE_BACKLOG_BYTES
                )
