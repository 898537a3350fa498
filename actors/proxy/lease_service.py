"""etcd's service Lease."""

from __future__ import annotations

import asyncio

from ...limits import LEASE_MAX_TTL_S, MAX_LEASES_IN_FRAME
from ...schema.answers import Done, LeaseGranted
from ...schema.operations import LeaseGrant, LeaseRevoke
from ..client.aio_timeout import cancel_if_possible
from .etcd_backend import CallContext, EtcdBackend, StreamContext, expect
from .etcd_errors import LEASE_EXISTS, LEASE_NOT_FOUND, LEASE_TTL_TOO_LARGE
from .etcdpb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    LeaseStatus,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
)
from .rpc_status import RpcError


class LeaseService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend) -> None:
        self._backend = backend

    async def grant(self, request: bytes, context: CallContext) -> bytes:
        """Grant a lease. A TTL below the least is raised to it; the lease then has that one (etcd: minLeaseTTL)."""
        asked = LeaseGrantRequest.FromString(request)
        if asked.TTL > LEASE_MAX_TTL_S:
            raise LEASE_TTL_TOO_LARGE.error()
        ttl = max(asked.TTL, self._backend.least_lease_ttl)
        while True:
            grant = LeaseGrant(asked.ID or self._backend.choose_lease_id(), float(ttl))
            try:
                answer = expect(await self._backend.write(grant, context), LeaseGranted)
                break
            except RpcError as error:
                if error.text != LEASE_EXISTS.text or asked.ID:
                    raise
        header = self._backend.header(answer.revision)
        return LeaseGrantResponse(header=header, ID=answer.id, TTL=int(answer.ttl)).SerializeToString()

    async def revoke(self, request: bytes, context: CallContext) -> bytes:
        """End a lease and delete its keys."""
        lease = LeaseRevokeRequest.FromString(request).ID
        if not lease:
            raise LEASE_NOT_FOUND.error()
        answer = expect(await self._backend.write(LeaseRevoke(lease), context), Done)
        return LeaseRevokeResponse(header=self._backend.header(answer.revision)).SerializeToString()

    async def keep_alive(self, stream: StreamContext) -> None:
        """Keep leases alive; answers come in the order of the requests. A lease that is gone has a TTL of 0.

        A client keeps all of its leases alive by one stream. Requests that gather while others are asked for are the
        next frame, so a thousand leases cost no more rounds than one.
        """
        gathered: asyncio.Queue[int | None] = asyncio.Queue(MAX_LEASES_IN_FRAME)
        reader = asyncio.ensure_future(_read_leases(stream, gathered))
        try:
            while leases := await _next_leases(gathered):
                kept = await self._backend.keep_leases(leases, stream)
                header = self._backend.header(kept.revision)
                for lease, ttl in zip(leases, kept.ttls, strict=True):
                    await stream.send(LeaseKeepAliveResponse(header=header, ID=lease, TTL=ttl).SerializeToString())
            await reader
        finally:
            cancel_if_possible(reader)

    async def time_to_live(self, request: bytes, context: CallContext) -> bytes:
        """The seconds that a lease has left, -1 if there is none, and the keys attached to it."""
        asked = LeaseTimeToLiveRequest.FromString(request)
        found = await self._backend.lease_statuses((asked.ID,), asked.keys, context)
        response = LeaseTimeToLiveResponse(header=self._backend.header(found.revision), ID=asked.ID, TTL=-1)
        for lease in found.leases:
            response.TTL, response.grantedTTL = int(lease.remaining), int(lease.ttl)
            space = self._backend.space
            response.keys.extend([key[len(space) :] for key in lease.keys if key.startswith(space)])
        return response.SerializeToString()

    async def leases(self, request: bytes, context: CallContext) -> bytes:
        """All leases, those that end first before others."""
        found = await self._backend.lease_statuses((), False, context)
        in_order = sorted(found.leases, key=lambda lease: lease.remaining)
        return LeaseLeasesResponse(
            header=self._backend.header(found.revision), leases=[LeaseStatus(ID=lease.id) for lease in in_order]
        ).SerializeToString()


async def _read_leases(stream: StreamContext, gathered: asyncio.Queue[int | None]) -> None:
    """Queue the ids that a client sends, and ``None`` after the last, or after what was not a request."""
    try:
        while (message := await stream.receive()) is not None:
            await gathered.put(LeaseKeepAliveRequest.FromString(message).ID)
    except Exception:
        await gathered.put(None)
        raise
    await gathered.put(None)


async def _next_leases(gathered: asyncio.Queue[int | None]) -> list[int]:
    """The ids that have gathered, one at least; none after the last."""
    leases: list[int] = []
    lease = await gathered.get()
    while lease is not None:
        leases.append(lease)
        if gathered.empty():
            return leases
        lease = gathered.get_nowait()
    if leases:
        gathered.put_nowait(None)
    return leases
