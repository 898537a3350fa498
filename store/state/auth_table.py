"""Users, roles and what they allow, as of one entry of the log. A table is never changed, only replaced, so any thread
may look at it.

A user has the permissions of all its roles together: a range is allowed if permissions that overlap or touch cover all
of it (etcd: unified range permissions). The role root allows everything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import msgspec

from ...schema.auth_operations import ROOT, Access, Permission
from ...schema.commands import Caller
from ...schema.key_range import KeyRange
from ...schema.key_spaces import is_unused, names_of


class UserRecord(msgspec.Struct, frozen=True, array_like=True):
    """A user."""

    name: str
    hash: bytes
    """Of its password; empty if it has none."""
    since: int
    """A number that no other password of any user has had. Tokens name it, so they end with the password."""
    roles: tuple[str, ...] = ()
    """Sorted."""


class RoleRecord(msgspec.Struct, frozen=True, array_like=True):
    """A role."""

    name: str
    permissions: tuple[Permission, ...] = ()
    """Sorted by their names."""


class AuthHead(msgspec.Struct, frozen=True, array_like=True):
    """What is neither a user nor a role."""

    enabled: bool = False
    revision: int = 1
    """Counts changes (etcd: authRevision)."""
    key: bytes = b""
    """Tokens are signed with it; empty while users are not needed."""
    since: int = 0
    """A number that no other time of being enabled has had: the cluster's own tokens name it."""


_Spans = tuple[list[bytes], list[bytes | None]]
"""Where disjoint spans begin, in order, and where they end; ``None`` is the end of all names."""


class Rights:
    """What one user may do."""

    __slots__ = ("_read", "_write", "is_root", "roles", "user")

    def __init__(self, user: UserRecord, roles: Mapping[str, RoleRecord]) -> None:
        self.user = user.name
        self.roles = user.roles
        self.is_root = ROOT in user.roles
        granted = [permission for name in user.roles if name in roles for permission in roles[name].permissions]
        self._read = _united([each.names for each in granted if each.access is not Access.WRITE])
        self._write = _united([each.names for each in granted if each.access is not Access.READ])

    def may_read(self, keys: KeyRange) -> bool:
        """Whether stored keys may be read."""
        return self.is_root or is_unused(keys) or _covers(self._read, names_of(keys))

    def may_write(self, keys: KeyRange) -> bool:
        """Whether stored keys may be put and deleted."""
        return self.is_root or _covers(self._write, names_of(keys))


class AuthTable:
    """See the module."""

    __slots__ = ("_rights", "enabled", "head", "roles", "users")

    def __init__(
        self,
        head: AuthHead | None = None,
        users: Mapping[str, UserRecord] | None = None,
        roles: Mapping[str, RoleRecord] | None = None,
    ) -> None:
        self.head = head or AuthHead()
        self.enabled = self.head.enabled
        """Whether every call needs a user."""
        self.users = users or {}
        self.roles = roles or {}
        self._rights: dict[str, Rights] = {}

    def rights(self, user: str) -> Rights | None:
        """What a user may do; ``None`` if there is no such user."""
        rights = self._rights.get(user)
        if rights is None and user in self.users:
            rights = self._rights[user] = Rights(self.users[user], self.roles)
        return rights

    def is_valid(self, caller: Caller, now: float) -> bool:
        """Whether the token that named a caller has not ended.

        Args:
            now: the time of the cluster's clock.
        """
        if not self.enabled or now > caller.until:
            return False
        if not caller.user:
            return caller.since == self.head.since
        user = self.users.get(caller.user)
        return user is not None and user.since == caller.since


def _united(ranges: list[KeyRange]) -> _Spans:
    """Disjoint spans of what the ranges cover together."""
    starts: list[bytes] = []
    ends: list[bytes | None] = []
    for start, end in sorted((_span(each) for each in ranges), key=lambda span: span[0]):
        if end is not None and end <= start:
            continue
        if starts and ((last := ends[-1]) is None or start <= last):
            if last is not None and (end is None or end > last):
                ends[-1] = end
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends


def _covers(spans: _Spans, names: KeyRange | None) -> bool:
    if names is None:
        return False
    start, end = _span(names)
    starts, ends = spans
    position = bisect_right(starts, start) - 1
    if position < 0:
        return False
    last = ends[position]
    if last is None:
        return True
    if end is None:
        return False
    return start < last and end <= last


def _span(names: KeyRange) -> tuple[bytes, bytes | None]:
    if names.end is None:
        return names.key, names.key + b"\0"
    return names.key, names.end or None
