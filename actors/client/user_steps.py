"""What the calls of ``Client.users`` and ``AsyncClient.users`` check, ask for and return: written once for both.

Each call is one operation of the log, done once however often it is sent. A password is hashed before (``hashed``),
which takes a twentieth of a second: it never leaves the process.
"""

from __future__ import annotations

import os
from typing import NamedTuple, TypeVar

from ...errors import InvalidArgument
from ...limits import AUTH_KEY_BYTES, MAX_PASSWORD_BYTES
from ...schema.answers import AuthState, Names, Permissions
from ...schema.auth_operations import (
    Access,
    AskAuth,
    AskRole,
    AskRoles,
    AskUser,
    AskUsers,
    AuthDisable,
    AuthEnable,
    AuthOperation,
    Permission,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserDelete,
    UserGrantRole,
    UserRevokeRole,
    UserSetPassword,
)
from ...schema.key_range import KeyRange
from .. import arguments as check
from ..arguments import Key
from ..passwords import hash_password
from .results import End
from .view import Call, Steps, prefix_end

A = TypeVar("A")

ACCESS = {"read": Access.READ, "write": Access.WRITE, "readwrite": Access.READWRITE}


class GrantedKeys(NamedTuple):
    """A permission of a role."""

    access: str
    """``"read"``, ``"write"`` or ``"readwrite"``."""
    key: bytes
    end: bytes | None
    """Keys from ``key`` up to this one; ``b""``: all from ``key`` on; ``None``: only ``key``."""


def hashed(password: object) -> bytes:
    """What is stored of a password. It takes a twentieth of a second.

    Raises:
        InvalidArgument: it is too long, or not text.
    """
    text = check.text("a password", password)
    if len(text.encode()) > MAX_PASSWORD_BYTES:
        raise InvalidArgument(f"a password has at most {MAX_PASSWORD_BYTES} bytes: bcrypt looks at no more")
    return hash_password(text)


def enable() -> Steps[None]:
    """Steps of ``Users.enable``."""
    return _do(AuthEnable(os.urandom(AUTH_KEY_BYTES)))


def disable() -> Steps[None]:
    """Steps of ``Users.disable``."""
    return _do(AuthDisable())


def auth_state() -> Steps[AuthState]:
    """Steps of ``Users.enabled`` and ``Users.auth_revision``."""
    return _ask(AskAuth(), AuthState)


def add(name: object, hash: bytes) -> Steps[None]:
    """Steps of ``Users.add``."""
    return _do(UserAdd(_user(name), hash))


def delete(name: object) -> Steps[None]:
    """Steps of ``Users.delete``."""
    return _do(UserDelete(_user(name)))


def set_password(name: object, hash: bytes) -> Steps[None]:
    """Steps of ``Users.set_password``."""
    return _do(UserSetPassword(_user(name), hash))


def grant_role(name: object, role: object) -> Steps[None]:
    """Steps of ``Users.grant_role``."""
    return _do(UserGrantRole(_user(name), _role(role)))


def revoke_role(name: object, role: object) -> Steps[None]:
    """Steps of ``Users.revoke_role``."""
    return _do(UserRevokeRole(_user(name), _role(role)))


def users() -> Steps[Names]:
    """Steps of ``Users.list``."""
    return _ask(AskUsers(), Names)


def roles_of(name: object) -> Steps[Names]:
    """Steps of ``Users.roles_of``."""
    return _ask(AskUser(_user(name)), Names)


def add_role(name: object) -> Steps[None]:
    """Steps of ``Users.add_role``."""
    return _do(RoleAdd(_role(name)))


def delete_role(name: object) -> Steps[None]:
    """Steps of ``Users.delete_role``."""
    return _do(RoleDelete(_role(name)))


def roles() -> Steps[Names]:
    """Steps of ``Users.roles``."""
    return _ask(AskRoles(), Names)


def grant_permission(
    role: object, access: str, key: Key | None, end: Key | End | None, prefix: Key | None
) -> Steps[None]:
    """Steps of ``Users.grant_permission``."""
    if access not in ACCESS:
        raise InvalidArgument(f"access is one of {', '.join(ACCESS)}, not {check.shown(access)}")
    names = _names(key, end, prefix)
    return _do(RoleGrantPermission(_role(role), Permission(ACCESS[access], names)))


def revoke_permission(role: object, key: Key | None, end: Key | End | None, prefix: Key | None) -> Steps[None]:
    """Steps of ``Users.revoke_permission``."""
    return _do(RoleRevokePermission(_role(role), _names(key, end, prefix)))


def permissions(role: object) -> Steps[tuple[GrantedKeys, ...]]:
    """Steps of ``Users.permissions``."""
    found = yield from _ask(AskRole(_role(role)), Permissions)
    return tuple([GrantedKeys(each.access.name.lower(), each.names.key, each.names.end) for each in found.permissions])


def _do(operation: AuthOperation) -> Steps[None]:
    yield Call(operation)


def _ask(operation: AuthOperation, kind: type[A]) -> Steps[A]:
    answer = yield Call(operation)
    assert isinstance(answer, kind)
    return answer


def _user(name: object) -> str:
    return check.text("a user", name)


def _role(name: object) -> str:
    return check.text("a role", name)


def _names(key: Key | None, end: Key | End | None, prefix: Key | None) -> KeyRange:
    if (key is None) == (prefix is None):
        raise InvalidArgument("give either a key or a prefix")
    if prefix is not None:
        if end is not None:
            raise InvalidArgument("a prefix has no end")
        begin = check.text_or_bytes("a prefix", prefix)
        return KeyRange(begin, prefix_end(begin))
    begin = check.text_or_bytes("a key", key)
    if isinstance(end, End):
        return KeyRange(begin, b"")
    last = None if end is None else check.text_or_bytes("an end", end)
    if last is not None and last <= begin:
        raise InvalidArgument("the end of a range comes after its key")
    return KeyRange(begin, last)
