"""Users and roles in the replicated state: what the operations on them do (etcd: its auth store).

In the family ``meta``: ``auth/head`` -> ``AuthHead``; ``auth/user/`` + name -> ``UserRecord``; ``auth/role/`` + name ->
``RoleRecord``. In memory there is one ``AuthTable``, which is replaced whenever something changes.

Whether a caller may do it is not decided here (``permission_check``).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ...limits import (
    AUTH_KEY_BYTES,
    MAX_PERMISSIONS_OF_ROLE,
    MAX_ROLES,
    MAX_ROLES_OF_USER,
    MAX_USER_NAME_BYTES,
    MAX_USERS,
)
from ...schema.answers import Answer, AuthState, Done, Names, Permissions
from ...schema.auth_operations import (
    ROOT,
    AskAuth,
    AskRole,
    AskRoles,
    AskUser,
    AskUsers,
    AuthDisable,
    AuthEnable,
    AuthOperation,
    AuthProblem,
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
from ..engine.interface import Engine
from .auth_table import AuthHead, AuthTable, RoleRecord, UserRecord
from .write_batch import WriteBatch

AUTH_PREFIX = b"auth/"
_HEAD, _USER, _ROLE = b"auth/head", b"auth/user/", b"auth/role/"

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(AuthHead).decode
_decode_user = msgspec.msgpack.Decoder(UserRecord).decode
_decode_role = msgspec.msgpack.Decoder(RoleRecord).decode


class AuthRefused(Exception):
    """An operation has no effect."""

    def __init__(self, problem: AuthProblem) -> None:
        super().__init__(problem)
        self.problem = problem


class Auth:
    """Users and roles, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch) -> None:
        self._batch = batch
        self.table = AuthTable()

    def load(self, engine: Engine) -> None:
        """Read them from the database. Raises ``msgspec.MsgspecError`` if they cannot be decoded."""
        head = engine.get("meta", _HEAD)
        users = [_decode_user(value) for _, value in engine.iterate("meta", _USER, _USER + b"\xff")]
        roles = [_decode_role(value) for _, value in engine.iterate("meta", _ROLE, _ROLE + b"\xff")]
        self.table = AuthTable(
            None if head is None else _decode_head(head),
            {user.name: user for user in users},
            {role.name: role for role in roles},
        )

    def run(self, operation: AuthOperation, revision: int, fresh_id: int) -> Answer:
        """Run an operation. Nothing is written before all that could refuse it was checked.

        Args:
            revision: of the store.
            fresh_id: a number that no other operation ever gets.

        Raises:
            AuthRefused: it has no effect.
        """
        table = self.table
        if isinstance(operation, AskAuth):
            return AuthState(revision, table.enabled, table.head.revision)
        if isinstance(operation, AskUser):
            return Names(revision, self._user(operation.name).roles)
        if isinstance(operation, AskUsers):
            return Names(revision, tuple(sorted(table.users)))
        if isinstance(operation, AskRole):
            return Permissions(revision, self._role(operation.name).permissions)
        if isinstance(operation, AskRoles):
            return Names(revision, tuple(sorted(table.roles)))
        if isinstance(operation, (AuthEnable, AuthDisable)):
            self._switch(operation, fresh_id)
        elif isinstance(operation, (RoleAdd, RoleDelete, RoleGrantPermission, RoleRevokePermission)):
            self._change_role(operation)
        else:
            self._change_user(operation, fresh_id)
        return Done(revision)

    # -- switching ----------------------------------------------------------------------------------------------------

    def _switch(self, operation: AuthEnable | AuthDisable, fresh_id: int) -> None:
        """To switch to what is the case already does nothing (etcd: AuthEnable, AuthDisable); neither counts as a
        change of users, except that etcd counts disabling."""
        head = self.table.head
        if isinstance(operation, AuthDisable):
            if head.enabled:
                self._change_head(AuthHead(False, head.revision + 1))
            return
        if head.enabled:
            return
        root = self.table.users.get(ROOT)
        if root is None:
            raise AuthRefused(AuthProblem.ROOT_USER_MISSING)
        if ROOT not in root.roles:
            raise AuthRefused(AuthProblem.ROOT_ROLE_MISSING)
        if len(operation.key) != AUTH_KEY_BYTES:
            raise AuthRefused(AuthProblem.INVALID_MANAGEMENT)
        self._change_head(AuthHead(True, head.revision, operation.key, fresh_id))

    def _change_head(self, head: AuthHead) -> None:
        self._batch.set("meta", _HEAD, _encode(head))
        self.table = AuthTable(head, self.table.users, self.table.roles)

    # -- users --------------------------------------------------------------------------------------------------------

    def _change_user(
        self, operation: UserAdd | UserDelete | UserSetPassword | UserGrantRole | UserRevokeRole, fresh_id: int
    ) -> None:
        """Add, change or delete a user."""
        name, users = operation.name, self.table.users
        if isinstance(operation, UserAdd):
            if not name:
                raise AuthRefused(AuthProblem.USER_EMPTY)
            if name in users:
                raise AuthRefused(AuthProblem.USER_EXISTS)
            if len(users) >= MAX_USERS or len(name.encode()) > MAX_USER_NAME_BYTES:
                raise AuthRefused(AuthProblem.FULL)
            self._put_user(UserRecord(name, operation.hash, fresh_id))
            return
        enabled = self.table.enabled
        if isinstance(operation, UserDelete):
            if enabled and name == ROOT:
                raise AuthRefused(AuthProblem.INVALID_MANAGEMENT)
            self._user(name)
            self._batch.set("meta", _USER + name.encode(), None)
            self._counted({key: user for key, user in users.items() if key != name}, self.table.roles)
            return
        if isinstance(operation, UserSetPassword):
            user = self._user(name)
            self._put_user(msgspec.structs.replace(user, hash=operation.hash, since=fresh_id))
            return
        role = operation.role
        if isinstance(operation, UserGrantRole):
            user = self._user(name)
            if role != ROOT:
                self._role(role)
            if role in user.roles:
                return
            if len(user.roles) >= MAX_ROLES_OF_USER:
                raise AuthRefused(AuthProblem.FULL)
            self._put_user(msgspec.structs.replace(user, roles=tuple(sorted({*user.roles, role}))))
            return
        if enabled and (name, role) == (ROOT, ROOT):
            raise AuthRefused(AuthProblem.INVALID_MANAGEMENT)
        user = self._user(name)
        if role not in user.roles:
            raise AuthRefused(AuthProblem.ROLE_NOT_GRANTED)
        self._put_user(msgspec.structs.replace(user, roles=tuple([each for each in user.roles if each != role])))

    def _user(self, name: str) -> UserRecord:
        user = self.table.users.get(name)
        if user is None:
            raise AuthRefused(AuthProblem.USER_MISSING)
        return user

    def _put_user(self, user: UserRecord) -> None:
        self._batch.set("meta", _USER + user.name.encode(), _encode(user))
        self._counted({**self.table.users, user.name: user}, self.table.roles)

    # -- roles --------------------------------------------------------------------------------------------------------

    def _change_role(self, operation: RoleAdd | RoleDelete | RoleGrantPermission | RoleRevokePermission) -> None:
        """Add, change or delete a role."""
        table = self.table
        if isinstance(operation, RoleAdd):
            name = operation.name
            if not name:
                raise AuthRefused(AuthProblem.ROLE_EMPTY)
            if name in table.roles:
                raise AuthRefused(AuthProblem.ROLE_EXISTS)
            if len(table.roles) >= MAX_ROLES or len(name.encode()) > MAX_USER_NAME_BYTES:
                raise AuthRefused(AuthProblem.FULL)
            self._put_role(RoleRecord(name))
        elif isinstance(operation, RoleDelete):
            self._delete_role(operation.name)
        elif isinstance(operation, RoleGrantPermission):
            role = self._role(operation.role)
            granted = operation.permission
            others = [each for each in role.permissions if each.names != granted.names]
            if len(others) >= MAX_PERMISSIONS_OF_ROLE:
                raise AuthRefused(AuthProblem.FULL)
            self._put_role(RoleRecord(role.name, tuple(sorted([*others, granted], key=_order))))
        else:
            role = self._role(operation.role)
            left = tuple([each for each in role.permissions if each.names != operation.names])
            if len(left) == len(role.permissions):
                raise AuthRefused(AuthProblem.PERMISSION_NOT_GRANTED)
            self._put_role(RoleRecord(role.name, left))

    def _delete_role(self, name: str) -> None:
        """Delete a role, and take it from all users: as many as there may be, so users without it are not written."""
        table = self.table
        if table.enabled and name == ROOT:
            raise AuthRefused(AuthProblem.INVALID_MANAGEMENT)
        self._role(name)
        users = dict(table.users)
        for user in table.users.values():
            if name in user.roles:
                users[user.name] = left = msgspec.structs.replace(
                    user, roles=tuple([each for each in user.roles if each != name])
                )
                self._batch.set("meta", _USER + user.name.encode(), _encode(left))
        self._batch.set("meta", _ROLE + name.encode(), None)
        self._counted(users, {key: role for key, role in table.roles.items() if key != name})

    def _role(self, name: str) -> RoleRecord:
        role = self.table.roles.get(name)
        if role is None:
            raise AuthRefused(AuthProblem.ROLE_MISSING)
        return role

    def _put_role(self, role: RoleRecord) -> None:
        self._batch.set("meta", _ROLE + role.name.encode(), _encode(role))
        self._counted(self.table.users, {**self.table.roles, role.name: role})

    def _counted(self, users: Mapping[str, UserRecord], roles: Mapping[str, RoleRecord]) -> None:
        head = self.table.head
        head = AuthHead(head.enabled, head.revision + 1, head.key, head.since)
        self._batch.set("meta", _HEAD, _encode(head))
        self.table = AuthTable(head, users, roles)


def _order(permission: Permission) -> tuple[bytes, bool, bytes]:
    end = permission.names.end
    return permission.names.key, end is not None, end or b""
