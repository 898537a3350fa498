"""The cluster's clock: how long ago things happened, as recorded in the log, across all changes of leader.

A leader counts time by a command (``PassTime``), which names the time of the clock that it counted from. If another
such command came first, it is void, so no second is counted twice. No two readings are equal, so every member sees each
of them. It notes on its own clock when it applied the last one, and counts on from there, whatever it had counted
before; the next leader does too (``actors/member/deadlines.py``). So the clock loses the time that applying a command
takes, and the time in which no member ran that knew the last reading. It is never ahead of true time: what has a given
age by this clock is at least that old.

*Readings* say how far log and history reached at a time: the log up to an index, the history up to a revision. History
and request ids are dropped by them. *Beginnings* are readings after which a leader has put every sign of life through
the log, unless the log had one already: a session or lease without one after a beginning has been silent since then.
So leases and sessions run out even if no leader lives as long as they do. Both lists grow thinner with age, always on
the safe side: history counts as younger, silence as shorter.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from ...errors import DataCorrupted
from ...limits import CLOCK_RESOLUTION_DIVISOR, MAX_BEGINNINGS, MAX_CLOCK_GAP_S
from ...schema.commands import PassTime
from ..engine.interface import Engine
from .write_batch import WriteBatch

_FAMILY, _KEY = "meta", b"clock"
_encode = msgspec.msgpack.Encoder().encode


class ClockReading(msgspec.Struct, frozen=True, array_like=True):
    """How far log and history reached at one time of the clock."""

    seconds: float
    index: int
    """The last applied entry then; of a beginning, the command's own entry."""
    revision: int
    """The newest revision then."""


class _StoredClock(msgspec.Struct, frozen=True, array_like=True):
    seconds: float
    readings: tuple[ClockReading, ...]
    beginnings: tuple[ClockReading, ...]


_decode = msgspec.msgpack.Decoder(_StoredClock).decode


class ClusterClock:
    """The replicated clock, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch) -> None:
        self._batch = batch
        self.seconds = 0.0
        """The time of the clock, in seconds; it starts at 0."""
        self.readings: list[ClockReading] = []
        self.beginnings: list[ClockReading] = []

    def load(self, engine: Engine) -> None:
        """Read the clock from the database."""
        data = engine.get(_FAMILY, _KEY)
        if data is None:
            return
        try:
            stored = _decode(data)
        except msgspec.MsgspecError as error:
            raise DataCorrupted(f"the cluster's clock cannot be read: {error}") from error
        self.seconds = stored.seconds
        self.readings, self.beginnings = list(stored.readings), list(stored.beginnings)

    def encoded(self) -> bytes:
        """The encoded clock; equal on every member at equal applied index."""
        return _encode(_StoredClock(self.seconds, tuple(self.readings), tuple(self.beginnings)))

    def pass_time(self, command: PassTime, index: int, horizon: float) -> bool:
        """Advance the clock. Returns False without effect if the command counted from another time, does not
        advance it, or is not plausible.

        Args:
            index: log index of the command.
            horizon: seconds; ages above this need not be told apart.
        """
        if command.since != self.seconds or not 0 <= command.seconds <= MAX_CLOCK_GAP_S:
            return False
        advanced = self.seconds + command.seconds
        if advanced == self.seconds:
            return False
        self.seconds = advanced
        self.readings = _thin([*self.readings, ClockReading(self.seconds, min(command.index, index), command.revision)])
        while len(self.readings) > 1 and self.readings[1].seconds <= self.seconds - horizon:
            del self.readings[0]
        if command.begins:
            self.beginnings = _thin([*self.beginnings, ClockReading(self.seconds, index, command.revision)])[
                -MAX_BEGINNINGS:
            ]
        self._batch.set(_FAMILY, _KEY, self.encoded())
        return True

    @property
    def beginning(self) -> int:
        """Log index of the last beginning, 0 if there is none."""
        return self.beginnings[-1].index if self.beginnings else 0

    def silent_since(self, heard: int) -> float | None:
        """The time from which on a session or lease with its last sign of life at this log index is known to be silent.

        ``None`` if that is unknown: there was no beginning since.
        """
        position = bisect_right(self.beginnings, heard, key=lambda reading: reading.index)
        return self.beginnings[position].seconds if position < len(self.beginnings) else None

    def before(self, seconds: float) -> ClockReading | None:
        """The newest reading at or before a time: what it names is at least as old as that."""
        position = bisect_right(self.readings, seconds, key=lambda reading: reading.seconds)
        return self.readings[position - 1] if position else None


def _thin(readings: list[ClockReading]) -> list[ClockReading]:
    """Drop readings whose neighbors are close together in relation to their age; the newest and the oldest stay."""
    newest = readings[-1].seconds
    kept = [readings[-1]]
    for position in range(len(readings) - 2, 0, -1):
        older = readings[position - 1].seconds
        if kept[-1].seconds - older > (newest - older) / CLOCK_RESOLUTION_DIVISOR:
            kept.append(readings[position])
    if len(readings) > 1:
        kept.append(readings[0])
    kept.reverse()
    return kept
