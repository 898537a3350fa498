"""Users, roles and permissions, as an administrator changes them: ``Client.users``.

What the calls check and return is in :mod:`user_steps`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import Key
from . import user_steps
from .results import End
from .user_steps import GrantedKeys

if TYPE_CHECKING:
    from .handle import KeyValueClient


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
        self._client._run(user_steps.enable(), timeout)

    def disable(self, *, timeout: float | None = None) -> None:
        """From now on no call needs a user."""
        self._client._run(user_steps.disable(), timeout)

    def enabled(self, *, timeout: float | None = None) -> bool:
        """Whether calls need a user."""
        return self._client._run(user_steps.auth_state(), timeout).enabled

    def auth_revision(self, *, timeout: float | None = None) -> int:
        """The number of changes of users and roles so far, and one (etcd: authRevision)."""
        return self._client._run(user_steps.auth_state(), timeout).auth_revision

    # -- users ---------------------------------------------------------------------------------------------------------

    def add(self, name: str, password: str | None, *, timeout: float | None = None) -> None:
        """Add a user without roles; ``None`` for one without a password, which cannot log in."""
        self._client._run(user_steps.add(name, b"" if password is None else user_steps.hashed(password)), timeout)

    def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a user. What it is doing ends: its tokens are not good any more."""
        self._client._run(user_steps.delete(name), timeout)

    def set_password(self, name: str, password: str, *, timeout: float | None = None) -> None:
        """Change a user's password. Its tokens end, so its processes must log in with the new one."""
        self._client._run(user_steps.set_password(name, user_steps.hashed(password)), timeout)

    def grant_role(self, name: str, role: str, *, timeout: float | None = None) -> None:
        """Give a user a role."""
        self._client._run(user_steps.grant_role(name, role), timeout)

    def revoke_role(self, name: str, role: str, *, timeout: float | None = None) -> None:
        """Take a role from a user. Nothing that is applied afterwards may rely on it, on any member."""
        self._client._run(user_steps.revoke_role(name, role), timeout)

    def list(self, *, timeout: float | None = None) -> list[str]:
        """The names of all users, in order."""
        return [*self._client._run(user_steps.users(), timeout).names]

    def roles_of(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The roles of a user, in order."""
        return self._client._run(user_steps.roles_of(name), timeout).names

    # -- roles --------------------------------------------------------------------------------------------------------

    def add_role(self, name: str, *, timeout: float | None = None) -> None:
        """Add a role without permissions."""
        self._client._run(user_steps.add_role(name), timeout)

    def delete_role(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a role; users lose it."""
        self._client._run(user_steps.delete_role(name), timeout)

    def roles(self, *, timeout: float | None = None) -> tuple[str, ...]:
        """The names of all roles, in order."""
        return self._client._run(user_steps.roles(), timeout).names

    def grant_permission(
        self,
        role: str,
        access: str,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> None:
        """Give a role the right to keys, and to the locks, queues and other coordination calls of these names.

        Args:
            access: ``"read"``, ``"write"`` or ``"readwrite"``. Coordination calls need the last.
            key, end: one key, or the keys from ``key`` up to ``end`` (to the last one: ``END``); or
            prefix: all keys that begin with it; ``""`` for all.
        """
        self._client._run(user_steps.grant_permission(role, access, key, end, prefix), timeout)

    def revoke_permission(
        self,
        role: str,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take a permission from a role: the one that was given for exactly these keys."""
        self._client._run(user_steps.revoke_permission(role, key, end, prefix), timeout)

    def permissions(self, role: str, *, timeout: float | None = None) -> tuple[GrantedKeys, ...]:
        """The permissions of a role, in the order of their keys."""
        return self._client._run(user_steps.permissions(role), timeout)
