"""Leases: a time to live with keys attached, which are deleted when the lease ends (etcd: leases).

This is the replicated part: which leases exist, the log index of each one's last sign of life, when each runs out if a
leader has recorded that since, and which keys are attached. Counting time is the leader's task. An expiry is a command
that names the last sign of life that the leader saw; it is void if another one came in between.

In the family ``leases``: ``l`` + id -> the lease; ``k`` + id + key -> nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from ...errors import DataCorrupted
from ...schema.operations import Number, Span
from ..engine.interface import Engine
from .clients import Clients
from .write_batch import WriteBatch

_FAMILY = "leases"
FRESH_ID_BITS = 16
"""An id that the client has not chosen consists of the log index of the grant, and of this many bits for the position
within the entry."""
_ID = struct.Struct(">q")
_encode = msgspec.msgpack.Encoder().encode


class _StoredLease(msgspec.Struct, frozen=True, array_like=True):
    ttl: float
    heard: int
    until: float | None
    session: Number = 0
    at: Span = 0.0
    task: str = ""


_decode = msgspec.msgpack.Decoder(_StoredLease).decode


class LeaseRecord:
    """A lease as the state machine sees it. Times are seconds."""

    __slots__ = ("at", "heard", "id", "keys", "session", "task", "ttl", "until")

    def __init__(
        self,
        id: int,
        ttl: float,
        heard: int,
        until: float | None = None,
        *,
        session: int = 0,
        at: float = 0.0,
        task: str = "",
    ) -> None:
        self.id = id
        self.ttl = ttl
        self.heard = heard
        """Log index of its last sign of life: the grant, or a renewal."""
        self.until = until
        """The time on the cluster's clock when it runs out, if a leader has recorded that since."""
        self.session = session
        """In which it was made (see ``clients``)."""
        self.at = at
        """When its client asked for it, by that one's clock (``LeaseGrant.at``)."""
        self.task = task
        """The Ray task that it was made for; may be empty."""
        self.keys = 0
        """The number of attached keys."""


class LeaseTable:
    """All leases, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch, clients: Clients) -> None:
        self._batch = batch
        self._clients = clients
        self.by_id: dict[int, LeaseRecord] = {}

    def load(self, engine: Engine) -> None:
        """Read the leases from the database."""
        for key, value in engine.iterate(_FAMILY, b"l", b"m"):
            try:
                stored = _decode(value)
            except msgspec.MsgspecError as error:
                raise DataCorrupted(f"a lease cannot be read: {error}") from error
            id = _ID.unpack(key[1:])[0]
            self.by_id[id] = LeaseRecord(
                id,
                stored.ttl,
                stored.heard,
                stored.until,
                session=stored.session,
                at=stored.at,
                task=stored.task,
            )
            self._clients.lease_loaded(stored.session)
        for key, _ in engine.iterate(_FAMILY, b"k", b"l"):
            self.by_id[_ID.unpack_from(key, 1)[0]].keys += 1

    def grant(self, id: int, ttl: float, index: int, *, session: int = 0, at: float = 0.0, task: str = "") -> None:
        """Grant a lease at a log index. There must be none with that id. For the rest see ``LeaseRecord``."""
        self._save(LeaseRecord(id, ttl, index, session=session, at=at, task=task))
        self._batch.on_rollback(self._forget, id, None)
        self._clients.lease_made(session)

    def renew(self, id: int, index: int) -> bool:
        """Record a sign of life at a log index: the lease has its whole TTL again. Returns False if there is none."""
        lease = self.by_id.get(id)
        if lease is None:
            return False
        lease.heard, lease.until = index, None
        self._save(lease)
        return True

    def checkpoint(self, id: int, until: float) -> bool:
        """Record when a lease runs out. Returns False if there is no such lease, or the time is not finite."""
        lease = self.by_id.get(id)
        if lease is None or not until < float("inf"):
            return False
        lease.until = until
        self._save(lease)
        return True

    def renew_all(self, index: int) -> None:
        """Give every lease its whole TTL again (after a restore)."""
        for id in list(self.by_id):
            self.renew(id, index)

    def _save(self, lease: LeaseRecord) -> None:
        self.by_id[lease.id] = lease
        stored = _StoredLease(lease.ttl, lease.heard, lease.until, lease.session, lease.at, lease.task)
        self._batch.set(_FAMILY, b"l" + _ID.pack(lease.id), _encode(stored))

    def remove(self, id: int) -> None:
        """Remove a lease whose keys are deleted."""
        lease = self.by_id.pop(id)
        self._batch.set(_FAMILY, b"l" + _ID.pack(id), None)
        self._batch.on_rollback(self._remember, lease, None)
        self._clients.lease_gone(lease.session)

    def _forget(self, id: int, _: None) -> None:
        del self.by_id[id]

    def _remember(self, lease: LeaseRecord, _: None) -> None:
        self.by_id[lease.id] = lease

    def attach(self, id: int, key: bytes) -> None:
        """Attach a key to a lease; it must not be attached to another."""
        self._batch.set(_FAMILY, b"k" + _ID.pack(id) + key, b"")
        self._count(id, 1)

    def detach(self, id: int, key: bytes) -> None:
        """Detach a key from its lease."""
        self._batch.set(_FAMILY, b"k" + _ID.pack(id) + key, None)
        self._count(id, -1)

    def _count(self, id: int, by: int) -> None:
        lease = self.by_id[id]
        lease.keys += by
        self._batch.on_rollback(_count_back, lease, by)

    def keys(self, id: int) -> Iterator[bytes]:
        """The attached keys, in order."""
        for key, _ in self._batch.iterate(_FAMILY, *_attached_to(id)):
            yield key[9:]

    def attached(self, engine: Engine, id: int) -> Iterator[bytes]:
        """The attached keys as the database holds them, without the write batch. For any thread."""
        for key, _ in engine.iterate(_FAMILY, *_attached_to(id)):
            yield key[9:]


def _count_back(lease: LeaseRecord, by: int) -> None:
    lease.keys -= by


def _attached_to(id: int) -> tuple[bytes, bytes]:
    """The range of a lease's keys. Ids are packed as they are, so the next in that order is not always ``id + 1``."""
    start = b"k" + _ID.pack(id)
    return start, (int.from_bytes(start, "big") + 1).to_bytes(len(start), "big")
