"""Waits for a member's next batch, and reads what arrives by lane.

Actor calls and background threads put what they bring into the inbox. What clients and peers send by lane is read here,
on the loop's own thread: frames from peers are decoded into the inbox, and requests from clients are decoded and
checked by the request handler, which answers at once or puts an event into the inbox. The next turn takes its batch
from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ...limits import LANE_LOOK_S, LANE_PAUSE_S, MAX_LONE_READS
from ...schema.frames import Refusal, Refused
from ...schema.replies import MakeReply, reply_bytes
from ..logs import MemberLog
from ..transport.lane_server import Arrived, Lane, LaneServer
from ..transport.peer_lanes import LaneLinks
from ..transport.peer_transport import PeerTransport
from .fast_failover import FastFailover
from .inbox import Inbox, TurnInput
from .replica import Replica


class Poller(Protocol):
    """What the loop waits with."""

    def wait(self, until: float) -> TurnInput:
        """The next batch, as soon as there is one; at that clock time at the latest, perhaps empty."""
        ...


class Waker:
    """Wakes the loop of a member without lanes."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def wake(self) -> None:
        """End the sleep, or the next one. Any thread."""
        self._woken.set()

    def wait(self, seconds: float) -> None:
        """Sleep until woken, or not at all if woken since the last sleep."""
        self._woken.wait(seconds)
        self._woken.clear()


class InboxPoller:
    """The poller of a member without lanes: everything comes through the inbox."""

    def __init__(self, inbox: Inbox, waker: Waker, clock: Callable[[], float]) -> None:
        self._inbox = inbox
        self._waker = waker
        self._clock = clock

    def wait(self, until: float) -> TurnInput:
        """See :class:`Poller`."""
        if self._inbox.about_to_sleep() and (left := until - self._clock()) > 0:
            self._waker.wait(left)
        return self._inbox.take_batch()


HandleRequest = Callable[[bytes, Callable[[MakeReply], None], Lane, bool], bool]
"""A request, its callback, its lane, and whether it may be answered at once."""


class LanePoller:
    """The poller of a member with lanes.

    Args:
        handle_request: ``RequestHandler.handle_request``.
        report_deaths: told the sessions whose processes are dead.
    """

    def __init__(
        self,
        inbox: Inbox,
        lanes: LaneServer,
        links: LaneLinks,
        transport: PeerTransport,
        replica: Replica,
        failover: FastFailover,
        handle_request: HandleRequest,
        report_deaths: Callable[[Sequence[int]], None],
        clock: Callable[[], float],
        log: MemberLog,
    ) -> None:
        self._inbox = inbox
        self._lanes = lanes
        self._links = links
        self._transport = transport
        self._replica = replica
        self._failover = failover
        self._handle_request = handle_request
        self._report_deaths = report_deaths
        self._clock = clock
        self._log = log
        self._look_at = 0.0
        self._had: set[int] = set()
        """Members to which there was a lane at some time."""

    def wait(self, until: float) -> TurnInput:
        """See :class:`Poller`. A batch for which the turn would find nothing to do is not returned before its time."""
        idle = self._inbox.about_to_sleep()
        while True:
            now = self._clock()
            if now >= self._look_at:
                self._look_at = now + (LANE_LOOK_S if self._keep_lanes() else LANE_PAUSE_S)
            patience = max(0.0, until - now) if idle else 0.0
            ready = self._lanes.wait(patience)
            self._inbox.awake()
            # While enough events wait, requests stay in the kernel: there they slow down those who send them.
            if not self._pass_on(self._lanes.serve(ready, clients=self._inbox.wants_requests)):
                break
            idle = self._inbox.about_to_sleep()
            if not idle or self._clock() >= until:
                break
        return self._inbox.take_batch()

    def _keep_lanes(self) -> bool:
        """Have lanes to all members of the configuration while that is possible. Two followers have nothing to say to
        each other until their leader is lost; and if Ray's GCS is away by then, no actor that was never called before
        can be reached, so without lanes they could elect nobody.

        Returns:
            Whether there is a lane to each, or was one. For the first one the pauses are short: until it is open, the
            loss of the leader and of the GCS together would find this member without it.
        """
        node = self._replica.node
        others = [member for member in node.configuration.members if member != node.id]
        self._had.update([member for member in others if self._links.is_open(member)])
        return self._had.issuperset(others)

    def _pass_on(self, arrived: Arrived) -> bool:
        """Frames before requests: heartbeats must not wait for clients. News of peers come last: a frame that arrived
        before its lane ended is still taken.

        Returns:
            Whether there was nothing but requests, and all have been answered without any work for a turn.
        """
        answered = bool(arrived.requests) and not arrived.others
        for frame in arrived.frames:
            self._transport.receive_from_lane(frame)
        fresh = not arrived.frames  # which may say that this member leads no longer
        for number, (frame, done, lane) in enumerate(arrived.requests):
            try:
                answered = self._handle_request(frame, done, lane, fresh and number < MAX_LONE_READS) and answered
            except Exception as error:  # a bug that one request triggers must not end the member
                self._log.exception("a client's request broke the request handler")
                answered = False
                reply = reply_bytes(Refused(Refusal.NOT_SERVING, message=f"{type(error).__name__}: {error}"))
                done(partial(bytes, reply))
        if arrived.sessions_dead:
            self._report_deaths(arrived.sessions_dead)
        for member in arrived.peers_connected:
            self._links.peer_connected(member)
        for member in arrived.lanes_lost:
            self._links.lane_lost(member)
            self._replica.node.report_unreachable(member)
        for member in arrived.peers_gone:
            self._failover.peer_gone(member, self._clock(), self._replica.timings.election_timeout)
        return answered
