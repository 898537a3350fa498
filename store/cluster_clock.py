"""The cluster's clock: how long ago things happened, as the log itself tells it, whoever leads and however briefly.

A leader tells of time that has passed by a command (``PassTime``), which names the reading that it began from: if
another one came between, it is void, so no second is counted twice. No two readings are equal, so every member sees
each of them. It notes when it applied the last one, on its own clock, and counts on from there, whatever it had counted
before; whoever leads next does too (``actors/timekeeper.py``). So the clock loses what it takes to apply a command, and
the time in which nobody ran who knew the last reading, and is never ahead of true time: what is so and so old by this
clock is at least so old.

*Marks* tell what was there at a reading: the log up to an index, the history up to a revision. By them history and
request ids are forgotten. *Beginnings* are marks from which on a leader put every sign of life into the log of whoever
had not given one since: of what has none in the log behind a beginning it is known that it was silent from there on.
By them leases and sessions run out though no leader lives as long as they. Both lists grow thinner with age, always to
the safe side: history counts as younger, silence as shorter.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from ..errors import DataCorrupted
from ..limits import CLOCK_RESOLUTION, MAX_BEGINNINGS, MAX_PASSED_SECONDS
from .commands import PassTime
from .engine import Engine
from .pending import Pending

FAMILY, KEY = "meta", b"clock"
_encode = msgspec.msgpack.Encoder().encode


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What was there at a reading of the clock."""

    seconds: float
    index: int
    """The last entry of the log that was applied then; of a beginning, the command's own."""
    revision: int
    """The newest revision then."""


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    seconds: float
    marks: tuple[Mark, ...]
    beginnings: tuple[Mark, ...]


_decode = msgspec.msgpack.Decoder(_Stored).decode


class ClusterClock:
    """The replicated clock, in memory and in the batch that is being applied."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.seconds = 0.0
        """The last reading that stands in the log."""
        self.marks: list[Mark] = []
        self.beginnings: list[Mark] = []

    def load(self, engine: Engine) -> None:
        """Read what the database holds."""
        data = engine.get(FAMILY, KEY)
        if data is None:
            return
        try:
            stored = _decode(data)
        except msgspec.MsgspecError as error:
            raise DataCorrupted(f"the cluster's clock cannot be read: {error}") from error
        self.seconds = stored.seconds
        self.marks, self.beginnings = list(stored.marks), list(stored.beginnings)

    def encoded(self) -> bytes:
        """All of it; equal on every member at equal applied index."""
        return _encode(_Stored(self.seconds, tuple(self.marks), tuple(self.beginnings)))

    def pass_time(self, command: PassTime, index: int, horizon: float) -> bool:
        """Go on; False, and nothing has happened, if the command began from another reading, does not go on from it, or
        is none that can be.

        Args:
            index: of the command in the log.
            horizon: seconds; what is older than this need not be told apart.
        """
        if command.since != self.seconds or not 0 <= command.seconds <= MAX_PASSED_SECONDS:
            return False
        reading = self.seconds + command.seconds
        if reading == self.seconds:
            return False
        self.seconds = reading
        self.marks = _thin([*self.marks, Mark(self.seconds, min(command.index, index), command.revision)])
        while len(self.marks) > 1 and self.marks[1].seconds <= self.seconds - horizon:
            del self.marks[0]
        if command.begins:
            self.beginnings = _thin([*self.beginnings, Mark(self.seconds, index, command.revision)])[-MAX_BEGINNINGS:]
        self._pending.set(FAMILY, KEY, self.encoded())
        return True

    @property
    def beginning(self) -> int:
        """Log index of the last beginning, 0 if there is none."""
        return self.beginnings[-1].index if self.beginnings else 0

    def silent_since(self, heard: int) -> float | None:
        """From which reading on it is known that whatever gave its last sign of life at a log index was silent.

        ``None`` if that is not known: there was no beginning since.
        """
        position = bisect_right(self.beginnings, heard, key=lambda mark: mark.index)
        return self.beginnings[position].seconds if position < len(self.beginnings) else None

    def before(self, seconds: float) -> Mark | None:
        """The newest mark at or before a reading: what it names is at least as old as that."""
        position = bisect_right(self.marks, seconds, key=lambda mark: mark.seconds)
        return self.marks[position - 1] if position else None


def _thin(marks: list[Mark]) -> list[Mark]:
    """Leave out marks whose neighbours lie close together beside their age; the newest and the oldest stay."""
    newest = marks[-1].seconds
    kept = [marks[-1]]
    for position in range(len(marks) - 2, 0, -1):
        older = marks[position - 1].seconds
        if kept[-1].seconds - older > (newest - older) / CLOCK_RESOLUTION:
            kept.append(marks[position])
    if len(marks) > 1:
        kept.append(marks[0])
    kept.reverse()
    return kept
