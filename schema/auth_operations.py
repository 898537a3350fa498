"""Users, roles and permissions, and the operations on them: what they mean in etcd's Auth service.

They are operations like puts, so a client's session makes them take effect exactly once, and they take effect at one
place in the log. Reading users and roles goes through the log too, as in etcd: it is rare.

Passwords are hashed (bcrypt) by the process that takes the request, before it becomes an operation: applying must be
quick, and the same on every member.
"""

from __future__ import annotations

import enum

import msgspec

from .key_range import KeyRange


class Access(enum.IntEnum):
    """What a permission allows (etcd: authpb.Permission.Type)."""

    READ = 0
    WRITE = 1
    READWRITE = 2


class Permission(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A right on names (see ``key_spaces``): one, a range, or all from one on."""

    access: Access
    names: KeyRange


class UserAdd(msgspec.Struct, frozen=True, array_like=True, tag=40, gc=False):
    """Add a user (etcd: AuthUserAdd)."""

    name: str
    hash: bytes
    """Of the password; empty for a user without one, who can only be known by a certificate."""


class UserDelete(msgspec.Struct, frozen=True, array_like=True, tag=41, gc=False):
    """Delete a user (etcd: AuthUserDelete); its tokens end."""

    name: str


class UserSetPassword(msgspec.Struct, frozen=True, array_like=True, tag=42, gc=False):
    """Change a user's password (etcd: AuthUserChangePassword); its tokens end."""

    name: str
    hash: bytes


class UserGrantRole(msgspec.Struct, frozen=True, array_like=True, tag=43, gc=False):
    """Give a user a role (etcd: AuthUserGrantRole)."""

    name: str
    role: str


class UserRevokeRole(msgspec.Struct, frozen=True, array_like=True, tag=44, gc=False):
    """Take a role from a user (etcd: AuthUserRevokeRole)."""

    name: str
    role: str


class RoleAdd(msgspec.Struct, frozen=True, array_like=True, tag=45, gc=False):
    """Add a role without permissions (etcd: AuthRoleAdd)."""

    name: str


class RoleDelete(msgspec.Struct, frozen=True, array_like=True, tag=46, gc=False):
    """Delete a role, and take it from all users (etcd: AuthRoleDelete)."""

    name: str


class RoleGrantPermission(msgspec.Struct, frozen=True, array_like=True, tag=47, gc=False):
    """Give a role a permission, in place of what it has on the same names (etcd: AuthRoleGrantPermission)."""

    role: str
    permission: Permission


class RoleRevokePermission(msgspec.Struct, frozen=True, array_like=True, tag=48, gc=False):
    """Take the permission on these names from a role (etcd: AuthRoleRevokePermission)."""

    role: str
    names: KeyRange


class AuthEnable(msgspec.Struct, frozen=True, array_like=True, tag=49, gc=False):
    """From here on every call needs a user (etcd: AuthEnable)."""

    key: bytes
    """Drawn at random by the process that proposes it: tokens are signed with it. So older tokens end."""


class AuthDisable(msgspec.Struct, frozen=True, array_like=True, tag=50, gc=False):
    """From here on no call needs a user (etcd: AuthDisable)."""


class AskAuth(msgspec.Struct, frozen=True, array_like=True, tag=51, gc=False):
    """Whether users are needed (etcd: AuthStatus); answers ``AuthState``."""


class AskUser(msgspec.Struct, frozen=True, array_like=True, tag=52, gc=False):
    """The roles of a user (etcd: AuthUserGet); answers ``Names``."""

    name: str


class AskUsers(msgspec.Struct, frozen=True, array_like=True, tag=53, gc=False):
    """All users (etcd: AuthUserList); answers ``Names``."""


class AskRole(msgspec.Struct, frozen=True, array_like=True, tag=54, gc=False):
    """The permissions of a role (etcd: AuthRoleGet); answers ``Permissions``."""

    name: str


class AskRoles(msgspec.Struct, frozen=True, array_like=True, tag=55, gc=False):
    """All roles (etcd: AuthRoleList); answers ``Names``."""


AuthOperation = (
    UserAdd
    | UserDelete
    | UserSetPassword
    | UserGrantRole
    | UserRevokeRole
    | RoleAdd
    | RoleDelete
    | RoleGrantPermission
    | RoleRevokePermission
    | AuthEnable
    | AuthDisable
    | AskAuth
    | AskUser
    | AskUsers
    | AskRole
    | AskRoles
)


class AuthProblem(enum.IntEnum):
    """Why an operation on users and roles had no effect (etcd: the errors of its auth store)."""

    ROOT_USER_MISSING = 0
    ROOT_ROLE_MISSING = 1
    USER_EXISTS = 2
    USER_EMPTY = 3
    USER_MISSING = 4
    ROLE_EXISTS = 5
    ROLE_MISSING = 6
    ROLE_EMPTY = 7
    ROLE_NOT_GRANTED = 8
    PERMISSION_NOT_GRANTED = 9
    INVALID_MANAGEMENT = 10
    """It would lock root out."""
    NOT_ENABLED = 11
    FULL = 12
    """A bound on users, roles or permissions is reached."""


PROBLEM_TEXTS = {
    AuthProblem.ROOT_USER_MISSING: "there is no user root: add it before enabling authentication",
    AuthProblem.ROOT_ROLE_MISSING: "the user root does not have the role root",
    AuthProblem.USER_EXISTS: "there is a user of that name already",
    AuthProblem.USER_EMPTY: "the name of a user is not empty",
    AuthProblem.USER_MISSING: "there is no user of that name",
    AuthProblem.ROLE_EXISTS: "there is a role of that name already",
    AuthProblem.ROLE_MISSING: "there is no role of that name",
    AuthProblem.ROLE_EMPTY: "the name of a role is not empty",
    AuthProblem.ROLE_NOT_GRANTED: "the user does not have that role",
    AuthProblem.PERMISSION_NOT_GRANTED: "the role does not have that permission",
    AuthProblem.INVALID_MANAGEMENT: "while authentication is enabled, root keeps its role",
    AuthProblem.NOT_ENABLED: "authentication is not enabled",
    AuthProblem.FULL: "there are as many users, roles or permissions as there may be",
}
"""For people."""

ROOT = "root"
"""The user that must exist while authentication is enabled, and the role that may do everything."""
