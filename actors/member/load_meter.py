"""What loads a member: writes, reads, watch events and bytes a second, by client and by prefix, over the last seconds.

The hot path pays for one subtraction a frame. Only when a counter of a kind has run out is a frame looked at, and it
stands for all requests of its kind since the last one that was. The counters are set so that about
``LOAD_SAMPLES`` requests a second are looked at: on a member with less to do, all of them are, and the figures are
exact; on a busy one they are a sample, in which each request has the same chance.

Who it is that sends them is a session, as the frames name it. On a lane from this machine the kernel says which process
is at the other end, and a session that is another's is not believed. From other machines, and by actor call, it is what
the client says, which decides nothing but in which row it is counted.

Counts lie in windows of one second on the member's clock; what is shown are the last ``LOAD_SPAN_S`` whole ones. A
window has ``LOAD_ROWS`` rows of each table at most: what no longer fits is counted in one row for all others.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from ...limits import LOAD_ROWS, LOAD_SAMPLES, LOAD_SPAN_S, SHOWN_KEY_BYTES
from ...schema.commands import ClientWrite
from ...schema.frames import Read, Watched
from ...schema.key_spaces import USER_SPACE
from ...schema.operations import Delete, Operation, Put, Range, Txn
from ...schema.operator_frames import Load
from ..transport.lane_server import Lane

T = TypeVar("T")
K = TypeVar("K")


class ClientKey(NamedTuple):
    """Who sends requests, as far as a member knows.

    Attributes:
        session: the id of its session; 0 for a client that has not written, or that names another's.
        source: where it comes from, for people, if it has no session.
        pid: its process, if it is one of this machine without a session; else 0.
    """

    session: int
    source: str = ""
    pid: int = 0


OTHERS = ClientKey(0, "others")
"""The row of clients for which a window has no room..."""
OTHER_KEYS = b"..."
"""... and that of prefixes."""


class Countdown:
    """Requests of one kind until the next that is looked at. ``left`` is counted down where they are served."""

    __slots__ = ("every", "left", "noted", "served")

    def __init__(self) -> None:
        self.every = 1
        """One of so many requests is looked at."""
        self.left = 1
        self.noted = self.served = 0
        """In this window: requests that were looked at, and all that those stand for."""

    def take(self, looked_at: int) -> int:
        """For how many requests those stand that are looked at now. Twice as many as planned are a reason to look at
        fewer even before the window ends."""
        stands_for = self.every - self.left
        self.served += stands_for
        self.noted += looked_at
        if self.noted > 2 * LOAD_SAMPLES:
            self.every, self.noted = self.every * 4, 0
        self.left = self.every
        return stands_for

    def begin_window(self, seconds: int) -> None:
        """A window begins, so many seconds after the last one."""
        self.every = max(1, self.served // (LOAD_SAMPLES * max(1, seconds)))
        self.noted = self.served = 0


class _Window:
    def __init__(self, second: int) -> None:
        self.second = second
        self.clients: dict[ClientKey, list[float]] = {}
        self.prefixes: dict[bytes, list[float]] = {}
        self.total = [0.0, 0.0, 0.0, 0.0]


_WRITES, _READS, _EVENTS, _BYTES = range(4)


class LoadMeter:
    """See the module; any thread.

    Args:
        clock: the member's.
        may_be_of: whether a session may be that of a process of this machine.
    """

    def __init__(
        self, clock: Callable[[], float], may_be_of: Callable[[int, int], bool] = lambda session, pid: True
    ) -> None:
        self._clock = clock
        self._may_be_of = may_be_of
        self.writes, self.reads, self.events = self._countdowns = (Countdown(), Countdown(), Countdown())
        self._lock = threading.Lock()
        self._born = math.floor(clock())
        self._windows = deque([_Window(self._born)], maxlen=math.ceil(LOAD_SPAN_S) + 1)
        self._turn = 0

    def wrote(self, session: int, writes: Sequence[ClientWrite], size: int, lane: Lane | None) -> None:
        """The countdown of writes has run out with this frame, whose command has so many bytes."""
        if lane is not None:
            lane.session = session
        keys = [_written_key(write.operation) for write in self._some(self.writes, writes)]
        self._note(self.writes, _WRITES, self._client(session, lane), keys, size / len(writes) if writes else 0.0)

    def read(self, reads: Sequence[Read], size: int, lane: Lane | None) -> None:
        """The countdown of reads has run out with these reads, whose answer has so many bytes."""
        keys = [read.range.keys.key for read in self._some(self.reads, reads)]
        self._note(
            self.reads,
            _READS,
            self._client(0 if lane is None else lane.session, lane),
            keys,
            size / len(reads) if reads else 0.0,
        )

    def watched(self, reply: Watched, lane: Lane | None) -> None:
        """The countdown of events has run out with the events of this reply."""
        events = [event for batch in reply.batches for event in batch.events]
        size = sum([len(event.item.key) + len(event.item.value) for event in events])
        keys = [event.item.key for event in self._some(self.events, events)]
        self._note(
            self.events,
            _EVENTS,
            self._client(0 if lane is None else lane.session, lane),
            keys,
            size / len(events) if events else 0.0,
        )

    def shown(self, most: int) -> tuple[list[tuple[ClientKey, Load]], list[tuple[bytes, Load]]]:
        """The heaviest clients and prefixes, so many of each at most."""
        with self._lock:
            now = self._window().second
            seconds = min(math.ceil(LOAD_SPAN_S), now - self._born)
            windows = [each for each in self._windows if now - seconds <= each.second < now]
            clients = _sum(each.clients for each in windows)
            prefixes = _sum(each.prefixes for each in windows)
        return (
            [(client, _load(row, seconds)) for client, row in _heaviest(clients, most)],
            [(prefix, _load(row, seconds)) for prefix, row in _heaviest(prefixes, most)],
        )

    def _client(self, session: int, lane: Lane | None) -> ClientKey:
        if session and (lane is None or not lane.pid or self._may_be_of(session, lane.pid)):
            return ClientKey(session)
        return ClientKey(0, "actor calls") if lane is None else ClientKey(0, lane.source, lane.pid)

    def total(self) -> Load:
        """Of all clients together."""
        with self._lock:
            now = self._window().second
            seconds = min(math.ceil(LOAD_SPAN_S), now - self._born)
            rows = [each.total for each in self._windows if now - seconds <= each.second < now]
        return _load([sum(column) for column in zip(*rows, strict=True)] or [0.0] * 4, max(1, seconds))

    def _some(self, countdown: Countdown, requests: Sequence[T]) -> Sequence[T]:
        """Those of a frame's requests that are looked at: all while every frame is, else one, another each time."""
        if countdown.every == 1 or not requests:
            return requests
        self._turn += 1
        return (requests[self._turn % len(requests)],)

    def _note(
        self, countdown: Countdown, column: int, client: ClientKey, keys: Sequence[bytes | None], size: float
    ) -> None:
        with self._lock:
            window = self._window()
            count = countdown.take(len(keys))
            for row in (window.total, _row(window.clients, client, OTHERS)):
                row[column] += count
                row[_BYTES] += count * size
            for key in keys:
                if key is not None:
                    row = _row(window.prefixes, prefix_of(key), OTHER_KEYS)
                    row[column] += count / len(keys)
                    row[_BYTES] += count * size / len(keys)

    def _window(self) -> _Window:
        """The window of this second."""
        last, second = self._windows[-1], math.floor(self._clock())
        if second > last.second:
            for countdown in self._countdowns:
                countdown.begin_window(second - last.second)
            last = _Window(second)
            self._windows.append(last)
        return last


