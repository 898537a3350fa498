"""Frames in flight: what a core gives its transport to send, and what it remembers of that until the reply."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ....limits import CLIENT_MAX_FRAME_DEADLINE_S, Limits
from ....schema.frames import Read
from ....schema.operations import Operation
from ....schema.validation import check_operation, check_range
from .outbox import Outbox, PendingCall

_REQUEST_OVERHEAD_BYTES = 64
"""Bytes that a request counts in addition to its keys and values."""
_ITEM_GUESS_BYTES = 256
"""Bytes that an item of a read's answer is guessed to take."""


class OutgoingFrame(NamedTuple):
    """A frame for a member; its reply comes back under the same number."""

    number: int
    member: int
    frame: bytes


class LeaseQuestion(NamedTuple):
    """Asks the leader for the status of these leases, all if none is named; answered with ``LeaseStatuses``."""

    leases: tuple[int, ...] = ()
    keys: bool = False
    """Also list the keys that are attached."""
    keep: bool = False
    """Keep these leases alive once, instead; answered with ``LeasesKept`` and their TTLs."""
    owners: bool = False
    """Also tell who made them."""
    most: int = 0
    """If none is named: only so many, those that end first; 0 for all."""


class CallTrace(Protocol):
    """What a sampled call tells of itself."""

    traceparent: str
    """What a frame with it carries."""

    def sent(self, member: int, frame_of: str) -> None:
        """It was put into a frame to that member, which carries the traceparent ``frame_of``: its own, or that of a
        sampled call before it."""
        ...

    def ended(self, outcome: object) -> None:
        """It has its outcome. Must not raise."""
        ...


class Kind(enum.Enum):
    """What a frame asks for: a batch of requests, a new session, or to keep the session alive."""

    BATCH = 0
    OPEN = 1
    KEEP_ALIVE = 2


class InFlight:
    """A frame that was sent and not answered. ``late``: no longer waited for; its calls are queued again."""

    __slots__ = ("calls", "id", "kind", "late", "member", "outbox", "sent_at", "session", "suspect_at")

    def __init__(
        self, id: int, kind: Kind, outbox: Outbox, member: int, calls: list[PendingCall], session: int, sent_at: float
    ) -> None:
        self.id = id
        self.kind = kind
        self.outbox = outbox
        self.member = member
        self.calls = calls
        self.session = session
        self.sent_at = sent_at
        self.suspect_at = sent_at + outbox.reply_timeout()
        self.late = False


def request_size(request: Operation | Read | LeaseQuestion, limits: Limits) -> int:
    """The bytes that a request counts in a batch. A read counts with its answer, as far as that can be guessed.

    Raises:
        RequestTooLarge, InvalidArgument: no member would accept it.
    """
    if isinstance(request, LeaseQuestion):
        return _REQUEST_OVERHEAD_BYTES
    if not isinstance(request, Read):
        return _REQUEST_OVERHEAD_BYTES + check_operation(request, limits)
    size = _REQUEST_OVERHEAD_BYTES + check_range(request.range, limits)
    if request.range.keys.end is None or request.range.count_only:
        return size
    items = min(request.range.limit or limits.max_page_items, limits.max_page_items)
    return size + items * _ITEM_GUESS_BYTES


def longest_wait(calls: Sequence[PendingCall], now: float) -> float:
    """The deadline of a frame: the seconds until the last of its calls times out, up to a bound."""
    return min(max(call.deadline for call in calls) - now, CLIENT_MAX_FRAME_DEADLINE_S)
