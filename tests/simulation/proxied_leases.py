"""Leases of etcd's clients: granted, kept alive and revoked through proxies, and judged like all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
)
from raykeeper.actors.proxy.kv_service import KvService
from raykeeper.actors.proxy.lease_service import LeaseService
from raykeeper.actors.proxy.rpc_status import RpcError
from raykeeper.errors import LeaseNotFound, RequestTimeout
from simulation.checker import Violation
from simulation.lodgers import Candidate, Contender, Lodger, Spectator, Tenant, Watcher
from simulation.proxy import Backend, Context, understood
from simulation.scripts import SimClient, now
from simulation.sharers import Mover, Porter, Spender

if TYPE_CHECKING:
    from simulation.client import Client

MARGIN = 0.98
"""An etcd client knows nothing of drift: this share of a TTL is left by any two healthy clocks."""


class EtcdLease:
    """As the book of all leases knows them (``SimLease``)."""

    def __init__(self, process: Client, id: int, ttl: float, good_until: float) -> None:
        self.process = process
        self.life = process.lives
        self.id = id
        self.ttl = ttl
        self.good_until = good_until
        """Until when its client may rely on it, by that client's clock."""
        self.revoke_asked = False
        self.asked_by: list[Client] = []
        self.forgotten_at: float | None = None

    def forget(self) -> None:
        """Nobody keeps it alive from here on."""
        self.forgotten_at = self.process.world.now

    def note_revocation(self, process: Client) -> None:
        """A client asks for its end."""
        self.revoke_asked = True
        self.asked_by.append(process)
        if self.forgotten_at is None:
            self.forget()

    @property
    def kept(self) -> bool:
        """Whether its process lives and keeps it alive."""
        return self.life == self.process.lives and self.forgotten_at is None


class EtcdTenant(Lodger):
    """A client of etcd with a lease: keeps it for a while, attaches keys, and lets it go."""

    async def act(self, kv: SimClient) -> None:
        backend = Backend(self.client)
        lease: EtcdLease | None = None
        try:
            lease = await self._grant(backend)
            await self._live_with(lease, backend)
        except RpcError as error:
            problem = understood(error, "a lease")
            if not isinstance(problem, (RequestTimeout, LeaseNotFound)):
                raise problem from error
            await self.rest(0.3)
        finally:
            if lease is not None and lease.forgotten_at is None:
                lease.forget()

    async def _grant(self, backend: Backend) -> EtcdLease:
        sent = now()
        message = LeaseGrantRequest(TTL=self.rng.randint(1, 3), ID=backend.choose_lease_id()).SerializeToString()
        answer = LeaseGrantResponse.FromString(await LeaseService(backend).grant(message, Context(sent + 4.0)))
        lease = EtcdLease(self.client, answer.ID, answer.TTL, sent + MARGIN * answer.TTL)
        self.book.leases.append(lease)
        return lease

    async def _live_with(self, lease: EtcdLease, backend: Backend) -> None:
        rng = self.rng
        for number in range(rng.randrange(10)):
            if rng.random() < 0.4:
                key = f"utenant/{self.name}/{number % 3}".encode()
                put = PutRequest(key=key, value=f"{lease.id:x}".encode(), lease=lease.id).SerializeToString()
                await KvService(backend, None).put(put, Context(now() + 2.0))  # type: ignore[arg-type]
            if rng.random() < 0.1:
                asked = LeaseTimeToLiveRequest(ID=lease.id, keys=True).SerializeToString()
                data = await LeaseService(backend).time_to_live(asked, Context(now() + 2.0))
                if lease.ttl < LeaseTimeToLiveResponse.FromString(data).TTL:
                    raise Violation(f"{self.name}: a lease of {lease.ttl} s has more than that left")
            sent = now()
            (ttl,), _ = await backend.keep_leases((lease.id,), Context(sent + 2.0))
            if not ttl:
                if now() < lease.good_until:
                    raise Violation(f"{self.name}: lease {lease.id:x} is gone before its time")
                return
            lease.good_until = max(lease.good_until, sent + MARGIN * ttl)
            if not self.world.closing:
                await self.rest(0.4)
        if rng.random() < 0.5:
            lease.note_revocation(lease.process)
            await LeaseService(backend).revoke(
                LeaseRevokeRequest(ID=lease.id).SerializeToString(), Context(now() + 4.0)
            )


def populate(client: Client) -> None:
    """Let a client's lodgers move in."""
    profile = client.world.profile
    for kind, many in (
        (EtcdTenant, profile.proxied_tenants),
        (Watcher, profile.watchers),
        (Tenant, profile.tenants),
        (Contender, profile.contenders),
        (Candidate, profile.candidates),
        (Mover, profile.movers),
        (Spender, profile.spenders),
        (Porter, profile.porters),
        (Spectator, 1 if profile.candidates and client.number == 1 else 0),
    ):
        client.lodgers += [kind(client, number) for number in range(many)]
