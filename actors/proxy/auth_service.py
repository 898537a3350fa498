"""etcd's service Auth: users, roles, permissions, and tokens.

Each method is one operation on users and roles; here stands which, and what its answer has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ...limits import AUTH_KEY_BYTES
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
from ..passwords import hash_password
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import INVALID_AUTH_MANAGEMENT, PERMISSION_NOT_GIVEN
from .etcdpb import authdata_pb2
from .etcdpb.auth_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    AuthUserAddRequest,
    AuthUserChangePasswordRequest,
)
from .etcdpb.message_pool import methods
from .member_calls import MemberCalls

Unary = Callable[[bytes, CallContext], Awaitable[bytes]]
AUTH = "/etcdserverpb.Auth/"
"""What the paths of the methods begin with."""


class AuthService:
    """Answers requests with bytes; see the module.

    Attributes:
        unary: its methods, by path.
    """

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls
        self.unary: dict[str, Unary] = {AUTH + name: self._method(AUTH + name, make) for name, make in _MAKE.items()}
        self.unary[f"{AUTH}Authenticate"] = self._authenticate
        self.unary[f"{AUTH}UserAdd"] = self._user_add
        self.unary[f"{AUTH}UserChangePassword"] = self._user_change_password

    def _method(self, path: str, make: Callable[[Any], AuthOperation]) -> Unary:
        parse = methods()[path].request.FromString

        async def handle(request: bytes, context: CallContext) -> bytes:
            return await self._do(path, make(parse(request)), context)

        return handle

    async def _authenticate(self, request: bytes, context: CallContext) -> bytes:
        """A token for a password."""
        asked = AuthenticateRequest.FromString(request)
        found = await self._calls.log_in(asked.name, asked.password, context.time_left())
        header = self._backend.header(found.revision)
        return AuthenticateResponse(header=header, token=found.token.decode()).SerializeToString()

    async def _user_add(self, request: bytes, context: CallContext) -> bytes:
        asked = AuthUserAddRequest.FromString(request)
        hash = b"" if asked.options.no_password else await _hashed(asked.password)
        return await self._do(f"{AUTH}UserAdd", UserAdd(asked.name, hash), context)

    async def _user_change_password(self, request: bytes, context: CallContext) -> bytes:
        asked = AuthUserChangePasswordRequest.FromString(request)
        operation = UserSetPassword(asked.name, await _hashed(asked.password))
        return await self._do(f"{AUTH}UserChangePassword", operation, context)

    async def _do(self, path: str, operation: AuthOperation, context: CallContext) -> bytes:
        """Have an operation done; the answer of the method."""
        answer = await self._backend.write(operation, context)
        response: Any = methods()[path].response
        header = self._backend.header(getattr(answer, "revision", 0))
        encoded: bytes = response(header=header, **_fields(path, answer)).SerializeToString()
        return encoded


async def _hashed(password: str) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(None, hash_password, password)


def _granted(asked: Any) -> RoleGrantPermission:
    if not asked.HasField("perm"):
        raise PERMISSION_NOT_GIVEN.error()
    names = _names(asked.perm.key, asked.perm.range_end)
    if not 0 <= asked.perm.permType <= 2 or (names.end and names.end <= names.key):
        raise INVALID_AUTH_MANAGEMENT.error()
    return RoleGrantPermission(asked.name, Permission(Access(asked.perm.permType), names))


def _names(key: bytes, range_end: bytes) -> KeyRange:
    return KeyRange(key, None if not range_end else b"" if range_end == b"\0" else range_end)


_MAKE: dict[str, Callable[[Any], AuthOperation]] = {
    "AuthEnable": lambda asked: AuthEnable(os.urandom(AUTH_KEY_BYTES)),
    "AuthDisable": lambda asked: AuthDisable(),
    "AuthStatus": lambda asked: AskAuth(),
    "UserGet": lambda asked: AskUser(asked.name),
    "UserList": lambda asked: AskUsers(),
    "UserDelete": lambda asked: UserDelete(asked.name),
    "UserGrantRole": lambda asked: UserGrantRole(asked.user, asked.role),
    "UserRevokeRole": lambda asked: UserRevokeRole(asked.name, asked.role),
    "RoleAdd": lambda asked: RoleAdd(asked.name),
    "RoleGet": lambda asked: AskRole(asked.role),
    "RoleList": lambda asked: AskRoles(),
    "RoleDelete": lambda asked: RoleDelete(asked.role),
    "RoleGrantPermission": _granted,
    "RoleRevokePermission": lambda asked: RoleRevokePermission(asked.role, _names(asked.key, asked.range_end)),
}
"""What each method has done, from its request; those that hash a password are methods of the class."""


def _fields(path: str, answer: Answer) -> dict[str, Any]:
    """What a method's answer has beside its header."""
    if isinstance(answer, AuthState):
        return {"enabled": answer.enabled, "authRevision": answer.auth_revision}
    if isinstance(answer, Names):
        return {"users" if path == f"{AUTH}UserList" else "roles": answer.names}
    if isinstance(answer, Permissions):
        return {"perm": [_permission(each) for each in answer.permissions]}
    return {}


def _permission(permission: Permission) -> authdata_pb2.Permission:
    end = permission.names.end
    return authdata_pb2.Permission(
        permType=authdata_pb2.Permission.Type.Name(permission.access),
        key=permission.names.key,
        range_end=b"\0" if end == b"" else end or b"",
    )
