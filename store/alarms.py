"""The alarms that are on: what members found wrong with themselves, said through the log so that all act on it alike.

They are part of the replicated state (etcd API: Alarm). While one of kind NOSPACE is on, no member's state takes a put.
An alarm ends when the member says so, or when it leaves the configuration: nobody could end it for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..limits import MAX_ALARM_LETTERS
from .commands import AlarmKind, SetAlarm
from .engine import Engine
from .pending import Pending

_ALARM = b"alarm/"


class Alarms:
    """The table, over the batch of writes that the state machine works on."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.on: Mapping[tuple[int, AlarmKind], str] = {}
        """By member and kind: what was said of it. Replaced, never changed: for any thread."""

    def load(self, engine: Engine) -> None:
        """Read it from the database. Raises ``ValueError`` for what is no table."""
        self.on = {
            (int.from_bytes(key[len(_ALARM) : -1], "big"), AlarmKind(key[-1])): message.decode()
            for key, message in engine.iterate("meta", _ALARM, _ALARM + b"\xff")
        }

    @property
    def no_space(self) -> bool:
        """Whether the cluster takes no puts."""
        return any(kind is AlarmKind.NOSPACE for _, kind in self.on)

    def set(self, command: SetAlarm, members: Collection[int]) -> bool:
        """Begin or end an alarm; False for one that would begin for somebody who is no member."""
        where = command.member, command.kind
        if command.on:
            if command.member not in members:
                return False
            message = command.message[:MAX_ALARM_LETTERS]
            self.on = {**self.on, where: message}
            self._pending.set("meta", _key(*where), message.encode())
        elif where in self.on:
            self._end(where)
        return True

    def settle(self, members: Collection[int]) -> None:
        """A configuration has taken effect: the alarms of those who are not in it end."""
        for where in list(self.on):
            if where[0] not in members:
                self._end(where)

    def _end(self, where: tuple[int, AlarmKind]) -> None:
        self.on = {place: message for place, message in self.on.items() if place != where}
        self._pending.set("meta", _key(*where), None)


def _key(member: int, kind: AlarmKind) -> bytes:
    return _ALARM + member.to_bytes(8, "big") + bytes([kind])
