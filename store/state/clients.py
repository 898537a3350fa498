"""Who opened each session and made each lease: the processes that are, or were, clients.

What a client says of itself is kept as long as its session lasts, and longer while leases are there that were made in
it: who holds a lock must be known even where the holder has been silent for so long that its session has ended. Under
the id of the session, in the family ``sessions``: ``c`` + id -> who it is.
"""

from __future__ import annotations

import struct

import msgspec

from ...schema.client_identity import ClientIdentity, is_bounded
from ..engine.interface import Engine
from .write_batch import WriteBatch

_FAMILY = "sessions"
CLIENTS = b"c", b"d"
"""The range of their keys in that family."""
_ID = struct.Struct(">Q")
_encode = msgspec.msgpack.Encoder().encode


class _StoredClient(msgspec.Struct, frozen=True, array_like=True):
    open: bool
    identity: ClientIdentity


_decode = msgspec.msgpack.Decoder(_StoredClient).decode


class ClientRecord:
    """A client that said who it is."""

    __slots__ = ("id", "identity", "leases", "open")

    def __init__(self, id: int, open: bool, identity: ClientIdentity) -> None:
        self.id = id
        """Of its session."""
        self.open = open
        """Whether it still has that session."""
        self.identity = identity
        self.leases = 0
        """How many leases that were made in the session are there."""


class Clients:
    """All of them, in memory and in the write batch. The sessions say when one comes and goes, the table of leases
    when a lease does, which may be rolled back."""

    def __init__(self, batch: WriteBatch) -> None:
        self._batch = batch
        self.by_id: dict[int, ClientRecord] = {}

    def load(self, engine: Engine) -> None:
        """Read them from the database; before the leases. Raises ``MsgspecError`` or ``struct.error`` if they cannot be
        decoded."""
        for key, value in engine.iterate(_FAMILY, *CLIENTS):
            stored, (id,) = _decode(value), _ID.unpack(key[1:])
            self.by_id[id] = ClientRecord(id, stored.open, stored.identity)

    def opened(self, id: int, identity: ClientIdentity | None) -> None:
        """A session was opened. An identity that is over its bounds counts as none."""
        if identity is not None and is_bounded(identity):
            self._save(ClientRecord(id, True, identity))

    def closed(self, id: int) -> None:
        """A session has ended."""
        client = self.by_id.get(id)
        if client is None:
            return
        if client.leases:
            client.open = False
            self._save(client)
        else:
            self._drop(client)

    def lease_loaded(self, session: int) -> None:
        """A lease of that session was read from the database."""
        if (client := self.by_id.get(session)) is not None:
            client.leases += 1

    def lease_made(self, session: int) -> None:
        """A lease was made in that session."""
        if (client := self.by_id.get(session)) is not None:
            client.leases += 1
            self._batch.on_rollback(_count_back, client, -1)

    def lease_gone(self, session: int) -> None:
        """A lease that was made in that session has ended."""
        if (client := self.by_id.get(session)) is None:
            return
        client.leases -= 1
        self._batch.on_rollback(_count_back, client, 1)
        if not client.leases and not client.open:
            self._drop(client)
            self._batch.on_rollback(self._restore, client, None)

    def _save(self, client: ClientRecord) -> None:
        self.by_id[client.id] = client
        self._batch.set(_FAMILY, b"c" + _ID.pack(client.id), _encode(_StoredClient(client.open, client.identity)))

    def _drop(self, client: ClientRecord) -> None:
        del self.by_id[client.id]
        self._batch.set(_FAMILY, b"c" + _ID.pack(client.id), None)

    def _restore(self, client: ClientRecord, _: None) -> None:
        self.by_id[client.id] = client


def _count_back(client: ClientRecord, by: int) -> None:
    client.leases += by
