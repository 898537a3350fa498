"""What etcd's locks and elections have in common: contenders' keys, of which the one created first has the say.

Each contender puts a key of its own under the name, with its lease. The key with the lowest create revision holds the
lock, or leads; the others wait until all keys created before theirs are gone (etcd: concurrency.Mutex, Election). These
are users' keys, and an etcd client may follow the same recipe by itself. RayKeeper's own locks are others, and neither
exclude the other.

A failure is answered with the code UNKNOWN, whatever it is: etcd's service is a client of its own server, and passes on
no code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from ...errors import KeeperError
from ...schema.answers import Item, LeaseGranted, RangeAnswer, TxnAnswer
from ...schema.operations import (
    Delete,
    KeyRange,
    LeaseGrant,
    Put,
    Range,
    Relation,
    Sort,
    Target,
    Txn,
    TxnCompare,
)
from ..client.view import prefix_end, whole_range
from ..client.watch import AsyncWatch
from .etcd_backend import CallContext, EtcdBackend, expect
from .etcd_errors import EMPTY_KEY, from_keeper_error
from .rpc_status import RpcCode, RpcError

SESSION_TTL_S = 60.0
"""Of the lease of a contender that has brought none; nobody keeps it alive."""


class Entered(NamedTuple):
    """A contender's key is there."""

    key: bytes
    """As the store has it."""
    lease: int
    revision: int
    """When the key was looked at, or put."""
    created: int
    """Its create revision."""
    found: Item | None
    """The key, if it was there before."""
    first: Item | None
    """The key that was created first; ``None`` if it is this one."""


class EtcdContenders:
    """The contenders for one name.

    Args:
        name: its folder is all keys that begin with it and a slash.
        context: of the call.
    """

    def __init__(self, backend: EtcdBackend, name: bytes, context: CallContext) -> None:
        self._backend = backend
        self._context = context
        self._prefix = backend.space + name + b"/"
        self._keys = KeyRange(self._prefix, prefix_end(self._prefix))

    async def enter(self, lease: int, value: bytes) -> Entered:
        """Put a contender's key, unless it is there. Without a lease, one is granted."""
        if not lease:
            grant = LeaseGrant(self._backend.choose_lease_id(), SESSION_TTL_S)
            lease = expect(await self._write(grant), LeaseGranted).id
        key = self._prefix + b"%x" % lease
        first = Range(self._keys, limit=1, sort=Sort.CREATE_REVISION)
        answer = expect(
            await self._write(
                Txn(
                    (TxnCompare(KeyRange(key), Target.CREATE_REVISION, Relation.EQUAL, 0),),
                    (Put(key, value, lease), first),
                    (Range(KeyRange(key)), first),
                )
            ),
            TxnAnswer,
        )
        earliest = expect(answer.responses[1], RangeAnswer).items[0]
        created, found = answer.revision, None
        if not answer.succeeded:
            found = expect(answer.responses[0], RangeAnswer).items[0]
            created = found.create_revision
        return Entered(key, lease, answer.revision, created, found, None if earliest.key == key else earliest)

    async def wait_until_first(self, created: int) -> None:
        """Wait until all keys are gone that were created before a revision."""
        while True:
            answer = await self.read(Range(self._keys))
            before = [item for item in answer.items if item.create_revision < created]
            if not before:
                return
            await self.wait_until_gone(max(before, key=lambda item: item.create_revision).key, answer.revision)

    async def wait_until_gone(self, key: bytes, revision: int) -> None:
        """Wait for a delete of a key that was there at a revision."""
        async with self.watch(KeyRange(key), revision, only="delete") as watch:
            await self.next_event(watch)

    async def first(self) -> tuple[Item | None, int]:
        """The key that was created first, and the revision when it was read."""
        answer = await self.read(Range(self._keys, limit=1, sort=Sort.CREATE_REVISION))
        return (answer.items[0] if answer.items else None), answer.revision

    async def change_if_created(self, key: bytes, created: int, change: Put | Delete) -> TxnAnswer:
        """Change a key if its create revision is that one."""
        if key == self._backend.space:
            raise unknown(EMPTY_KEY.text)
        unchanged = TxnCompare(KeyRange(key), Target.CREATE_REVISION, Relation.EQUAL, created)
        return expect(await self._write(Txn((unchanged,), (change,))), TxnAnswer)

    def abandon(self, key: bytes, created: int) -> None:
        """Delete a contender's key without waiting: its call has ended."""
        unchanged = TxnCompare(KeyRange(key), Target.CREATE_REVISION, Relation.EQUAL, created)
        self._backend.write_soon(Txn((unchanged,), (Delete(KeyRange(key)),)))

    # -- asking -------------------------------------------------------------------------------------------------------

    async def read(self, command: Range) -> RangeAnswer:
        """A range as a whole."""
        try:
            return await self._backend.run(whole_range(command, False), self._context)
        except RpcError as error:
            raise unknown(error.text) from error

    async def _write(self, operation: Txn | LeaseGrant) -> object:
        try:
            changes = operation.success if isinstance(operation, Txn) else ()
            size = sum(len(each.value or b"") for each in changes if isinstance(each, Put))
            return await self._backend.write(operation, self._context, size)
        except RpcError as error:
            raise unknown(error.text) from error

    @asynccontextmanager
    async def watch(self, keys: KeyRange, start: int, only: str | None = None) -> AsyncIterator[AsyncWatch]:
        """A watch for the time of a ``with`` statement."""
        try:
            watch = await self._backend.watch(keys, start, only, self._context)
        except KeeperError as error:
            raise unknown(from_keeper_error(error).text) from error
        try:
            yield watch
        finally:
            await watch.cancel()

    async def next_event(self, watch: AsyncWatch) -> tuple[bool, Item]:
        """The next event: whether it deleted, and the key with its new content."""
        try:
            event = await watch.next()
        except KeeperError as error:
            raise unknown(from_keeper_error(error).text) from error
        if event is None:
            raise unknown("lost watcher waiting for delete")
        kv = event.kv
        key = self._backend.space + kv.key
        return event.type == "delete", Item(key, kv.raw, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def unknown(text: str) -> RpcError:
    """A failure of a lock or an election."""
    return RpcError(RpcCode.UNKNOWN, text)
