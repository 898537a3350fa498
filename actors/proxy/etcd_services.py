"""All of etcd's services: which function answers which method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .election_service import ElectionService
from .etcd_backend import CallContext, EtcdBackend, StreamContext
from .kv_service import KvService
from .lease_service import LeaseService
from .lock_service import LockService
from .watch_service import WatchService

Unary = Callable[[bytes, CallContext], Awaitable[bytes]]
Streaming = Callable[[StreamContext], Awaitable[None]]


class EtcdServices:
    """The functions by path: of one request and one answer (``unary``), and of streams of either (``streaming``).

    Args:
        backend: the cluster; it must be open before anything is called.
    """

    def __init__(self, backend: EtcdBackend) -> None:
        kv, lease, watch = KvService(backend), LeaseService(backend), WatchService(backend)
        lock, election = LockService(backend), ElectionService(backend)
        self.unary: dict[str, Unary] = {
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
        }
        self.streaming: dict[str, Streaming] = {
            "/etcdserverpb.Lease/LeaseKeepAlive": lease.keep_alive,
            "/etcdserverpb.Watch/Watch": watch.watch,
            "/v3electionpb.Election/Observe": election.observe,
        }
