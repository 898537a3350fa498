"""Users, roles and permissions, as an administrator changes them: ``Client.users``.

Each call is one operation of the log, done once however often it is sent. Passwords are hashed here: they never leave
this process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ...errors import InvalidArgument
from ...limits import AUTH_KEY_BYTES, MAX_PASSWORD_BYTES
from ...schema.answers import Answer, AuthState, Names, Permissions
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
from .view import Call, Steps, prefix_end

if TYPE_CHECKING:
    from .handle import KeyValueClient

A = TypeVar("A")

ACCESS = {"read": Access.READ, "write": Access.WRITE, "readwrite": Access.READWRITE}


class GrantedKeys(NamedTuple):
    """A permission of a role."""

    access: str
    """``"read"``, ``"write"`` or ``"readwrite"``."""
    key: bytes
    end: bytes | None
    """Keys from ``key`` up to this one; ``b""``: all from ``key`` on; ``None``: only ``key``."""


class Users:
    """The users and roles of a cluster, all of it etcd's: see ``docs/security.md``.

    While users are needed, only a user with the role ``root`` may call any of this, except that every user may ask for
    its own roles, and for their permissions. Names are ``str``; keys are ``str`` or ``bytes``, and namespaces do not
    apply to them. Every call takes ``timeout``, in seconds, and raises what other calls do, and

    - ``InvalidArgument``: there is no such user or role, or there is one already, or root would be locked out; its
      ``detail`` says which (``schema.auth_operations.AuthProblem``).
    - ``PermissionDenied``: the user does not have the role ``root``.
    """

    def __init__(self, client: KeyValueClient) -> None:
        self._client = client

    # -- whether users are needed -------------------------------------------------------------------------------------

    def enable(self, *, timeout: float | None = None) -> None:
        """From now on every call needs a user. There must be a user ``root`` with the role ``root``."""
        self._run(AuthEnable(os.urandom(AUTH_KEY_BYTES)), timeout)

    def disable(self, *, timeout: float | None = None) -> None:
        """From now on no call needs a user."""
        self._run(AuthDisable(), timeout)

    def enabled(self, *, timeout: float | None = None) -> bool:
        """Whether calls need a user."""
        return self._ask(AskAuth(), AuthState, timeout).enabled

    def auth_revision(self, *, timeout: float | None = None) -> int:
        """The number of changes of users and roles so far, and one (etcd: authRevision)."""
        return self._ask(AskAuth(), AuthState, timeout).auth_revision

    # -- users --------------------------------------------------------------------------------------------------------

    def add(self, name: str, password: str | None, *, timeout: float | None = None) -> None:
        """Add a user without roles; ``None`` for one without a password, which cannot log in."""
        self._run(UserAdd(check.text("a user", name), b"" if password is None else _hashed(password)), timeout)

    def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a user. What it is doing ends: its tokens are not good any more."""
        self._run(UserDelete(check.text("a user", name)), timeout)

    def set_password(self, name: str, password: str, *, timeout: float | None = None) -> None:
        """Change a user's password. Its tokens end, so its processes must log in with the new one."""
        self._run(UserSetPassword(check.text("a user", name), _hashed(password)), timeout)

    def grant_role(self, name: str, role: str, *, timeout: float | None = None) -> None:
        """Give a user a role."""
        self._run(UserGrantRole(check.text("a user", name), check.text("a role", role)), timeout)

    def revoke_role(self, name: str, role: str, *, timeout: float | None = None) -> None:
        """Take a role from a user. Nothing that is applied afterwards may rely on it, on any member."""
        self._run(UserRevokeRole(check.text("a user", name), check.text("a role", role)), timeout)

    def list(self, *, timeout: float | None = None) -> list[str]:
        """The names of all users, in order."""
        return [*self._ask(AskUsers(), Names, timeout).names]

    def roles_of(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The roles of a user, in order."""
        return self._ask(AskUser(check.text("a user", name)), Names, timeout).names

    # -- roles --------------------------------------------------------------------------------------------------------

    def add_role(self, name: str, *, timeout: float | None = None) -> None:
        """Add a role without permissions."""
        self._run(RoleAdd(check.text("a role", name)), timeout)

    def delete_role(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a role; users lose it."""
        self._run(RoleDelete(check.text("a role", name)), timeout)

    def roles(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """The names of all roles, in order."""
        return self._ask(AskRoles(), Names, timeout).names

    def grant_permission(
        self,
        role: str,
        access: str,
        key: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> None:
        """Give a role the right to keys, and to the locks, queues and other coordination calls of these names.

        Args:
            access: ``"read"``, ``"write"`` or ``"readwrite"``. Coordination calls need the last.
            key, end: one key, or the keys from ``key`` up to ``end``; or
            prefix: all keys that begin with it; ``""`` for all.
        """
        if access not in ACCESS:
            raise InvalidArgument(f"access is one of {', '.join(ACCESS)}, not {check.shown(access)}")
        names = _names(key, end, prefix)
        self._run(RoleGrantPermission(check.text("a role", role), Permission(ACCESS[access], names)), timeout)

    def revoke_permission(
        self,
        role: str,
        key: Key | None = None,
        end: Key | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take a permission from a role: the one that was given for exactly these keys."""
        self._run(RoleRevokePermission(check.text("a role", role), _names(key, end, prefix)), timeout)

    def permissions(self, role: str, *, timeout: float | None = None) -> tuple[GrantedKeys, ...]:
        """The permissions of a role, in the order of their keys."""
        found = self._ask(AskRole(check.text("a role", role)), Permissions, timeout).permissions
        return tuple([GrantedKeys(each.access.name.lower(), each.names.key, each.names.end) for each in found])

    # -- inside -------------------------------------------------------------------------------------------------------

    def _run(self, operation: AuthOperation, timeout: float | None) -> Answer:
        return self._client._run(_one(operation), timeout)

    def _ask(self, operation: AuthOperation, kind: type[A], timeout: float | None) -> A:
        answer = self._run(operation, timeout)
        assert isinstance(answer, kind)
        return answer


def _one(operation: AuthOperation) -> Steps[Answer]:
    answer: Answer = yield Call(operation)
    return answer


def _hashed(password: object) -> bytes:
    text = check.text("a password", password)
    if len(text.encode()) > MAX_PASSWORD_BYTES:
        raise InvalidArgument(f"a password has at most {MAX_PASSWORD_BYTES} bytes: bcrypt looks at no more")
    return hash_password(text)


def _names(key: Key | None, end: Key | None, prefix: Key | None) -> KeyRange:
    if (key is None) == (prefix is None):
        raise InvalidArgument("give either a key or a prefix")
    if prefix is not None:
        if end is not None:
            raise InvalidArgument("a prefix has no end")
        begin = check.text_or_bytes("a prefix", prefix)
        return KeyRange(begin, prefix_end(begin))
    begin = check.text_or_bytes("a key", key)
    last = None if end is None else check.text_or_bytes("an end", end)
    if last is not None and last <= begin:
        raise InvalidArgument("the end of a range comes after its key")
    return KeyRange(begin, last)
