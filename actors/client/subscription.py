"""One watch of a process: what it looks at, where it stands, and what is buffered of it for its consumer."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol

from ...errors import KeeperError
from ...limits import WATCH_BUFFER_BYTES, WATCH_BUFFER_EVENTS
from ...store.commands import KeyRange
from ..protocol import WatchBatch, WatchEvent

_EVENT_BYTES = 200
"""What an event counts beside its keys and values."""


class Gate(Protocol):
    """Whoever waits for news of a watch."""

    def wake(self) -> None:
        """There is something to take. Called with the owner's lock held, so it must not call back."""
        ...


class Phase(enum.Enum):
    """Where a watch is."""

    WAITING = 0
    """To be created."""
    CREATING = 1
    """In a poll under way that creates it."""
    LIVE = 2
    """The member has it."""
    PAUSED = 3
    """Its buffer is full."""
    OVER = 4


class Taken(NamedTuple):
    """What a consumer takes at once."""

    events: list[WatchEvent]
    position: int
    """With these, everything up to this revision was taken."""
    over: bool
    """Nothing more will come..."""
    error: KeeperError | None
    """... because of this, or because the watch was cancelled."""


class Subscription:
    """One watch. Only the core changes it; its owner may read ``fixed`` and ``phase``."""

    __slots__ = (
        "_bytes",
        "_events",
        "alone",
        "before",
        "deletes",
        "error",
        "fixed",
        "gate",
        "id",
        "keys",
        "phase",
        "position",
        "prev",
        "puts",
    )

    def __init__(self, keys: KeyRange, start_revision: int, prev: bool, puts: bool, deletes: bool, gate: Gate) -> None:
        self.keys = keys
        self.prev = prev
        self.puts = puts
        self.deletes = deletes
        self.gate = gate
        self.id = 0
        """In its stream; a new one each time that the watch is created."""
        self.phase = Phase.WAITING
        self.fixed = start_revision > 0
        """Whether it is known where it begins, which ``position`` then tells."""
        self.position = self.before = max(0, start_revision - 1)
        """All up to ``position`` was buffered; ``before`` is where that began, and nothing up to there is ever seen."""
        self.alone = False
        """To be created in a poll of its own, because a member has refused it together with others."""
        self.error: KeeperError | None = None
        self._events: list[WatchEvent] = []
        self._bytes = 0

    def begin(self, start_revision: int) -> None:
        """A member has confirmed the watch."""
        if not self.fixed:
            self.fixed = True
            self.position = self.before = start_revision - 1
            self.gate.wake()

    def add(self, batch: WatchBatch) -> None:
        """Buffer what comes next."""
        self.position = max(self.position, batch.upto)
        if not batch.events:
            return
        self._events += batch.events
        for event in batch.events:
            self._bytes += _EVENT_BYTES + len(event.item.key) + len(event.item.value)
            if event.prev is not None:
                self._bytes += len(event.prev.value)
        self.gate.wake()

    @property
    def full(self) -> bool:
        """Whether the consumer is too slow."""
        return len(self._events) >= WATCH_BUFFER_EVENTS or self._bytes >= WATCH_BUFFER_BYTES

    @property
    def empty(self) -> bool:
        """Whether nothing is buffered."""
        return not self._events

    def drain(self) -> list[WatchEvent]:
        """Hand over what is buffered."""
        events, self._events, self._bytes = self._events, [], 0
        return events

    def end(self, error: KeeperError | None) -> None:
        """Nothing more comes behind what is buffered."""
        self.phase = Phase.OVER
        self.error = error
        if error is None:  # nobody wants the rest
            self.drain()
        self.gate.wake()
