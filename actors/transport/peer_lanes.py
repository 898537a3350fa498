"""A member's lanes to its peers: opened on threads of their own, written by the loop.

While there is none to a peer, or more waits on it than it takes, messages go by actor calls, as without lanes. A lane
is opened because somebody has something to send; after a failure, or when one breaks, not again for a while.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable

from ...limits import LANE_MAX_PAUSE, LANE_PAUSE, MAX_LANE_FRAME_BYTES, PEER_BACKLOG_BYTES
from .lane_frames import FrameKind, pack
from .lanes import Lane, Lanes


class PeerLanes:
    """See the module. Methods are the loop's.

    Args:
        member: whose lanes these are.
        lanes: all lanes of the member.
        dial: opens a lane to a member and returns its socket; blocks, and raises if there is none to be had.
        hand_over: has the loop call something.
        clock: seconds on the member's clock.
    """

    def __init__(
        self,
        *,
        member: int,
        lanes: Lanes,
        dial: Callable[[int], socket.socket],
        hand_over: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self._member = member
        self._lanes = lanes
        self._dial = dial
        self._hand_over = hand_over
        self._clock = clock
        self._ways: dict[int, _Way] = {}

    def is_open(self, member: int) -> bool:
        """Whether messages to a peer can go by lane now; if there is none, one is opened."""
        way = self._ways.get(member)
        if way is None:
            way = self._ways[member] = _Way(self._member, member)
        if way.lane is not None:
            return way.lane.wire.backlog <= PEER_BACKLOG_BYTES
        if not way.opening and self._clock() >= way.not_before:
            way.opening = True
            threading.Thread(target=self._open, args=(way,), name=f"lane to member {member}", daemon=True).start()
        return False

    def carry(self, member: int, frame: bytes) -> bool:
        """Send a frame to a peer by lane; False if it has to go another way."""
        return len(frame) <= MAX_LANE_FRAME_BYTES and self._ways[member].carry(frame)

    def came(self, member: int) -> None:
        """A peer is there: if there is no lane to it, there is no need to wait before trying again."""
        if member in self._ways:
            self._ways[member].failures = 0
            self._ways[member].not_before = self._clock()

    def lost(self, member: int) -> None:
        """The lane to a peer has ended."""
        way = self._ways[member]
        way.lane = None
        way.pause(self._clock())

    def _open(self, way: _Way) -> None:
        try:
            sock = self._dial(way.to)
        except Exception:  # no such actor, no lanes there, or nobody answers: all mean not now
            self._hand_over(lambda: self._opened(way, None))
        else:
            self._hand_over(lambda: self._opened(way, sock))

    def _opened(self, way: _Way, sock: socket.socket | None) -> None:
        way.opening = False
        way.lane = self._lanes.attach(way.to, sock) if sock is not None else None
        if way.lane is None:
            way.pause(self._clock())
        else:
            way.failures = 0


class _Way:
    """The way to one peer."""

    def __init__(self, sender: int, to: int) -> None:
        self.sender = sender
        self.to = to
        self.lane: Lane | None = None
        self.opening = False
        self.failures = 0
        self.not_before = 0.0
        self._rng = random.Random()

    def carry(self, frame: bytes) -> bool:
        """All that leaves for the peer by lane leaves here."""
        lane = self.lane
        return lane is not None and lane.wire.send(pack(FrameKind.MESSAGES, 0, frame))

    def pause(self, now: float) -> None:
        pause = min(LANE_MAX_PAUSE, LANE_PAUSE * 2 ** min(self.failures, 10))
        self.failures += 1
        self.not_before = now + pause * self._rng.uniform(0.5, 1.0)
