"""What has happened to the cluster, for operators: elections, losses, replacements, alarms, with times; the last ones.

It is part of the replicated state, so it outlives every process and Ray's head. Leaders and the supervisor put it into
the log (``RecordEvents``). A leader compares what is with what was recorded last about the same subject, so the newest
event of each subject is kept in memory, too. In the family ``meta``: ``event/`` + number -> the event.
"""

from __future__ import annotations

import msgspec

from ...limits import MAX_EVENT_LETTERS, MAX_EVENTS
from ...schema.commands import ClusterEvent, RecordEvents
from ..engine.interface import Engine
from .write_batch import WriteBatch

EVENT_PREFIX = b"event/"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ClusterEvent).decode

Subject = tuple[str, int, int]


def subject_of(event: ClusterEvent) -> Subject:
    """What an event is about. The next event of the same subject says what has become of it."""
    if event.kind in ("lost", "back"):
        return "member", event.member, 0
    if event.kind in ("alarm", "alarm over"):
        return "alarm", event.member, event.number
    return event.kind, 0, 0


class EventLog:
    """The events, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch) -> None:
        self._batch = batch
        self.kept: tuple[tuple[int, ClusterEvent], ...] = ()
        """Number and event, oldest first. Replaced, never changed, so any thread may read it."""
        self.latest: dict[Subject, ClusterEvent] = {}
        """The newest event of each subject, of those that are kept. For the owner."""

    def load(self, engine: Engine) -> None:
        """Read them from the database. Raises ``msgspec.MsgspecError`` if one cannot be decoded."""
        self.kept = tuple(
            (int.from_bytes(key[len(EVENT_PREFIX) :], "big"), _decode(value))
            for key, value in engine.iterate("meta", EVENT_PREFIX, EVENT_PREFIX + b"\xff")
        )
        self.latest = {subject_of(event): event for _, event in self.kept}

    def record(self, command: RecordEvents) -> None:
        """Keep the events of a command, and forget the oldest. One that has an id is kept once."""
        for event in command.events:
            if event.id and any(event.id == known.id for _, known in self.kept):
                continue
            event = msgspec.structs.replace(event, text=event.text[:MAX_EVENT_LETTERS])
            number = self.kept[-1][0] + 1 if self.kept else 1
            self._batch.set("meta", _key(number), _encode(event))
            forgotten, self.kept = self.kept[: -MAX_EVENTS + 1], (*self.kept[-MAX_EVENTS + 1 :], (number, event))
            for old, gone in forgotten:
                self._batch.set("meta", _key(old), None)
                if self.latest.get(subject_of(gone)) == gone:
                    del self.latest[subject_of(gone)]
            self.latest[subject_of(event)] = event


def _key(number: int) -> bytes:
    return EVENT_PREFIX + number.to_bytes(8, "big")
