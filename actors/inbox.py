"""What waits for a member's loop, in two bounded queues under one condition.

Peers go first: Raft's messages keep the cluster alive, so no load of clients can starve a heartbeat. What one ``take``
hands out is bounded in number and bytes, and so is what may wait; beyond that the inbox says no, and whoever brought
the thing deals with it (a frame is dropped as networks drop, a request is refused).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..limits import MAX_PEER_FRAMES, TURN_BYTES, TURN_EVENTS, Limits
from .events import Event
from .transport.seam import Received


class Sockets(Protocol):
    """What the loop waits for beside its inbox (``transport.lanes``)."""

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        """Wait until something can be done, or somebody rings."""
        ...

    def work(self, ready: list[tuple[int, int]], *, clients: bool) -> None:
        """Do that; what it brings comes into the inbox."""
        ...

    def ring(self) -> None:
        """End the wait. Any thread."""
        ...


class Inbox:
    """Filled by any thread, emptied by the loop.

    Args:
        limits: ``max_inbox_batches`` and ``max_inbox_bytes`` bound what clients may leave here.
        clock: the clock of ``take``'s deadline.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._max_events = limits.max_inbox_batches
        self._max_bytes = limits.max_inbox_bytes
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._frames: deque[Received] = deque()
        self._frame_bytes = 0
        self._events: deque[tuple[Event, int]] = deque()
        self._event_bytes = 0
        self._closed = False
        self._sleeping = False
        self._woken = False
        self.sockets: Sockets | None = None
        """Set before the loop runs, if it has any."""

    def put_frame(self, frame: Received) -> bool:
        """Bring a frame of a peer; False if there is no room for it, or the inbox is closed."""
        with self._changed:
            room = len(self._frames) < MAX_PEER_FRAMES and (
                not self._frames or self._frame_bytes + frame.size <= self._max_bytes
            )
            if self._closed or not room:
                return False
            self._frames.append(frame)
            self._frame_bytes += frame.size
            self._wake()
            return True

    def put_event(self, event: Event, size: int) -> bool:
        """Bring a client's event of that many bytes; False if there is no room for it, or the inbox is closed."""
        with self._changed:
            full = len(self._events) >= self._max_events or self._event_bytes + size > self._max_bytes
            if self._closed or full:
                return False
            self._append(event, size)
            return True

    def put_own(self, event: Event) -> None:
        """Bring an event of the member itself. Never refused: there are few, and losing one would lose work."""
        with self._changed:
            if not self._closed:
                self._append(event, 0)

    def take(self, until: float) -> tuple[list[Received], list[Event]]:
        """What one turn deals with; waits for something until that clock time, then comes back with nothing."""
        if self.sockets is not None:
            self._look_at(self.sockets, until)
            until = -math.inf
        with self._changed:
            while not self._frames and not self._events and not self._woken:
                left = until - self._clock()
                if left <= 0:
                    break
                self._sleeping = True
                self._changed.wait(left)
                self._sleeping = False
            self._woken = False
            frames: list[Received] = []
            size = 0
            while self._frames and len(frames) < TURN_EVENTS and (not frames or size < TURN_BYTES):
                frame = self._frames.popleft()
                size += frame.size
                frames.append(frame)
            self._frame_bytes -= size
            # Events get their own share, so that a flood of messages does not starve the clients for ever either.
            events: list[Event] = []
            size = 0
            while self._events and len(events) < TURN_EVENTS and (not events or size < TURN_BYTES):
                event, event_size = self._events.popleft()
                size += event_size
                events.append(event)
            self._event_bytes -= size
            return frames, events

    def _look_at(self, sockets: Sockets, until: float) -> None:
        """See what the sockets bring; wait for that only while nothing else waits."""
        with self._changed:
            idle = self._sleeping = not (self._frames or self._events or self._woken)
        ready = sockets.wait(max(0.0, until - self._clock()) if idle else 0.0)
        self._sleeping = False
        # Requests that wait in the kernel hold up those who send them; in here they would only grow old.
        sockets.work(ready, clients=len(self._events) < TURN_EVENTS)

    def close(self) -> tuple[list[Received], list[Event]]:
        """Take nothing more, and hand out what was left."""
        with self._changed:
            self._closed = True
            left = list(self._frames), [event for event, _ in self._events]
            self._frames.clear()
            self._events.clear()
            self._frame_bytes = self._event_bytes = 0
            return left

    def wake(self) -> None:
        """Have ``take`` come back at once, with or without anything."""
        with self._changed:
            self._woken = True
            self._notify()

    def _append(self, event: Event, size: int) -> None:
        self._events.append((event, size))
        self._event_bytes += size
        self._wake()

    def _wake(self) -> None:
        if self._sleeping:
            self._sleeping = False
            self._notify()

    def _notify(self) -> None:
        if self.sockets is not None:
            self.sockets.ring()
        else:
            self._changed.notify()
