"""A member's lanes to its peers: opened on threads of their own, written by the loop.

While there is none to a peer, or its backlog is too large, messages go by actor calls, as without lanes. A lane is
opened when there is something to send; after a failure, or when one ends, not again for a while
(:mod:`lane_retry`).

To open one begins with a call to the peer's actor, and its answer may be lost. So that attempt is not the last one: it
ends by itself after ``LANE_ANSWER_S``, and a peer that has opened a lane of its own meanwhile is asked again. If both
are answered, the first lane that opens is kept.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from ...limits import LANE_ANSWER_TOLD_S, LANE_REFUSED_PAUSE_S, MAX_LANE_FRAME_BYTES, PEER_BACKLOG_BYTES
from ..logs import MemberLog
from ..naming import member_name
from ..one_thread import NoThreadLeft, start_thread
from .lane import FrameKind, pack
from .lane_retry import LaneRetry
from .lane_server import Lane, LaneServer
from .lane_tls import LaneSocket

UNANSWERED = "it runs, and its actor does not answer a call for a lane"


class LaneLinks:
    """See the module. Methods are the loop's.

    Args:
        member: the member that these lanes belong to.
        lanes: all lanes of that member.
        dial: opens a lane to a peer and returns its socket; blocks, and raises if that fails.
        hand_over: has the loop call a function.
        clock: seconds on the member's clock.
    """

    def __init__(
        self,
        *,
        member: int,
        lanes: LaneServer,
        dial: Callable[[int], LaneSocket],
        hand_over: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
        log: MemberLog | None = None,
    ) -> None:
        self._log = log or MemberLog("transport", "unknown", member_name(member))
        self._member = member
        self._lanes = lanes
        self._dial = dial
        self._hand_over = hand_over
        self._clock = clock
        self._routes: dict[int, LaneLink] = {}

    def is_open(self, member: int) -> bool:
        """Whether messages to a peer can go by lane now; if there is no lane, this starts to open one."""
        route = self._routes.get(member)
        if route is None:
            route = self._routes[member] = LaneLink(self._member, member)
        if route.lane is not None:
            return route.lane.connection.backlog <= PEER_BACKLOG_BYTES
        now = self._clock()
        if route.opening:
            asked_long_ago = now - route.asked_at >= LANE_ANSWER_TOLD_S
            if asked_long_ago and not route.told and self._lanes.has_lane_from(member):
                route.told = True
                self._warn(route, UNANSWERED)
        elif now >= route.retry.not_before:
            route.opening, route.asked_at, route.attempt = True, now, route.attempt + 1
            name = f"lane to member {member}"
            try:
                start_thread(threading.Thread(target=self._open, args=(route, route.attempt), name=name, daemon=True))
            except NoThreadLeft as error:
                self._failed(route, route.attempt, error)
        return False

    def send_by_lane(self, member: int, frame: bytes) -> bool:
        """Send a frame to a peer by lane; False if it has to go another route."""
        return len(frame) <= MAX_LANE_FRAME_BYTES and self._routes[member].send(frame)

    def open_to(self) -> list[int]:
        """The peers to which a lane is open. Any thread."""
        return [member for member, route in list(self._routes.items()) if route.lane is not None]

    def unreachable(self) -> dict[int, str]:
        """The peers to which no lane can be opened though they run, and why. Any thread."""
        now, routes = self._clock(), list(self._routes.values())
        silent = [route.to for route in routes if route.told and self._lanes.has_lane_from(route.to)]
        return dict.fromkeys(silent, UNANSWERED) | {
            route.to: problem for route in routes if (problem := route.retry.problem(now))
        }

    def peer_connected(self, member: int) -> None:
        """A peer is running: if there is no lane to it, try again without a pause, even if it has not answered what it
        was asked some time ago."""
        route = self._routes.get(member)
        if route is not None:
            now = self._clock()
            route.retry.seen(now)
            if now - route.asked_at >= LANE_REFUSED_PAUSE_S:
                route.opening = False

    def lane_lost(self, member: int) -> None:
        """The lane to a peer has ended. If the peer runs again, it says so by opening its own."""
        route = self._routes[member]
        lane, route.lane = route.lane, None
        swallowed = lane is not None and lane.connection.timed_out
        if route.retry.ended(self._clock(), swallowed=swallowed, longest=LANE_REFUSED_PAUSE_S):
            self._warn(route, route.retry.problem(self._clock()))

    def _open(self, route: LaneLink, attempt: int) -> None:
        try:
            sock = self._dial(route.to)
        except Exception as error:  # no such actor, no lanes there, or no answer: try again later
            failure = error  # the name that `except` binds ends with it
            self._log.debug("no lane to %s: %s", member_name(route.to), failure)
            self._hand_over(lambda: self._failed(route, attempt, failure))
        else:
            self._hand_over(lambda: self._opened(route, attempt, sock))

    def _failed(self, route: LaneLink, attempt: int, error: Exception) -> None:
        if attempt != route.attempt:  # another one has begun since
            return
        route.opening = False
        if route.retry.failed(self._clock(), error):
            self._warn(route, route.retry.problem(self._clock()))

    def _warn(self, route: LaneLink, problem: str) -> None:
        message = "no lane to %s: %s; messages go by actor calls, which are slower (lane_ports, a firewall?)"
        self._log.warning(message, member_name(route.to), problem)

    def _opened(self, route: LaneLink, attempt: int, sock: LaneSocket) -> None:
        if attempt == route.attempt:
            route.opening = False
        if route.lane is not None:  # of another attempt
            sock.close()
            return
        route.told = False
        route.lane = self._lanes.add_outgoing(route.to, sock)
        if route.lane is None:
            route.retry.failed(self._clock(), None)
        else:
            route.retry.opened(self._clock())
            self._log.info("a lane to %s is open", member_name(route.to))


class LaneLink:
    """The lane to one peer, and when to open it again."""

    def __init__(self, sender: int, to: int) -> None:
        self.sender = sender
        self.to = to
        self.lane: Lane | None = None
        self.opening = False
        """Whether an attempt is under way..."""
        self.asked_at = 0.0
        """... since when, on the member's clock..."""
        self.attempt = 0
        """... and its number: an earlier one may end later."""
        self.told = False
        """Whether an operator has heard that it is not answered: until there is a lane."""
        self.retry = LaneRetry(random.Random())

    def send(self, frame: bytes) -> bool:
        """Send a frame to the peer; False if there is no lane. Everything for it by lane goes through here."""
        lane = self.lane
        return lane is not None and lane.connection.send(pack(FrameKind.MESSAGES, 0, frame))
