"""What a cluster knows of its members besides their part in the configuration: where each lives, and what it can do.

The table is part of the replicated state. It also gives out the ids of new members, which are never used twice: not for
a member that was removed, nor for one that was only ever intended. Who asks for an id names the request, and gets the
same id again when it repeats it; for one member there is never more than one successor under way.

    reserved    has an id and a place, and no part in the configuration yet
    member      stands in the configuration
    removed     had a part, or only a reservation, and never comes back; kept for a while, so that others can tell
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ..limits import MAX_REMOVED_MEMBERS, MAX_RESERVED_MEMBERS
from .commands import RegisterMember, ReserveMember
from .engine import Engine
from .pending import Pending

_MEMBER = b"member/"
_LAST = _MEMBER + bytes(8)
"""Holds the highest id that was ever given out."""

_encode = msgspec.msgpack.Encoder().encode


class Description(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one member."""

    id: int
    name: str
    pin: str = ""
    """The Ray resource that pins it to its place; empty if it has not said so yet."""
    base: str = ""
    """The folder of the cluster's data on its node, in which the member's own folder lies."""
    version: int = 1
    """The newest version of commands that it knows (``commands.COMMANDS_VERSION``)."""
    replaces: int = 0
    """The member whose successor it is to be, 0 for none."""
    voter: bool = True
    """It is to become a voter once it has caught up; false for one that stays a learner until it is promoted."""
    nonce: bytes = b""
    """Names the request that reserved its id."""
    joined: bool = False
    """It has stood in a configuration."""
    removed: bool = False


_decode = msgspec.msgpack.Decoder(Description).decode


class Members:
    """The table, over the batch of writes that the state machine works on."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.by_id: dict[int, Description] = {}
        """Replaced, never changed: may be read on any thread."""
        self._last = 0

    def load(self, engine: Engine) -> None:
        """Read it from the database. Raises ``msgspec.MsgspecError`` for what is no table."""
        found = {}
        for key, value in engine.iterate("meta", _MEMBER, _MEMBER + b"\xff"):
            if key == _LAST:
                self._last = msgspec.msgpack.decode(value, type=int)
            else:
                description = _decode(value)
                found[description.id] = description
        self.by_id = found

    def version(self, members: Collection[int]) -> int:
        """The newest version of commands that all of these know; who has not said so knows version 1."""
        table = self.by_id
        return min((table[member].version if member in table else 1 for member in members), default=1)

    def is_removed(self, member: int) -> bool:
        """Whether a member is known to have been removed. For any thread."""
        description = self.by_id.get(member)
        return description is not None and description.removed

    def reserve(self, command: ReserveMember, members: Collection[int]) -> int:
        """Give out an id, or the one that this request, or another successor of the same member, got; 0 if too many
        are reserved already. ``members`` are those of the configuration."""
        reserved = 0
        for description in self.by_id.values():
            if command.nonce == description.nonce:
                return description.id
            if description.removed:
                continue
            if command.replaces and command.replaces == description.replaces and command.replaces in members:
                return description.id
            reserved += description.id not in members
        if reserved >= MAX_RESERVED_MEMBERS:
            return 0
        self._use(max(self._last, max(members, default=0)) + 1)
        self._put(
            Description(
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
        """Note what a member says of itself; False for one that is removed, or that nobody knows."""
        old = self.by_id.get(command.member)
        if (old is None and command.member not in members) or (old is not None and old.removed):
            return False
        old = old or Description(command.member, f"m{command.member}", joined=True)
        new = msgspec.structs.replace(old, pin=command.pin, base=command.base, version=command.version)
        if new != self.by_id.get(command.member):
            self._put(new)
        return True

    def retire(self, member: int, members: Collection[int]) -> bool:
        """Note that a member is gone for good; False while it stands in the configuration, or for an unknown id."""
        old = self.by_id.get(member)
        known = max(self._last, max(members, default=0))
        if member in members or (old is None and member > known):
            return False
        if old is None or not old.removed:
            self._put(msgspec.structs.replace(old or Description(member, f"m{member}"), removed=True))
            removed = sorted(id for id, description in self.by_id.items() if description.removed)
            for oldest in removed[:-MAX_REMOVED_MEMBERS]:
                self._forget(oldest)
        return True

    def settle(self, before: Collection[int], members: Collection[int]) -> None:
        """A configuration has taken effect: its ids are used up for ever, and a successor is none any more once its
        predecessor is gone."""
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
            self._pending.set("meta", _LAST, _encode(member))

    def _put(self, description: Description) -> None:
        self.by_id = {**self.by_id, description.id: description}
        self._pending.set("meta", _key(description.id), _encode(description))

    def _forget(self, member: int) -> None:
        self.by_id = {id: description for id, description in self.by_id.items() if id != member}
        self._pending.set("meta", _key(member), None)


def _key(member: int) -> bytes:
    return _MEMBER + member.to_bytes(8, "big")
