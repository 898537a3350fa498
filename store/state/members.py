"""The table of members: where each one lives and which commands it knows. The configuration only says who takes part.

The table is part of the replicated state. It also assigns the ids of new members, which are never used twice: not those
of removed members, nor those that were only reserved. A request for an id has a nonce, and gets the same id when it is
repeated; a member has never more than one successor at a time.

    reserved    has an id and a place, but is not yet in the configuration
    member      is in the configuration
    removed     was a member, or only reserved, and never comes back; kept for a while, so that others can tell
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ...limits import MAX_REMOVED_MEMBERS, MAX_RESERVED_MEMBERS
from ...schema.commands import RegisterMember, ReserveMember
from ...schema.member_record import MemberRecord
from ..engine.interface import Engine
from .write_batch import WriteBatch

_MEMBER = b"member/"
_LAST = _MEMBER + bytes(8)
"""Holds the highest id ever assigned."""

_encode = msgspec.msgpack.Encoder().encode


_decode = msgspec.msgpack.Decoder(MemberRecord).decode


class Members:
    """The table, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch) -> None:
        self._batch = batch
        self.by_id: dict[int, MemberRecord] = {}
        """Replaced, never changed, so any thread may read it."""
        self._last = 0

    def load(self, engine: Engine) -> None:
        """Read it from the database. Raises ``msgspec.MsgspecError`` if it cannot be decoded."""
        found = {}
        for key, value in engine.iterate("meta", _MEMBER, _MEMBER + b"\xff"):
            if key == _LAST:
                self._last = msgspec.msgpack.decode(value, type=int)
            else:
                record = _decode(value)
                found[record.id] = record
        self.by_id = found

    def version(self, members: Collection[int]) -> int:
        """The newest version of commands that all of these members know. A member that has not said so knows version
        1."""
        table = self.by_id
        return min((table[member].version if member in table else 1 for member in members), default=1)

    def is_removed(self, member: int) -> bool:
        """Whether a member is known to have been removed. For any thread."""
        record = self.by_id.get(member)
        return record is not None and record.removed

    def reserve(self, command: ReserveMember, members: Collection[int]) -> int:
        """Assign an id to a new member. A repeated request gets the same id, and so does a second request for a
        successor of the same member. Returns 0 if too many ids are reserved. ``members`` are those of the
        configuration."""
        reserved = 0
        for record in self.by_id.values():
            if command.nonce == record.nonce:
                return record.id
            if record.removed:
                continue
            if command.replaces and command.replaces == record.replaces and command.replaces in members:
                return record.id
            reserved += record.id not in members
        if reserved >= MAX_RESERVED_MEMBERS:
            return 0
        self._use(max(self._last, max(members, default=0)) + 1)
        self._put(
            MemberRecord(
                self._last,
                f"m{self._last}",
                command.pin,
                command.base,
                replaces=command.replaces,
                voter=command.voter,
                nonce=command.nonce,
            )
        )
        return self._last

    def register(self, command: RegisterMember, members: Collection[int]) -> bool:
        """Record what a member says about itself. Returns False for a removed or unknown member."""
        old = self.by_id.get(command.member)
        if (old is None and command.member not in members) or (old is not None and old.removed):
            return False
        old = old or MemberRecord(command.member, f"m{command.member}", joined=True)
        new = msgspec.structs.replace(old, pin=command.pin, base=command.base, version=command.version)
        if new != self.by_id.get(command.member):
            self._put(new)
        return True

    def retire(self, member: int, members: Collection[int]) -> bool:
        """Record that a member is gone for good. Returns False while it is in the configuration, or for an unknown
        id."""
        old = self.by_id.get(member)
        known = max(self._last, max(members, default=0))
        if member in members or (old is None and member > known):
            return False
        if old is None or not old.removed:
            self._put(msgspec.structs.replace(old or MemberRecord(member, f"m{member}"), removed=True))
            removed = sorted(id for id, record in self.by_id.items() if record.removed)
            for oldest in removed[:-MAX_REMOVED_MEMBERS]:
                self._forget(oldest)
        return True

    def on_configuration(self, before: Collection[int], members: Collection[int]) -> None:
        """A configuration has taken effect: its ids are never assigned again, and a member is no longer a successor
        once its predecessor is gone."""
        self._use(max((*before, *members), default=0))
        for old in list(self.by_id.values()):
            if old.id in members:
                replaces = old.replaces if old.replaces in members else 0
                new = msgspec.structs.replace(old, joined=True, replaces=replaces)
                if new != old:
                    self._put(new)

    def _use(self, member: int) -> None:
        if member > self._last:
            self._last = member
            self._batch.set("meta", _LAST, _encode(member))

    def _put(self, record: MemberRecord) -> None:
        self.by_id = {**self.by_id, record.id: record}
        self._batch.set("meta", _key(record.id), _encode(record))

    def _forget(self, member: int) -> None:
        self.by_id = {id: record for id, record in self.by_id.items() if id != member}
        self._batch.set("meta", _key(member), None)


def _key(member: int) -> bytes:
    return _MEMBER + member.to_bytes(8, "big")
