"""Transactions as functions (etcd: STM of the package concurrency): read, compute, write, as one step.

::

    def move(t):
        left = int(t.get("a").text) - 5
        if left < 0:
            raise ValueError("not enough")       # nothing was written, and nothing will be
        t.put("a", str(left))
        t.put("b", str(int(t.get("b").text) + 5))

    kv.atomically(move)

**One run.** All reads of a run are of one revision, that of its first read; so the function sees a store at rest,
however long it takes (etcd: SerializableSnapshot, its default). Writes are only noted. When the function returns, one
transaction compares and writes: no key that was read has changed since that revision, no key has appeared in or gone
from a range that was read, and no key that will be written has been written since (one that was only deleted
meanwhile conflicts if it was read, as in etcd). If that does not hold, nothing is written, and
the function runs again, at a newer revision. A function that writes nothing needs no transaction: its reads were of one
revision, and that was the present when the first was made.

**What a range costs.** "No key of it has changed or appeared" is one comparison of the range. That a key has gone shows
only at the key, so each that was found is compared as well: hence the bound on the keys of a range.

**Reading again.** A transaction that finds something changed reads the same keys in its other branch. These are of one
revision, so the next run begins with them, and makes no request for them.

**A name.** With a ``request_id``, the transaction is remembered once its comparisons have held. A caller with the same
name asks first, later: a transaction under that name that cannot hold is answered with what is remembered.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from random import SystemRandom
from typing import Any, NamedTuple, TypeVar

from ...errors import CompactedError, InvalidArgument, RequestTooLarge, TransactionConflict
from ...limits import ATOMICALLY_PREFETCH_BYTES, RECIPE_MAX_PAUSE_S, RECIPE_PAUSE_S
from .. import arguments as check
from ..arguments import Key
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.results import End, Keep, KeyValue, RangeResult
from ..client.txn_parts import Compare, Condition, Op
from ..client.view import named
from ..deadline import covering, time_left
from .sync_async import AnyHandle, gate, pause, resolved, run_sync

T = TypeVar("T")
_rng = SystemRandom()


class _Write(NamedTuple):
    """What will become of a key: a put, or a delete if ``raw`` is ``None``."""

    raw: bytes | None
    lease: int


class _Range(NamedTuple):
    """Which keys were asked for, as bytes, and how."""

    key: bytes | None
    end: bytes | End | None
    prefix: bytes | None
    keys_only: bool

    def contains(self, name: bytes) -> bool:
        if self.prefix is not None:
            return name.startswith(self.prefix)
        assert self.key is not None
        if self.end is None:
            return name == self.key
        return self.key <= name and (isinstance(self.end, End) or name < self.end)


class _Run:
    """One run of the function: what it has read, and what it will write.

    Args:
        handle: the user's.
        most: comparisons, and operations, of one transaction.
        revision: that all reads are of; 0 for that of the first.
        known: keys that have been read already, at that revision.
    """

    def __init__(self, handle: AnyHandle, most: int, revision: int, known: dict[bytes, KeyValue | None]) -> None:
        self._handle = handle
        self._most = most
        self._known = known
        self._gate = gate(handle)
        self._keys: dict[bytes, KeyValue | None] = {}
        self._ranges: dict[_Range, RangeResult] = {}
        self._writes: dict[bytes, _Write] = {}
        self._compared: set[bytes] = set()
        """Keys with a comparison of their own, so far."""
        self.revision = revision
        self.over = False
        self.stale = False
        """Whether its revision was compacted away meanwhile, so that it must run again."""

    async def get(self, key: Key) -> KeyValue | None:
        name = self._key(key)
        written = self._writes.get(name)
        if written is not None:
            return self._pending(name, written)
        if name not in self._keys:
            self._room({name}, 0)
            if name in self._known:
                found = self._known[name]
            else:
                result = await self._read(_Range(name, None, None, False))
                found = result.items[0] if result.items else None
            self._keys[name] = found
            self._compared.add(name)
        return self._keys[name]

    async def range(self, key: Key | None, end: Key | End | None, prefix: Key | None, keys_only: bool) -> RangeResult:
        self._check_open()
        self._handle._view.keys(key, end, prefix)
        asked = _Range(
            None if key is None else check.text_or_bytes("a key", key),
            end if end is None or isinstance(end, End) else check.text_or_bytes("the end of a range", end),
            None if prefix is None else check.text_or_bytes("a prefix", prefix),
            check.flag("keys_only", keys_only),
        )
        result = self._ranges.get(asked)
        if result is None:
            result = await self._read(asked)
            self._room({item.key for item in result}, 1, result.more)
            self._ranges[asked] = result
            self._compared |= {item.key for item in result}
        return self._with_writes(result, asked)

    def put(self, key: Key, value: Any, lease: Any) -> None:
        name = self._key(key)
        if isinstance(value, Keep) or isinstance(lease, Keep):
            raise InvalidArgument("KEEP is not for t.put: get the pair, and put what it has")
        self._note(name, _Write(check.encode_value(value, self._handle.codec), check.lease_id(lease)))

    def delete(self, key: Key) -> None:
        self._note(self._key(key), _Write(None, 0))

    # -- the transaction that ends it ---------------------------------------------------------------------------------

    def transaction(self, prefetch: bool) -> tuple[Op, list[bytes]]:
        """The transaction, and the keys that it reads if it may not write."""
        conditions: dict[bytes, Condition] = {}
        ranges: list[Condition] = []
        for name, found in self._keys.items():
            conditions[name] = Compare.mod_revision(name) == (0 if found is None else found.mod_revision)
        for asked, result in self._ranges.items():
            ranges.append(Compare.mod_revision(asked.key, asked.end, prefix=asked.prefix) < self.revision + 1)
            for item in result:
                conditions[item.key] = Compare.mod_revision(item.key) == item.mod_revision
        for name in self._writes if self.revision else ():
            if name not in conditions:
                conditions[name] = Compare.mod_revision(name) < self.revision + 1
        writes = [
            Op.delete(name) if write.raw is None else Op.put(name, write.raw, lease=write.lease or None)
            for name, write in self._writes.items()
        ]
        again = list(self._keys) if prefetch and self._size() <= ATOMICALLY_PREFETCH_BYTES else []
        return Op.txn([*ranges, *conditions.values()], writes, [Op.get(name) for name in again]), again

    @property
    def writes(self) -> bool:
        return bool(self._writes)

    def _size(self) -> int:
        return sum(len(name) + len(found.raw) for name, found in self._keys.items() if found is not None)

    # -- small things -------------------------------------------------------------------------------------------------

    async def _read(self, asked: _Range) -> RangeResult:
        """Read at the revision of this run; the first read makes it, and those at the same time wait for that one."""
        if not self.revision:
            async with self._gate:
                if not self.revision:
                    first = await self._fetch(asked, None)
                    self.revision = first.revision
                    return first
        try:
            return await self._fetch(asked, self.revision)
        except CompactedError:
            self.stale = True
            raise

    async def _fetch(self, asked: _Range, revision: int | None) -> RangeResult:
        """Read; not more keys than can be compared."""
        key, end, prefix, keys_only = asked
        reading = self._handle.range(
            key, end, prefix=prefix, limit=self._most + 1, revision=revision, keys_only=keys_only
        )
        return await resolved(reading)

    def _key(self, key: object) -> bytes:
        self._check_open()
        return check.text_or_bytes("a key", key)

    def _check_open(self) -> None:
        if self.over:
            raise InvalidArgument("this transaction is over: its function has returned")

    def _note(self, name: bytes, write: _Write) -> None:
        if name not in self._writes and len(self._writes) >= self._most:
            raise self._too_large()
        self._room({name}, 0)
        self._compared.add(name)
        self._writes[name] = write

    def _room(self, names: set[bytes], ranges: int, more: bool = False) -> None:
        """Refuse what the transaction could not compare."""
        if more or len(self._compared | names) + len(self._ranges) + ranges > self._most:
            raise self._too_large()

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"a function reads and writes at most {self._most} keys and ranges in all, each key of a range counted "
            "(limits.max_txn_operations)"
        )

    def _pending(self, name: bytes, write: _Write) -> KeyValue | None:
        if write.raw is None:
            return None
        return KeyValue(name, write.raw, 0, 0, 0, write.lease, self._handle.codec)

    def _with_writes(self, result: RangeResult, asked: _Range) -> RangeResult:
        """A range as it would be after the writes so far."""
        items = {item.key: item for item in result}
        for name, write in self._writes.items():
            if asked.contains(name):
                items.pop(name, None)
                pending = self._pending(name, write)
                if pending is not None and asked.keys_only:
                    pending = KeyValue(name, b"", 0, 0, 0, write.lease)
                if pending is not None:
                    items[name] = pending
        return RangeResult(tuple([items[name] for name in sorted(items)]), len(items), False, self.revision)


class _Atomically:
    """The loop around the runs, for either kind of handle."""

    def __init__(self, handle: AnyHandle, retries: object, request_id: object, timeout: float | None) -> None:
        self._handle = handle
        self._plain: AnyHandle = handle.with_codec(None)
        self._retries = None if retries is None else check.whole_number("retries", retries)
        self._seconds = handle._seconds(timeout)
        # ``held=1``: remembered only if the comparisons held.
        self._name = None if request_id is None else named(handle._view.space, request_id, ("atomically",), held=1)

    async def run(self, call: Callable[[_Run], Awaitable[T]]) -> T | None:
        """Run the function until what it has read is still so when it writes."""
        with covering(self._seconds):
            hub = await resolved(self._handle._hub(self._seconds))
            most = hub.limits.max_txn_operations
            if self._name is not None and await self._command(self._plain._view.was_done(self._name)):
                return None
            run, tried, wait = _Run(self._handle, most, 0, {}), 0, RECIPE_PAUSE_S / 10
            while True:
                try:
                    result = await call(run)
                except Exception:
                    if not run.stale:
                        raise
                else:
                    if not run.stale and not run.writes:
                        return result
                finally:
                    run.over = True
                again = _Run(self._handle, most, 0, {}) if run.stale else await self._commit(run, most)
                if again is None:
                    return result
                run, tried, wait = again, tried + 1, min(RECIPE_MAX_PAUSE_S, 2 * wait)
                if self._retries is not None and tried > self._retries:
                    raise TransactionConflict(f"what was read had changed, {tried} times: nothing was written")
                rest = _rng.uniform(0, wait)
                if rest >= time_left():
                    raise TransactionConflict(
                        f"what was read had changed, {tried} times in {self._seconds:g} s: nothing was written"
                    )
                await pause(self._handle, rest)

    async def _commit(self, run: _Run, most: int) -> _Run | None:
        """Write; ``None`` if that is done, otherwise the next run, which knows what this one has read."""
        transaction, again = run.transaction(True)
        try:
            result = await self._command(self._plain._view.named_txn(transaction, self._name))
        except RequestTooLarge:
            if not again:
                raise
            transaction, again = run.transaction(False)
            result = await self._command(self._plain._view.named_txn(transaction, self._name))
        if result.succeeded:
            return None
        if not again:
            return _Run(self._handle, most, 0, {})
        known = {name: self._found(found) for name, found in zip(again, result.responses, strict=True)}
        return _Run(self._handle, most, result.revision, known)

    async def _command(self, steps: Any) -> Any:
        return await resolved(self._plain._run(steps, None))

    def _found(self, found: object) -> KeyValue | None:
        """A pair as the user's handle returns it."""
        if not isinstance(found, KeyValue):
            return None
        lease, codec = found.lease, self._handle.codec
        return KeyValue(found.key, found.raw, found.create_revision, found.mod_revision, found.version, lease, codec)


