"""etcd's service Auth: users, roles, permissions, and tokens."""

from __future__ import annotations

import asyncio
import os

from ...limits import AUTH_KEY_BYTES
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
from ..passwords import hash_password
from .etcd_backend import CallContext, EtcdBackend, expect
from .etcd_errors import INVALID_AUTH_MANAGEMENT, PERMISSION_NOT_GIVEN
from .etcdpb import authdata_pb2
from .etcdpb.auth_pb2 import (
    AuthDisableResponse,
    AuthEnableResponse,
    AuthenticateRequest,
    AuthenticateResponse,
    AuthRoleAddRequest,
    AuthRoleAddResponse,
    AuthRoleDeleteRequest,
    AuthRoleDeleteResponse,
    AuthRoleGetRequest,
    AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse,
    AuthRoleListResponse,
    AuthRoleRevokePermissionRequest,
    AuthRoleRevokePermissionResponse,
    AuthStatusResponse,
    AuthUserAddRequest,
    AuthUserAddResponse,
    AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse,
    AuthUserDeleteRequest,
    AuthUserDeleteResponse,
    AuthUserGetRequest,
    AuthUserGetResponse,
    AuthUserGrantRoleRequest,
    AuthUserGrantRoleResponse,
    AuthUserListResponse,
    AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse,
)
from .etcdpb.rpc_pb2 import ResponseHeader
from .member_calls import MemberCalls