def prefix_of(key: bytes) -> bytes:
    """The prefix under which a stored key is counted: its space, and its first segment with the slash after it; of a
    key without a slash, only the space."""
    begin = 2 if key[1:2] == b"/" else 1
    slash = key.find(b"/", begin, begin + SHOWN_KEY_BYTES)
    if slash >= 0:
        return key[: slash + 1]
    return key[:begin] if key[:1] == USER_SPACE else key[:1]


def _written_key(operation: Operation) -> bytes | None:
    """The key by which a write is counted; ``None`` if it has none."""
    if isinstance(operation, Put):
        return operation.key
    if isinstance(operation, (Delete, Range)):
        return operation.keys.key
    if isinstance(operation, Txn):
        if operation.compare:
            return operation.compare[0].keys.key
        return next(map(_written_key, (*operation.success, *operation.failure)), None)
    return None


def _row(rows: dict[K, list[float]], key: K, others: K) -> list[float]:
    """A row of a window's table; that of all others if the table is full."""
    row = rows.get(key)
    if row is None:
        if len(rows) >= LOAD_ROWS:
            key = others
        row = rows.setdefault(key, [0.0, 0.0, 0.0, 0.0])
    return row


def _sum(tables: Iterable[dict[K, list[float]]]) -> dict[K, list[float]]:
    total: dict[K, list[float]] = {}
    for table in tables:
        for key, row in table.items():
            known = total.setdefault(key, [0.0, 0.0, 0.0, 0.0])
            for column, count in enumerate(row):
                known[column] += count
    return total


def _heaviest(table: dict[K, list[float]], most: int) -> list[tuple[K, list[float]]]:
    return sorted(table.items(), key=lambda each: sum(each[1][:_BYTES]), reverse=True)[:most]


def _load(row: Sequence[float], seconds: int) -> Load:
    return Load(*[round(count / seconds, 2) for count in row])
