"""All of etcd's services: which function answers which method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar

from google.protobuf.message import DecodeError

from ...schema.auth_operations import AskAuth
from .auth_service import AuthService, Unary
from .call_conditions import CallConditions, needs_leader
from .cluster_service import ClientUrls, ClusterService, MembershipOperations
from .election_service import ElectionService
from .etcd_backend import CallContext, EtcdBackend, StreamContext
from .etcdpb.message_pool import methods
from .health_service import HealthService
from .kv_service import KvService
from .lease_service import LeaseService
from .lock_service import LockService
from .maintenance_service import MaintenanceService
from .member_calls import MemberCalls
from .proxy_audit import AUTHENTICATE, CHANGES, ProxyAudit, claimed_user
from .proxy_users import ProxyUsers
from .rpc_methods import CERTIFICATE_USER, RpcMethods, UnaryCall
from .rpc_status import RpcCode, RpcError
from .snapshot_service import SnapshotService
from .watch_service import WatchService

_NAMES_USER = frozenset(("token", "authorization", CERTIFICATE_USER))
"""Names in a call's metadata that say who calls."""
_ROOT_ONLY = {f"/etcdserverpb.Cluster/Member{change}" for change in ("Add", "Remove", "Update", "Promote")}

Streaming = Callable[[StreamContext], Coroutine[Any, Any, None]]
Direct = Callable[[bytes, UnaryCall], bool]


