"""One watch of a process: its range, its position, and the events that are buffered for its consumer."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

from ....errors import KeeperError
from ....limits import WATCH_BUFFER_BYTES, WATCH_BUFFER_EVENTS
from ....schema.frames import WatchBatch, WatchEvent
from ....schema.operations import KeyRange

_EVENT_BYTES = 200
"""Bytes that a buffered event counts in addition to its key and values."""


class NewsSignal(Protocol):
    """Receives the news of a watch."""

    def wake(self) -> None:
        """The start is fixed, there are events, or the watch is over. Called with the owner's lock held, so it must not
        call back."""
        ...


class Phase(enum.Enum):
    """The phases of a watch."""

    WAITING = 0
    """To be created at a member by a coming poll."""
    CREATING = 1
    """In a poll in flight that creates it."""
    LIVE = 2
    """The member has it, and answers polls with its events."""
    PAUSED = 3
    """Cancelled at the member, because its buffer was full; created again once it is drained."""
    OVER = 4
    """Cancelled, or ended by an error."""


class Delivery(NamedTuple):
    """What a consumer is handed at once."""

    events: list[WatchEvent]
    position: int
    """With these events, everything up to this revision was delivered."""
    over: bool
    """Nothing more will come."""
    error: KeeperError | None
    """Why the watch is over; ``None`` if it is not, or was cancelled."""


class Subscription:
    """One watch. Only the core changes it; its owner may read ``fixed`` and ``phase``."""

    __slots__ = (
        "_bytes",
        "_events",
        "alone",
        "deletes",
        "error",
        "fixed",
        "id",
        "keys",
        "loop",
        "phase",
        "position",
        "prev",
        "puts",
        "signal",
        "start_after",
    )

    def __init__(
        self,
        keys: KeyRange,
        start_revision: int,
        prev: bool,
        puts: bool,
        deletes: bool,
        signal: NewsSignal,
        loop: object | None = None,
    ) -> None:
        self.keys = keys
        self.prev = prev
        self.puts = puts
        self.deletes = deletes
        self.signal = signal
        self.loop = loop
        """What reads lanes in the event loop whose coroutines take the events; ``None`` if a thread takes them."""
        self.id = 0
        """Of the watch in its stream: a new one each time that it is created, 0 while it is in none."""
        self.phase = Phase.WAITING
        self.fixed = start_revision > 0
        """Whether the first revision to see is known; it is ``start_after + 1``."""
        self.position = self.start_after = max(0, start_revision - 1)
        """Every event after ``start_after`` and up to ``position`` was buffered; it never sees an earlier one."""
        self.alone = False
        """To be created by a poll of its own, because a member has refused it together with others."""
        self.error: KeeperError | None = None
        self._events: list[WatchEvent] = []
        self._bytes = 0

    def confirm_start(self, start_revision: int) -> None:
        """A member has confirmed the watch from this revision on. That fixes the start of a watch from "now"."""
        if not self.fixed:
            self.fixed = True
            self.position = self.start_after = start_revision - 1
            self.signal.wake()

    def add_batch(self, batch: WatchBatch) -> None:
        """Buffer the events that come next."""
        self.position = max(self.position, batch.upto)
        if not batch.events:
            return
        self._events += batch.events
        for event in batch.events:
            self._bytes += _EVENT_BYTES + len(event.item.key) + len(event.item.value)
            if event.prev is not None:
                self._bytes += len(event.prev.value)
        self.signal.wake()

    @property
    def full(self) -> bool:
        """Whether the buffer is full: the consumer is too slow."""
        return len(self._events) >= WATCH_BUFFER_EVENTS or self._bytes >= WATCH_BUFFER_BYTES

    @property
    def empty(self) -> bool:
        """Whether no event is buffered."""
        return not self._events

    def drain(self) -> list[WatchEvent]:
        """Take out all buffered events."""
        events, self._events, self._bytes = self._events, [], 0
        return events

    def end(self, error: KeeperError | None) -> None:
        """The watch is over. After an error the consumer still gets what is buffered; after a cancellation nothing."""
        self.phase = Phase.OVER
        self.error = error
        if error is None:
            self.drain()
        self.signal.wake()
