"""The active alarms: conditions that members found on themselves and put into the log, so that all members act alike.

They are part of the replicated state (etcd API: Alarm). While an alarm of kind NOSPACE is active, no member accepts
puts. An alarm ends when its member says so, or when the member leaves the configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...limits import MAX_ALARM_CHARACTERS
from ...schema.commands import AlarmKind, SetAlarm
from ..engine.interface import Engine
from .write_batch import WriteBatch

_ALARM = b"alarm/"


class Alarms:
    """The active alarms, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch) -> None:
        self._batch = batch
        self.on: Mapping[tuple[int, AlarmKind], str] = {}
        """The messages, by member and kind. Replaced, never changed, so any thread may read it."""

    def load(self, engine: Engine) -> None:
        """Read them from the database. Raises ``ValueError`` if they cannot be decoded."""
        self.on = {
            (int.from_bytes(key[len(_ALARM) : -1], "big"), AlarmKind(key[-1])): message.decode()
            for key, message in engine.iterate("meta", _ALARM, _ALARM + b"\xff")
        }

    @property
    def no_space(self) -> bool:
        """Whether the cluster refuses puts."""
        return any(kind is AlarmKind.NOSPACE for _, kind in self.on)

    def set(self, command: SetAlarm, members: Collection[int]) -> bool:
        """Raise or end an alarm. Returns False if it would be raised for an id that is not a member."""
        where = command.member, command.kind
        if command.on:
            if command.member not in members:
                return False
            message = command.message[:MAX_ALARM_CHARACTERS]
            self.on = {**self.on, where: message}
            self._batch.set("meta", _key(*where), message.encode())
        elif where in self.on:
            self._end(where)
        return True

    def on_configuration(self, members: Collection[int]) -> None:
        """A configuration has taken effect: alarms of ids that are not in it end."""
        for where in list(self.on):
            if where[0] not in members:
                self._end(where)

    def _end(self, where: tuple[int, AlarmKind]) -> None:
        self.on = {place: message for place, message in self.on.items() if place != where}
        self._batch.set("meta", _key(*where), None)


def _key(member: int, kind: AlarmKind) -> bytes:
    return _ALARM + member.to_bytes(8, "big") + bytes([kind])
