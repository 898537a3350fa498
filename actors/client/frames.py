"""Frames of the hub core: what is handed to a transport, what is remembered of it, and how much goes into one."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from ...limits import CLIENT_MAX_FRAME_DEADLINE, Limits
from ...store.commands import Operation
from ..protocol import Read
from ..validation import check_operation, check_range
from .outbox import Call, Outbox

_REQUEST_OVERHEAD = 64
_ITEM_GUESS = 256
"""Bytes guessed for one item of a read's answer."""


class Outgoing(NamedTuple):
    """A frame for a member; the transport brings the reply back under the same call number."""

    call: int
    member: int
    frame: bytes


class LeaseQuestion(NamedTuple):
    """How do these leases (all, if none is named) stand? Answered with ``protocol.Leases``."""

    leases: tuple[int, ...] = ()
    keys: bool = False
    """Also the keys that are attached."""


class Kind(enum.Enum):
    """What a frame holds."""

    BATCH = 0
    OPEN = 1
    KEEP_ALIVE = 2


class Flight:
    """A frame under way. ``late``: no longer waited for, its calls went back into their outbox."""

    __slots__ = ("calls", "id", "kind", "late", "member", "outbox", "sent_at", "session", "suspect_at")

    def __init__(
        self, id: int, kind: Kind, outbox: Outbox, member: int, calls: list[Call], session: int, sent_at: float
    ) -> None:
        self.id = id
        self.kind = kind
        self.outbox = outbox
        self.member = member
        self.calls = calls
        self.session = session
        self.sent_at = sent_at
        self.suspect_at = sent_at + outbox.patience()
        self.late = False


def check_request(request: Operation | Read | LeaseQuestion, limits: Limits) -> int:
    """The bytes that a request counts in a batch; a read counts with its answer, as far as that can be guessed.

    Raises:
        RequestTooLarge, InvalidArgument: no member would take it.
    """
    if isinstance(request, LeaseQuestion):
        return _REQUEST_OVERHEAD
    if not isinstance(request, Read):
        return _REQUEST_OVERHEAD + check_operation(request, limits)
    size = _REQUEST_OVERHEAD + check_range(request.range, limits)
    if request.range.keys.end is None or request.range.count_only:
        return size
    items = min(request.range.limit or limits.max_page_items, limits.max_page_items)
    return size + items * _ITEM_GUESS


def longest_wait(calls: Sequence[Call], now: float) -> float:
    """Seconds for which somebody still waits for one of the calls, as a frame's deadline."""
    return min(max(call.deadline for call in calls) - now, CLIENT_MAX_FRAME_DEADLINE)
