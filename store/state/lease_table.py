"""Leases: a time to live with keys attached, which are deleted when the lease ends (etcd: leases).

This is the replicated part: which leases exist, the log index of each one's last sign of life, when each runs out if a
leader has recorded that since, and which keys are attached. Counting time is the leader's task. An expiry is a command
that names the last sign of life that the leader saw; it is void if another one came in between.

A lease may be owned by the session that has granted it: it ends with that session's process. Once another session has
used it (kept it alive, or attached a key), it is owned by nobody, forever.

In the family ``leases``: ``l`` + id -> the lease; ``k`` + id + key -> nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from ...errors import DataCorrupted
from ...limits import KNOWN_KEY_BYTES, KNOWN_LEASE_KEYS
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
    owner: int = 0


_decode = msgspec.msgpack.Decoder(_StoredLease).decode


class LeaseRecord:
    """A lease as the state machine sees it. Times are seconds."""

    __slots__ = ("at", "heard", "id", "keys", "known", "owner", "session", "task", "ttl", "until")

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
        owner: int = 0,
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
        self.known: tuple[bytes, ...] | None = ()
        """The attached keys, as long as they are few and short; ``None`` once they were not."""
        self.owner = owner
        """The session that owns it, 0 for none."""


class LeaseTable:
    """All leases, in memory and in the write batch."""

    def __init__(self, batch: WriteBatch, clients: Clients) -> None:
        self._batch = batch
        self._clients = clients
        self.by_id: dict[int, LeaseRecord] = {}
        self._by_owner: dict[int, set[int]] = {}
        """The ids of the leases that each session owns."""

    def load(self, engine: Engine) -> None:
        """Read the leases from the database."""
        for key, value in engine.iterate(_FAMILY, b"l", b"m"):
            try:
                stored = _decode(value)
            except msgspec.MsgspecError as error:
                raise DataCorrupted(f"a lease cannot be read: {error}") from error
            id = _ID.unpack(key[1:])[0]
            self.by_id[id] = lease = LeaseRecord(
                id,
                stored.ttl,
                stored.heard,
                stored.until,
                session=stored.session,
                at=stored.at,
                task=stored.task,
            )
            self._set_owner(lease, stored.owner)
            self._clients.lease_loaded(stored.session)
        for key, _ in engine.iterate(_FAMILY, b"k", b"l"):
            _add_key(self.by_id[_ID.unpack_from(key, 1)[0]], key[9:])

    def grant(
        self,
        id: int,
        ttl: float,
        index: int,
        *,
        session: int = 0,
        at: float = 0.0,
        task: str = "",
        owner: int = 0,
    ) -> None:
        """Grant a lease at a log index. There must be none with that id. For the rest see ``LeaseRecord``."""
        lease = LeaseRecord(id, ttl, index, session=session, at=at, task=task)
        self._set_owner(lease, owner)
        self._save(lease)
        self._batch.on_rollback(self._forget, id, None)
        self._clients.lease_made(session)

    def renew(self, id: int, index: int, by: int = 0) -> bool:
        """Record a sign of life at a log index, by a session or by somebody else: the lease has its whole TTL again.
        Returns False if there is none."""
        lease = self.by_id.get(id)
        if lease is None:
            return False
        if by != lease.owner:
            self._set_owner(lease, 0)
        lease.heard, lease.until = index, None
        self._save(lease)
        return True

    def use(self, id: int, by: int) -> None:
        """A session uses a lease: if another one owns it, nobody does from now on."""
        lease = self.by_id[id]
        owner = lease.owner
        if owner and owner != by:
            self._set_owner(lease, 0)
            self._save(lease)
            self._batch.on_rollback(self._set_owner, lease, owner)

    def owned_by(self, session: int) -> list[int]:
        """The ids of the leases that a session owns, in order."""
        return sorted(self._by_owner.get(session, ()))

    def _set_owner(self, lease: LeaseRecord, owner: int) -> None:
        """Set the owner; in memory only."""
        if lease.owner:
            owned = self._by_owner.get(lease.owner, set())
            owned.discard(lease.id)
            if not owned:
                self._by_owner.pop(lease.owner, None)
        lease.owner = owner
        if owner:
            self._by_owner.setdefault(owner, set()).add(lease.id)

    def checkpoint(self, id: int, until: float) -> bool:
        """Record when a lease runs out. Returns False if there is no such lease, or the time is not finite."""
        lease = self.by_id.get(id)
        if lease is None or not until < float("inf"):
            return False
        lease.until = until
        self._save(lease)
        return True

    def renew_all(self, index: int) -> None:
        """Give every lease its whole TTL again, and no owner (after a restore)."""
        for id in list(self.by_id):
            self.renew(id, index)

    def _save(self, lease: LeaseRecord) -> None:
        self.by_id[lease.id] = lease
        stored = _StoredLease(lease.ttl, lease.heard, lease.until, lease.session, lease.at, lease.task, lease.owner)
        self._batch.set(_FAMILY, b"l" + _ID.pack(lease.id), _encode(stored))

    def remove(self, id: int) -> None:
        """Remove a lease whose keys are deleted."""
        lease = self.by_id.pop(id)
        owner = lease.owner
        self._set_owner(lease, 0)
        self._batch.set(_FAMILY, b"l" + _ID.pack(id), None)
        self._batch.on_rollback(self._remember, lease, owner)
        self._clients.lease_gone(lease.session)

    def _forget(self, id: int, _: None) -> None:
        self._set_owner(self.by_id.pop(id), 0)

    def _remember(self, lease: LeaseRecord, owner: int) -> None:
        self.by_id[lease.id] = lease
        self._set_owner(lease, owner)

    def attach(self, id: int, key: bytes) -> None:
        """Attach a key to a lease; it must not be attached to another."""
        self._batch.set(_FAMILY, b"k" + _ID.pack(id) + key, b"")
        lease = self.by_id[id]
        _add_key(lease, key)
        self._batch.on_rollback(_remove_key, lease, key)

    def detach(self, id: int, key: bytes) -> None:
        """Detach a key from its lease."""
        self._batch.set(_FAMILY, b"k" + _ID.pack(id) + key, None)
        lease = self.by_id[id]
        _remove_key(lease, key)
        self._batch.on_rollback(_add_key, lease, key)

    def keys(self, id: int) -> Iterator[bytes]:
        """The attached keys, in order."""
        known = self.by_id[id].known
        if known is not None:
            yield from sorted(known)
            return
        for key, _ in self._batch.iterate(_FAMILY, *_attached_to(id)):
            yield key[9:]

    def attached(self, engine: Engine, id: int) -> Iterator[bytes]:
        """The attached keys as the database holds them, without the write batch. For any thread."""
        for key, _ in engine.iterate(_FAMILY, *_attached_to(id)):
            yield key[9:]


def _add_key(lease: LeaseRecord, key: bytes) -> None:
    lease.keys += 1
    known = lease.known
    if known is not None:
        fits = len(known) < KNOWN_LEASE_KEYS and len(key) <= KNOWN_KEY_BYTES
        lease.known = (*known, key) if fits else None


def _remove_key(lease: LeaseRecord, key: bytes) -> None:
    lease.keys -= 1
    known = lease.known
    if known is not None:
        lease.known = tuple([each for each in known if each != key])
    elif not lease.keys:
        lease.known = ()


def _attached_to(id: int) -> tuple[bytes, bytes]:
    """The range of a lease's keys. Ids are packed as they are, so the next in that order is not always ``id + 1``."""
    start = b"k" + _ID.pack(id)
    return start, (int.from_bytes(start, "big") + 1).to_bytes(len(start), "big")