class AuthService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls

    # -- whether users are needed -------------------------------------------------------------------------------------

    async def enable(self, request: bytes, context: CallContext) -> bytes:
        """From now on calls need a user."""
        header = await self._change(AuthEnable(os.urandom(AUTH_KEY_BYTES)), context)
        return AuthEnableResponse(header=header).SerializeToString()

    async def disable(self, request: bytes, context: CallContext) -> bytes:
        """From now on they do not."""
        header = await self._change(AuthDisable(), context)
        return AuthDisableResponse(header=header).SerializeToString()

    async def status(self, request: bytes, context: CallContext) -> bytes:
        """Whether they do."""
        found = expect(await self._backend.write(AskAuth(), context), AuthState)
        header = self._backend.header(found.revision)
        return AuthStatusResponse(
            header=header, enabled=found.enabled, authRevision=found.auth_revision
        ).SerializeToString()

    async def authenticate(self, request: bytes, context: CallContext) -> bytes:
        """A token for a password."""
        asked = AuthenticateRequest.FromString(request)
        found = await self._calls.log_in(asked.name, asked.password, context.time_left())
        header = self._backend.header(found.revision)
        return AuthenticateResponse(header=header, token=found.token.decode()).SerializeToString()

    # -- users --------------------------------------------------------------------------------------------------------

    async def user_add(self, request: bytes, context: CallContext) -> bytes:
        """Add a user."""
        asked = AuthUserAddRequest.FromString(request)
        hash = b"" if asked.options.no_password else await _hashed(asked.password)
        header = await self._change(UserAdd(asked.name, hash), context)
        return AuthUserAddResponse(header=header).SerializeToString()

    async def user_get(self, request: bytes, context: CallContext) -> bytes:
        """The roles of a user."""
        asked = AuthUserGetRequest.FromString(request)
        found = expect(await self._backend.write(AskUser(asked.name), context), Names)
        header = self._backend.header(found.revision)
        return AuthUserGetResponse(header=header, roles=found.names).SerializeToString()

    async def user_list(self, request: bytes, context: CallContext) -> bytes:
        """All users."""
        found = expect(await self._backend.write(AskUsers(), context), Names)
        header = self._backend.header(found.revision)
        return AuthUserListResponse(header=header, users=found.names).SerializeToString()

    async def user_delete(self, request: bytes, context: CallContext) -> bytes:
        """Delete a user."""
        asked = AuthUserDeleteRequest.FromString(request)
        header = await self._change(UserDelete(asked.name), context)
        return AuthUserDeleteResponse(header=header).SerializeToString()

    async def user_change_password(self, request: bytes, context: CallContext) -> bytes:
        """Change a user's password."""
        asked = AuthUserChangePasswordRequest.FromString(request)
        header = await self._change(UserSetPassword(asked.name, await _hashed(asked.password)), context)
        return AuthUserChangePasswordResponse(header=header).SerializeToString()

    async def user_grant_role(self, request: bytes, context: CallContext) -> bytes:
        """Give a user a role."""
        asked = AuthUserGrantRoleRequest.FromString(request)
        header = await self._change(UserGrantRole(asked.user, asked.role), context)
        return AuthUserGrantRoleResponse(header=header).SerializeToString()

    async def user_revoke_role(self, request: bytes, context: CallContext) -> bytes:
        """Take a role from a user."""
        asked = AuthUserRevokeRoleRequest.FromString(request)
        header = await self._change(UserRevokeRole(asked.name, asked.role), context)
        return AuthUserRevokeRoleResponse(header=header).SerializeToString()

    # -- roles --------------------------------------------------------------------------------------------------------

    async def role_add(self, request: bytes, context: CallContext) -> bytes:
        """Add a role."""
        asked = AuthRoleAddRequest.FromString(request)
        header = await self._change(RoleAdd(asked.name), context)
        return AuthRoleAddResponse(header=header).SerializeToString()

    async def role_get(self, request: bytes, context: CallContext) -> bytes:
        """The permissions of a role."""
        asked = AuthRoleGetRequest.FromString(request)
        found = expect(await self._backend.write(AskRole(asked.role), context), Permissions)
        permissions = [
            authdata_pb2.Permission(
                permType=authdata_pb2.Permission.Type.Name(each.access),
                key=each.names.key,
                range_end=b"\0" if each.names.end == b"" else each.names.end or b"",
            )
            for each in found.permissions
        ]
        header = self._backend.header(found.revision)
        return AuthRoleGetResponse(header=header, perm=permissions).SerializeToString()

    async def role_list(self, request: bytes, context: CallContext) -> bytes:
        """All roles."""
        found = expect(await self._backend.write(AskRoles(), context), Names)
        header = self._backend.header(found.revision)
        return AuthRoleListResponse(header=header, roles=found.names).SerializeToString()

    async def role_delete(self, request: bytes, context: CallContext) -> bytes:
        """Delete a role."""
        asked = AuthRoleDeleteRequest.FromString(request)
        header = await self._change(RoleDelete(asked.role), context)
        return AuthRoleDeleteResponse(header=header).SerializeToString()

    async def role_grant_permission(self, request: bytes, context: CallContext) -> bytes:
        """Give a role a permission."""
        asked = AuthRoleGrantPermissionRequest.FromString(request)
        if not asked.HasField("perm"):
            raise PERMISSION_NOT_GIVEN.error()
        names = _names(asked.perm.key, asked.perm.range_end)
        if not 0 <= asked.perm.permType <= 2 or (names.end and names.end <= names.key):
            raise INVALID_AUTH_MANAGEMENT.error()
        permission = Permission(Access(asked.perm.permType), names)
        header = await self._change(RoleGrantPermission(asked.name, permission), context)
        return AuthRoleGrantPermissionResponse(header=header).SerializeToString()

    async def role_revoke_permission(self, request: bytes, context: CallContext) -> bytes:
        """Take a permission from a role."""
        asked = AuthRoleRevokePermissionRequest.FromString(request)
        names = _names(asked.key, asked.range_end)
        header = await self._change(RoleRevokePermission(asked.role, names), context)
        return AuthRoleRevokePermissionResponse(header=header).SerializeToString()

    async def _change(self, operation: AuthOperation, context: CallContext) -> ResponseHeader:
        answer = await self._backend.write(operation, context)
        return self._backend.header(getattr(answer, "revision", 0))


async def _hashed(password: str) -> bytes:
    return await asyncio.get_running_loop().run_in_executor(None, hash_password, password)


def _names(key: bytes, range_end: bytes) -> KeyRange:
    return KeyRange(key, None if not range_end else b"" if range_end == b"\0" else range_end)