class EtcdServices:
    """The functions by path: of one request and one answer (``unary``), and of streams of either (``streaming``).

    Args:
        backend: the cluster, which is open.
        operations: changes of its members.
        urls: of the proxies.
        audit: where denied calls and changes are logged.
    """

    def __init__(
        self, backend: EtcdBackend, operations: MembershipOperations, urls: ClientUrls, audit: ProxyAudit | None = None
    ) -> None:
        self.calls = calls = MemberCalls(backend.hub, backend.cluster)
        self.audit = audit = audit or ProxyAudit(backend.cluster_name, "proxy")
        kv, lease = KvService(backend, calls), LeaseService(backend)
        watch = WatchService(backend, lambda client, why: audit.refused_watch(backend.user, client, why))
        lock, election = LockService(backend), ElectionService(backend)
        self.cluster = cluster = ClusterService(backend, calls, operations, urls)
        maintenance = MaintenanceService(backend, calls, operations)
        health, auth = HealthService(), AuthService(backend, calls)
        snapshot = SnapshotService(backend, calls)
        unary: dict[str, Unary] = {
            "/etcdserverpb.KV/Range": kv.range,
            "/etcdserverpb.KV/Put": kv.put,
            "/etcdserverpb.KV/DeleteRange": kv.delete_range,
            "/etcdserverpb.KV/Txn": kv.txn,
            "/etcdserverpb.KV/Compact": kv.compact,
            "/etcdserverpb.Lease/LeaseGrant": lease.grant,
            "/etcdserverpb.Lease/LeaseRevoke": lease.revoke,
            "/etcdserverpb.Lease/LeaseTimeToLive": lease.time_to_live,
            "/etcdserverpb.Lease/LeaseLeases": lease.leases,
            "/v3lockpb.Lock/Lock": lock.lock,
            "/v3lockpb.Lock/Unlock": lock.unlock,
            "/v3electionpb.Election/Campaign": election.campaign,
            "/v3electionpb.Election/Proclaim": election.proclaim,
            "/v3electionpb.Election/Leader": election.leader,
            "/v3electionpb.Election/Resign": election.resign,
            "/etcdserverpb.Cluster/MemberAdd": cluster.member_add,
            "/etcdserverpb.Cluster/MemberRemove": cluster.member_remove,
            "/etcdserverpb.Cluster/MemberUpdate": cluster.member_update,
            "/etcdserverpb.Cluster/MemberList": cluster.member_list,
            "/etcdserverpb.Cluster/MemberPromote": cluster.member_promote,
            "/etcdserverpb.Maintenance/Alarm": maintenance.alarm,
            "/etcdserverpb.Maintenance/Status": maintenance.status,
            "/etcdserverpb.Maintenance/Defragment": maintenance.defragment,
            "/etcdserverpb.Maintenance/Hash": maintenance.hash,
            "/etcdserverpb.Maintenance/HashKV": maintenance.hash_kv,
            "/etcdserverpb.Maintenance/MoveLeader": maintenance.move_leader,
            "/etcdserverpb.Maintenance/Downgrade": maintenance.downgrade,
            **auth.unary,
            "/grpc.health.v1.Health/Check": health.check,
        }
        direct: dict[str, Direct] = {
            "/etcdserverpb.KV/Range": kv.range_directly,
            "/etcdserverpb.KV/Put": kv.put_directly,
        }
        streaming: dict[str, Streaming] = {
            "/etcdserverpb.Lease/LeaseKeepAlive": lease.keep_alive,
            "/etcdserverpb.Watch/Watch": watch.watch,
            "/v3electionpb.Election/Observe": election.observe,
            "/etcdserverpb.Maintenance/Snapshot": snapshot.snapshot,
            "/grpc.health.v1.Health/Watch": health.watch,
        }

        self.backend = backend
        self._conditions = CallConditions(backend, calls)
        self._unary = {path: _decoded(handler) for path, handler in unary.items()}
        self._streaming = {path: _decoded(handler) for path, handler in streaming.items()}
        self._users: ProxyUsers[EtcdServices] = ProxyUsers(
            backend, calls, self, lambda of_user: EtcdServices(of_user, operations, urls, audit)
        )
        self.unary = {path: self._by_user(path) for path in unary}
        backend.note_direct_failure = lambda call, error: audit.ended("", call.client, call.method, b"", error)
        self.direct = {path: self._of_nobody(handler) for path, handler in direct.items()}
        """For calls without a user: take the most frequent calls of methods that are in ``unary``, too."""
        self.streaming = {path: self._stream_by_user(path) for path in streaming}

    async def of_caller(self, context: CallContext) -> EtcdServices:
        """The services of the user whom a call's metadata name. Raises ``RpcError``: the token is not good."""
        return await self._users.services(context)

    async def of_password(self, user: str, password: str, patience: float) -> EtcdServices:
        """The services of a user by its password. Raises ``RpcError``: it is wrong, or no member answers in time."""
        return await self._users.services_of_password(user, password, patience)

    def _by_user(self, path: str) -> Unary:
        """A handler that has the services of the call's user answer. What would change the members is refused to all
        but root before anything is done: it is more than one call of the cluster."""
        own, needs_root, of_anyone = self._unary[path], path in _ROOT_ONLY, path == AUTHENTICATE
        audit, is_change, conditions = self.audit, path in CHANGES, self._conditions

        async def handle(request: bytes, context: CallContext) -> bytes:
            metadata = context.metadata
            if not conditions.are_met_by(metadata):
                await conditions.check(metadata)
            user = ""
            try:
                if of_anyone or (not needs_root and metadata.keys().isdisjoint(_NAMES_USER)):
                    answer = await own(request, context)
                else:
                    user = claimed_user(metadata)
                    services = await self._users.services(context)
                    user = services.backend.user
                    if needs_root:
                        await services.backend.write(AskAuth(), context)
                    answer = await services._unary[path](request, context)
            except RpcError as error:
                audit.ended(user, context.client, path, request, error)
                raise
            if is_change:
                audit.ended(user, context.client, path, request, None)
            return answer

        return handle

    def _of_nobody(self, handler: Direct) -> Direct:
        """A direct handler that leaves calls which name a user or set conditions, and tells its client if it sends what
        is not a message."""
        conditions = self._conditions
        plain: Mapping[str, str] = {}

        def handle(request: bytes, call: UnaryCall) -> bool:
            nonlocal plain
            metadata = call.metadata
            if metadata is not plain:  # calls with the same header block share theirs
                if not (metadata.keys().isdisjoint(_NAMES_USER) and conditions.are_met_by(metadata)):
                    return False
                plain = metadata
            try:
                return handler(request, call)
            except DecodeError as error:
                raise _not_a_message(error) from None

        return handle

    def _stream_by_user(self, path: str) -> Streaming:
        conditions = self._conditions

        async def handle(stream: StreamContext) -> None:
            user = claimed_user(stream.metadata)
            await conditions.check(stream.metadata)
            try:
                services = await self._users.services(stream)
                user = services.backend.user
                serving = services._streaming[path](stream)
                await (conditions.while_led(serving) if needs_leader(stream.metadata) else serving)
            except RpcError as error:
                self.audit.ended(user, stream.client, path, b"", error)
                raise

        return handle

    def register(self, registered: RpcMethods) -> None:
        """Serve all of them by gRPC."""
        for path, handler in self.unary.items():
            registered.add_unary(path, handler, self.direct.get(path))
        kinds = methods()
        for path, streaming in self.streaming.items():
            registered.add_stream(path, streaming, "bidi_stream" if kinds[path].client_streaming else "server_stream")


def _not_a_message(error: DecodeError) -> RpcError:
    return RpcError(RpcCode.INTERNAL, f"grpc: error unmarshalling request: {error}")


P = ParamSpec("P")
T = TypeVar("T")


def _decoded(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A handler whose client is told if it sends what is not a message."""

    async def handle(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await handler(*arguments, **named)
        except DecodeError as error:
            raise _not_a_message(error) from None

    return handle