class Transaction:
    """What the function of ``Client.atomically`` reads and writes through. It ends when the function returns."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def get(self, key: Key) -> KeyValue | None:
        """Read one key, as of the revision of this run, and after what this run has written.

        Returns:
            The pair, ``None`` if there is no such key. What this run has written has revisions and version 0.

        Raises:
            RequestTooLarge: this run has read and written as many keys as one transaction may compare.
        """
        return run_sync(self._run.get(key))

    def range(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        keys_only: bool = False,
    ) -> RangeResult:
        """Read a range, in key order, as :meth:`get` does; its keys must all fit into one transaction.

        Args:
            key, end, prefix: which keys, as for ``Client.range``.
            keys_only: leave out the values (they are ``b""``).

        Raises:
            RequestTooLarge: as for :meth:`get`; each key of the range counts.
        """
        return run_sync(self._run.range(key, end, prefix, keys_only))

    def put(self, key: Key, value: Any, *, lease: Any = None) -> None:
        """Note that a key is to be set, with a value and a lease as for ``Client.put`` (but not ``KEEP``)."""
        self._run.put(key, value, lease)

    def delete(self, key: Key) -> None:
        """Note that a key is to be deleted."""
        self._run.delete(key)


class AsyncTransaction:
    """As ``Transaction``, for asyncio: reads are awaited, writes are only noted and are not."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    async def get(self, key: Key) -> KeyValue | None:
        """See ``Transaction.get``."""
        return await self._run.get(key)

    async def range(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        keys_only: bool = False,
    ) -> RangeResult:
        """See ``Transaction.range``."""
        return await self._run.range(key, end, prefix, keys_only)

    def put(self, key: Key, value: Any, *, lease: Any = None) -> None:
        """See ``Transaction.put``."""
        self._run.put(key, value, lease)

    def delete(self, key: Key) -> None:
        """See ``Transaction.delete``."""
        self._run.delete(key)


def run_atomically(
    handle: KeyValueClient,
    function: Callable[[Transaction], T],
    retries: int | None,
    request_id: Key | None,
    timeout: float | None,
) -> T | None:
    """See ``Client.atomically``."""
    _check_function(function)

    async def call(run: _Run) -> T:
        result = function(Transaction(run))
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise InvalidArgument("a function of coroutines is for kv.aio.atomically")
        return result

    return run_sync(_Atomically(handle, retries, request_id, timeout).run(call))


async def run_atomically_async(
    handle: AsyncKeyValueClient,
    function: Callable[[AsyncTransaction], Awaitable[T] | T],
    retries: int | None,
    request_id: Key | None,
    timeout: float | None,
) -> T | None:
    """See ``Client.atomically``."""
    _check_function(function)

    async def call(run: _Run) -> T:
        result = function(AsyncTransaction(run))
        return await result if inspect.isawaitable(result) else result

    return await _Atomically(handle, retries, request_id, timeout).run(call)


def _check_function(function: object) -> None:
    if not callable(function):
        raise InvalidArgument(f"atomically takes a function, not {check.shown(function)}")
