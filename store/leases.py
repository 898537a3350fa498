"""Leases: names for a time to live that keys are attached to, and that take their keys along when they end.

This is the replicated part (design, "Time"): which leases exist, where in the log the last sign of life of each is,
when each runs out if a leader has said so since, and which keys are attached. Counting time is the leader's business;
an end comes as a command that names the last sign of life it saw, and is void if another one came between.

In the family ``leases``: ``l`` + id -> the lease; ``k`` + id + key -> nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from ..errors import DataCorrupted
from .engine import Engine
from .pending import Pending

FAMILY = "leases"
FRESH_ID_BITS = 16
"""A lease's id that nobody chose is made of the log index of its grant, and of so many bits for its place there."""
_ID = struct.Struct(">Q")
_encode = msgspec.msgpack.Encoder().encode


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    ttl: float
    heard: int
    until: float | None


_decode = msgspec.msgpack.Decoder(_Stored).decode


class Lease:
    """A lease as the state machine sees it. Times are seconds."""

    __slots__ = ("heard", "id", "keys", "ttl", "until")

    def __init__(self, id: int, ttl: float, heard: int, until: float | None = None) -> None:
        self.id = id
        self.ttl = ttl
        self.heard = heard
        """Log index of its last sign of life in the log: its grant, or a renewal."""
        self.until = until
        """At which reading of the cluster's clock it runs out, if a leader has written that down since."""
        self.keys = 0
        """How many keys are attached."""


class Leases:
    """All leases, in memory and in the batch that is being applied."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.by_id: dict[int, Lease] = {}

    def load(self, engine: Engine) -> None:
        """Read what the database holds."""
        for key, value in engine.iterate(FAMILY, b"l", b"m"):
            try:
                stored = _decode(value)
            except msgspec.MsgspecError as error:
                raise DataCorrupted(f"a lease cannot be read: {error}") from error
            id = _ID.unpack(key[1:])[0]
            self.by_id[id] = Lease(id, stored.ttl, stored.heard, stored.until)
        for key, _ in engine.iterate(FAMILY, b"k", b"l"):
            self.by_id[_ID.unpack_from(key, 1)[0]].keys += 1

    def grant(self, id: int, ttl: float, index: int) -> None:
        """Make a lease, at a log index; there must be none of that id."""
        self._save(Lease(id, ttl, index))
        self._pending.on_rollback(lambda: self._forget(id))

    def renew(self, id: int, index: int) -> bool:
        """A sign of life stands in the log at an index: the whole TTL is left. False if there is no such lease."""
        lease = self.by_id.get(id)
        if lease is None:
            return False
        lease.heard, lease.until = index, None
        self._save(lease)
        return True

    def checkpoint(self, id: int, until: float) -> bool:
        """Write down when it runs out; False if there is no such lease, or no such time."""
        lease = self.by_id.get(id)
        if lease is None or not until < float("inf"):
            return False
        lease.until = until
        self._save(lease)
        return True

    def refill(self, index: int) -> None:
        """Give every lease its whole TTL again."""
        for id in list(self.by_id):
            self.renew(id, index)

    def _save(self, lease: Lease) -> None:
        self.by_id[lease.id] = lease
        self._pending.set(FAMILY, b"l" + _ID.pack(lease.id), _encode(_Stored(lease.ttl, lease.heard, lease.until)))

    def remove(self, id: int) -> None:
        """Forget a lease whose keys are gone."""
        lease = self.by_id.pop(id)
        self._pending.set(FAMILY, b"l" + _ID.pack(id), None)
        self._pending.on_rollback(lambda: self._remember(lease))

    def _forget(self, id: int) -> None:
        del self.by_id[id]

    def _remember(self, lease: Lease) -> None:
        self.by_id[lease.id] = lease

    def attach(self, id: int, key: bytes) -> None:
        """Tie a key to a lease; it must be tied to none."""
        self._pending.set(FAMILY, b"k" + _ID.pack(id) + key, b"")
        self._count(id, 1)

    def detach(self, id: int, key: bytes) -> None:
        """Untie a key."""
        self._pending.set(FAMILY, b"k" + _ID.pack(id) + key, None)
        self._count(id, -1)

    def _count(self, id: int, by: int) -> None:
        lease = self.by_id[id]
        lease.keys += by

        def undo() -> None:
            lease.keys -= by

        self._pending.on_rollback(undo)

    def keys(self, id: int) -> Iterator[bytes]:
        """The keys that are attached, in order."""
        start = b"k" + _ID.pack(id)
        for key, _ in self._pending.iterate(FAMILY, start, b"k" + _ID.pack(id + 1)):
            yield key[9:]

    def attached(self, engine: Engine, id: int) -> Iterator[bytes]:
        """The keys that are attached, as the database holds them: for any thread."""
        for key, _ in engine.iterate(FAMILY, b"k" + _ID.pack(id), b"k" + _ID.pack(id + 1)):
            yield key[9:]
