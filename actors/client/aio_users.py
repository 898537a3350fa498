"""Users, roles and permissions for asyncio: ``AsyncClient.users``.

What the calls check and return is in :mod:`user_steps`, what they mean in :mod:`users`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..arguments import Key
from . import user_steps
from .aio_timeout import on_thread
from .results import End
from .user_steps import GrantedKeys

if TYPE_CHECKING:
    from .aio import AsyncKeyValueClient


class AsyncUsers:
    """The users and roles of a cluster, as coroutines. Arguments, results and errors: see ``Users``."""

    def __init__(self, client: AsyncKeyValueClient) -> None:
        self._client = client

    # -- whether users are needed -------------------------------------------------------------------------------------

    async def enable(self, *, timeout: float | None = None) -> None:
        """See ``Users.enable``."""
        await self._client._run(user_steps.enable(), timeout)

    async def disable(self, *, timeout: float | None = None) -> None:
        """See ``Users.disable``."""
        await self._client._run(user_steps.disable(), timeout)

    async def enabled(self, *, timeout: float | None = None) -> bool:
        """See ``Users.enabled``."""
        return (await self._client._run(user_steps.auth_state(), timeout)).enabled

    async def auth_revision(self, *, timeout: float | None = None) -> int:
        """See ``Users.auth_revision``."""
        return (await self._client._run(user_steps.auth_state(), timeout)).auth_revision

    # -- users ---------------------------------------------------------------------------------------------------------

    async def add(self, name: str, password: str | None, *, timeout: float | None = None) -> None:
        """See ``Users.add``."""
        hash = b"" if password is None else await _hashed(password)
        await self._client._run(user_steps.add(name, hash), timeout)

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """See ``Users.delete``."""
        await self._client._run(user_steps.delete(name), timeout)

    async def set_password(self, name: str, password: str, *, timeout: float | None = None) -> None:
        """See ``Users.set_password``."""
        await self._client._run(user_steps.set_password(name, await _hashed(password)), timeout)

    async def grant_role(self, name: str, role: str, *, timeout: float | None = None) -> None:
        """See ``Users.grant_role``."""
        await self._client._run(user_steps.grant_role(name, role), timeout)

    async def revoke_role(self, name: str, role: str, *, timeout: float | None = None) -> None:
        """See ``Users.revoke_role``."""
        await self._client._run(user_steps.revoke_role(name, role), timeout)

    async def list(self, *, timeout: float | None = None) -> list[str]:
        """See ``Users.list``."""
        return [*(await self._client._run(user_steps.users(), timeout)).names]

    async def roles_of(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """See ``Users.roles_of``."""
        return (await self._client._run(user_steps.roles_of(name), timeout)).names

    # -- roles --------------------------------------------------------------------------------------------------------

    async def add_role(self, name: str, *, timeout: float | None = None) -> None:
        """See ``Users.add_role``."""
        await self._client._run(user_steps.add_role(name), timeout)

    async def delete_role(self, name: str, *, timeout: float | None = None) -> None:
        """See ``Users.delete_role``."""
        await self._client._run(user_steps.delete_role(name), timeout)

    async def roles(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """See ``Users.roles``."""
        return (await self._client._run(user_steps.roles(), timeout)).names

    async def grant_permission(
        self,
        role: str,
        access: str,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> None:
        """See ``Users.grant_permission``."""
        await self._client._run(user_steps.grant_permission(role, access, key, end, prefix), timeout)

    async def revoke_permission(
        self,
        role: str,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> None:
        """See ``Users.revoke_permission``."""
        await self._client._run(user_steps.revoke_permission(role, key, end, prefix), timeout)

    async def permissions(self, role: str, *, timeout: float | None = None) -> tuple[GrantedKeys, ...]:
        """See ``Users.permissions``."""
        return await self._client._run(user_steps.permissions(role), timeout)


async def _hashed(password: str) -> bytes:
    """Beside the loop, since it takes a twentieth of a second."""
    return await asyncio.wrap_future(on_thread("raykeeper-hash", user_steps.hashed, password))
