"""What the console's page can have done: POST, with JSON, and with the right for it.

To move the leader and to add or remove members takes the role root, as through etcd's API; the rest is asked by the
user's own hub, so the members decide. Each action leaves a line in the audit log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from ...errors import InvalidArgument, KeeperError
from ...limits import CONSOLE_REQUEST_BYTES, IN_USE_PARTICIPANTS, PROXY_TIMEOUT_S
from ...schema.auth_operations import AskAuth
from ...schema.operations import LeaseRevoke
from ..recipes.sync_async import quoted
from .cluster_service import MembershipOperations
from .console_forms import bad_request, path_bytes
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import BAD_TRANSFEREE, from_keeper_error
from .etcd_services import EtcdServices
from .rpc_status import RpcCode, RpcError

T = TypeVar("T")


class _ActionTold(msgspec.Struct, forbid_unknown_fields=True):
    """Base of what an action is told."""


class _OneMember(_ActionTold):
    member: int


class _NewMember(_ActionTold):
    learner: bool = False


class _Revision(_ActionTold):
    revision: int


class _OneLease(_ActionTold):
    lease: str
    """In hexadecimal."""


class _Held(_ActionTold):
    kind: str
    path: str
    """The name, percent-encoded."""
    token: int


class ConsoleActions:
    """See the module.

    Args:
        operations: changes of the members.
    """

    def __init__(self, operations: MembershipOperations) -> None:
        self._operations = operations
        self._actions: dict[str, tuple[Any, Callable[[EtcdServices, Any, CallContext], Awaitable[dict[str, Any]]]]] = {
            "move-leader": (_OneMember, self._move_leader),
            "add-member": (_NewMember, self._add_member),
            "remove-member": (_OneMember, self._remove_member),
            "compact": (_Revision, self._compact),
            "revoke-lease": (_OneLease, self._revoke_lease),
            "release": (_Held, self._release),
        }

    def __contains__(self, name: str) -> bool:
        return name in self._actions

    async def run(self, name: str, services: EtcdServices, body: bytes, context: CallContext) -> dict[str, Any]:
        """Do what is asked for; returns when it is done.

        Raises:
            RpcError: it was not, or nothing is known of it.
        """
        kind, action = self._actions[name]
        if len(body) > CONSOLE_REQUEST_BYTES:
            raise bad_request("request is too large")
        try:
            asked = msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise bad_request(f"not what {name} takes: {error}") from None
        user = services.backend.user
        told = [f"{field}={getattr(asked, field)!r}" for field in kind.__struct_fields__]
        what = " ".join(["console", name, *told])
        try:
            done = await action(services, asked, context)
        except RpcError as error:
            services.audit.acted(user, context.client, what, error)
            raise
        services.audit.acted(user, context.client, what, None)
        return done

    async def _needs_root(self, backend: EtcdBackend, context: CallContext) -> None:
        await backend.write(AskAuth(), context)

    async def _move_leader(self, services: EtcdServices, asked: _OneMember, context: CallContext) -> dict[str, Any]:
        await self._needs_root(services.backend, context)
        status = await services.calls.newest_status(services.backend.member)
        if asked.member not in status.voters:
            raise BAD_TRANSFEREE.error()
        await self._operations.move_leader(asked.member)
        return {"leader": asked.member}

    async def _add_member(self, services: EtcdServices, asked: _NewMember, context: CallContext) -> dict[str, Any]:
        await self._needs_root(services.backend, context)
        return {"member": await self._operations.add_member(asked.learner)}

    async def _remove_member(self, services: EtcdServices, asked: _OneMember, context: CallContext) -> dict[str, Any]:
        await self._needs_root(services.backend, context)
        await services.cluster.remove(asked.member)
        return {"member": asked.member}

    async def _compact(self, services: EtcdServices, asked: _Revision, context: CallContext) -> dict[str, Any]:
        await _asked(services.backend.handle.compact(asked.revision, timeout=PROXY_TIMEOUT_S))
        return {"revision": asked.revision}

    async def _revoke_lease(self, services: EtcdServices, asked: _OneLease, context: CallContext) -> dict[str, Any]:
        try:
            lease = int(asked.lease, 16)
        except ValueError:
            lease = 0
        if not 0 < lease < 1 << 63:
            raise bad_request("a lease is a hexadecimal number of at most 16 digits")
        await services.backend.write(LeaseRevoke(lease), context)
        return {"lease": asked.lease}

    async def _release(self, services: EtcdServices, asked: _Held, context: CallContext) -> dict[str, Any]:
        """End the lease of a contender's ticket, as the death of its process would: the ticket alone hangs on it. The
        token names one ticket forever, so nothing else can be hit."""
        if asked.kind not in _WITH_TICKETS:
            raise bad_request(f"what can be released: {', '.join(_WITH_TICKETS)}")
        space = services.backend.handle.reserved(asked.kind)
        try:
            tickets = quoted(path_bytes(asked.path)) + b"/p/"
        except InvalidArgument as error:
            raise bad_request(str(error)) from None
        limit = IN_USE_PARTICIPANTS
        reading = space.range(prefix=tickets, sort="create_revision", limit=limit, timeout=PROXY_TIMEOUT_S)
        found = await _asked(reading)
        lease = next((key.lease for key in found if key.create_revision == asked.token), 0)
        if not lease:
            raise RpcError(RpcCode.NOT_FOUND, f"nobody holds or waits with token {asked.token} any more")
        await services.backend.write(LeaseRevoke(lease), context)
        return {"token": asked.token}


_WITH_TICKETS = ("lock", "rwlock", "semaphore", "election")


async def _asked(call: Awaitable[T]) -> T:
    """The result of a handle's call, with etcd's errors."""
    try:
        return await call
    except InvalidArgument as error:
        raise bad_request(str(error)) from None
    except KeeperError as error:
        raise from_keeper_error(error) from error
