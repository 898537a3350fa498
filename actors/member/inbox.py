"""What waits for a member's loop: two bounded queues under one lock, frames from peers and events.

Each has its own share of a batch, so no load of clients can starve a heartbeat, and no flood of messages the clients.
A batch is bounded in number and bytes, and so is each queue. When a queue is full the inbox refuses: a frame is then
dropped, as a network would drop it, and a client's request is refused.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ...limits import MAX_PEER_FRAMES, TURN_BYTES, TURN_EVENTS, Limits
from ..transport.peer_frames import ReceivedFrame
from .events import InboxEvent


class TurnInput(NamedTuple):
    """The input of one turn."""

    frames: list[ReceivedFrame]
    events: list[InboxEvent]


class Inbox:
    """Filled by any thread, emptied by the loop.

    Args:
        limits: ``max_inbox_batches`` and ``max_inbox_bytes`` bound the events of clients.
        wake_loop: wakes the loop; called only while it sleeps.
    """

    def __init__(self, limits: Limits, wake_loop: Callable[[], None]) -> None:
        self._max_events = limits.max_inbox_batches
        self._max_bytes = limits.max_inbox_bytes
        self._wake_loop = wake_loop
        self._lock = threading.Lock()
        self._frames: deque[ReceivedFrame] = deque()
        self._frame_bytes = 0
        self._events: deque[tuple[InboxEvent, int]] = deque()
        self._event_bytes = 0
        self._closed = False
        self._sleeping = False
        self._woken = False

    # -- any thread ---------------------------------------------------------------------------------------------------

    def put_frame(self, frame: ReceivedFrame) -> bool:
        """Add a frame from a peer; False if there is no room for it, or the inbox is closed."""
        with self._lock:
            room = len(self._frames) < MAX_PEER_FRAMES and (
                not self._frames or self._frame_bytes + frame.size <= self._max_bytes
            )
            if self._closed or not room:
                return False
            self._frames.append(frame)
            self._frame_bytes += frame.size
            self._wake_if_asleep()
            return True

    def put_event(self, event: InboxEvent, size: int) -> bool:
        """Add a client's event of that many bytes; False if there is no room for it, or the inbox is closed."""
        with self._lock:
            full = len(self._events) >= self._max_events or self._event_bytes + size > self._max_bytes
            if self._closed or full:
                return False
            self._append(event, size)
            return True

    def put_own(self, event: InboxEvent) -> None:
        """Add an event of the member itself. Never refused: there are few, and losing one would lose work."""
        with self._lock:
            if not self._closed:
                self._append(event, 0)

    def wake(self) -> None:
        """Have the loop do a turn at once, even an empty one."""
        with self._lock:
            self._woken = True
            self._wake_if_asleep()

    def _append(self, event: InboxEvent, size: int) -> None:
        self._events.append((event, size))
        self._event_bytes += size
        self._wake_if_asleep()

    def _wake_if_asleep(self) -> None:
        if self._sleeping:
            self._sleeping = False
            self._wake_loop()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def about_to_sleep(self) -> bool:
        """Whether nothing waits, so that the loop may sleep; then whatever is added wakes it."""
        with self._lock:
            self._sleeping = not (self._frames or self._events or self._woken)
            return self._sleeping

    def awake(self) -> None:
        """The loop has slept: what it puts in itself, before it takes the batch, need not wake it."""
        with self._lock:
            self._sleeping = False

    @property
    def depths(self) -> tuple[int, int, int]:
        """Events that wait, their bytes, and peers' frames that wait. Any thread."""
        return len(self._events), self._event_bytes, len(self._frames)

    @property
    def wants_requests(self) -> bool:
        """Whether there are fewer events than a turn takes; more would only wait here."""
        return len(self._events) < TURN_EVENTS

    def take_batch(self) -> TurnInput:
        """The batch for the next turn; may be empty."""
        with self._lock:
            self._sleeping = self._woken = False
            frames: list[ReceivedFrame] = []
            size = 0
            while self._frames and len(frames) < TURN_EVENTS and (not frames or size < TURN_BYTES):
                frame = self._frames.popleft()
                size += frame.size
                frames.append(frame)
            self._frame_bytes -= size
            # Events have a share of their own, so that a flood of messages does not starve the clients.
            events: list[InboxEvent] = []
            size = 0
            while self._events and len(events) < TURN_EVENTS and (not events or size < TURN_BYTES):
                event, event_size = self._events.popleft()
                size += event_size
                events.append(event)
            self._event_bytes -= size
            return TurnInput(frames, events)

    def close(self) -> TurnInput:
        """Refuse everything from now on; returns what was left."""
        with self._lock:
            self._closed = True
            left = TurnInput(list(self._frames), [event for event, _ in self._events])
            self._frames.clear()
            self._events.clear()
            self._frame_bytes = self._event_bytes = 0
            return left
