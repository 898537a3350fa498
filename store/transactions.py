"""What clients ask of the keys, done on the batch: puts, deletes, reads, transactions, compaction, leases.

An operation has all of its effects or none. All that is changed by one operation, a transaction with all its branches
included, shares one main revision; a read inside a transaction sees what the transaction did before it. The rules of
transactions are etcd's: comparisons, nested ones included, are made before anything happens; no key may be put twice,
or put and deleted, by operations that can both run.

Every member does this work in its loop, so it has bounds, of one operation with all that is in it: what its
comparisons and ranges look at, and what it deletes. Work is counted as it is done, in what is the same on every member;
so what is over a bound ends there, without effect, and alike everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..limits import MAX_NESTED_TXNS, WORK_OF_CHECKS, WORK_OF_COPY, WORK_OF_DELETE, WORK_OF_WRITE, Limits
from .commands import (
    KEEP_LEASE,
    Answer,
    Compact,
    Comparison,
    Delete,
    DeleteAnswer,
    Done,
    Failed,
    Item,
    KeyRange,
    LeaseGrant,
    LeaseGranted,
    LeaseRevoke,
    Operation,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    RangePart,
    Reason,
    Relation,
    Target,
    Txn,
    TxnAnswer,
)
from .leases import FRESH_ID_BITS, Leases
from .mvcc import ITEM_OVERHEAD, RECORD, Mvcc, bounds
from .pending import Pending
from .ranges import WEIGHT, Budget, TooManyKeys, View, item_of, read_range, records

ANSWER_BYTES = 64
"""What an answer counts in bounds on bytes, beside the items in it."""


class Refuse(Exception):
    """Ends an operation without effect."""

    def __init__(self, reason: Reason, detail: int = 0, message: str = "") -> None:
        super().__init__(message)
        self.failed = Failed(reason, detail, message)


class Executor:
    """Runs operations on a batch, one after the other."""

    def __init__(self, pending: Pending, mvcc: Mvcc, leases: Leases, limits: Limits, compact_revision: int) -> None:
        self._pending = pending
        self._mvcc = mvcc
        self._leases = leases
        self.limits = limits
        self.compact_revision = compact_revision
        self.read_only = False
        """Whether nothing may be put or granted, because a member runs out of space (etcd: applierV3Capped)."""
        self.answer_bytes = 0
        """Size of the last answer, roughly; the same on every member."""
        self.work = 0
        """What was done since somebody set it to 0, counted in keys that are looked at. A kilobyte of values that is
        read or copied weighs as much."""
        self.written = 0
        """What is to be written of the command (see ``ENTRY_CHANGES``)."""
        self._next_id = 0
        """No lease that the command has made has this id, or a higher one."""
        self._room = 0
        self._budget = Budget(0)
        self._deletable = 0
        """Keys that the running operation may still delete."""
        self._copied = 0
        """Bytes of values that the running operation has left as they were."""
        self._revoked = False
        """Whether the running transaction has ended a lease: keys that went with it must not change again."""

    def begin(self) -> None:
        """The operations of another log entry follow."""
        self.written = self._next_id = 0

    def run(self, operation: Operation, room: int, fresh_id: int) -> Answer:
        """Run one operation, with all effects or, if it answers ``Failed``, none.

        Args:
            room: bytes that the answer may take; if it needs more the operation ends in FULL.
            fresh_id: a number that no other operation ever gets, for what needs a new id.
        """
        self.answer_bytes = ANSWER_BYTES
        self.work += WORK_OF_WRITE
        self._room = room
        if room < ANSWER_BYTES:
            return Failed(Reason.FULL)
        if type(operation) is Put and not operation.prev and operation.value is not None:
            # It checks everything before it does anything, so there is nothing to roll back.
            try:
                answer: Answer = self._put(operation)
            except Refuse as refuse:
                return refuse.failed
            self._mvcc.finish()
            return answer
        self._pending.begin()
        written, self._copied = self.written, 0
        self._revoked = False
        limits = self.limits
        most = limits.max_scanned_keys
        self._budget = budget = Budget(most, most)
        skipped = self._pending.skipped
        self._deletable = deletable = limits.max_deleted_keys
        try:
            answer = self._dispatch(operation, fresh_id)
        except Refuse as refuse:
            answer = refuse.failed
        except TooManyKeys:
            answer = Failed(
                Reason.TOO_LARGE,
                message=f"one request may look at {most} keys in all (limits.max_scanned_keys), its comparisons and "
                "ranges together: narrow them, or read outside the transaction",
            )
        self.work += most - budget.left + WORK_OF_DELETE * (deletable - self._deletable)
        self.work += self._pending.skipped - skipped + (self.answer_bytes >> WEIGHT)
        if type(answer) is Failed:
            self._mvcc.sub = 0
            self.answer_bytes = ANSWER_BYTES
            self.written = written
            self._pending.rollback()
        else:
            self.written += self.answer_bytes >> WEIGHT
            self._pending.keep()
            self._mvcc.finish()
        return answer

    def _dispatch(self, operation: Operation, fresh_id: int) -> Answer:
        if isinstance(operation, Put):
            return self._put(operation)
        if isinstance(operation, Delete):
            return self._delete(operation)
        if isinstance(operation, Range):
            return self._range(operation)
        if isinstance(operation, Txn):
            self._check(operation)
            return self._txn(operation, iter(self._path(operation)), fresh_id)
        if isinstance(operation, Compact):
            return self._compact(operation)
        if isinstance(operation, LeaseGrant):
            return self._grant(operation, fresh_id)
        return self._revoke(operation)

    def _check(self, txn: Txn) -> None:
        """Refuse a transaction that is never valid, whatever the keys are."""
        count = _count(txn)
        if count > self.limits.max_txn_operations:
            most = self.limits.max_txn_operations
            raise Refuse(Reason.TOO_LARGE, message=f"a transaction holds at most {most} operations")
        self.work += count * count >> WORK_OF_CHECKS
        _touched(txn.success)
        _touched(txn.failure)

    def _spend(self, size: int) -> None:
        self.answer_bytes += size
        if self.answer_bytes > self.limits.max_page_bytes:
            raise Refuse(Reason.TOO_LARGE, message=f"the answer is over {self.limits.max_page_bytes} bytes")
        if self.answer_bytes > self._room:
            raise Refuse(Reason.FULL)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _put(self, put: Put) -> PutAnswer:
        if self.read_only:
            raise Refuse(Reason.NO_SPACE)
        key, value, lease = put.key, put.value, put.lease
        old = self._pending.get("keys", key)
        old_lease = RECORD.unpack_from(old)[3] if old is not None else 0
        if lease == KEEP_LEASE:
            if old is None:
                raise Refuse(Reason.KEY_NOT_FOUND)
            lease = old_lease
        elif lease:
            found = self._leases.by_id.get(lease)
            if found is None:
                raise Refuse(Reason.LEASE_NOT_FOUND, lease)
            if lease != old_lease and found.keys >= self.limits.max_lease_keys:
                raise Refuse(Reason.TOO_LARGE, message=f"a lease holds at most {self.limits.max_lease_keys} keys")
        prev = None
        if value is None or put.prev:
            if old is not None:
                prev = item_of(self._pending, key, old)
            if value is None:
                if prev is None:
                    raise Refuse(Reason.KEY_NOT_FOUND)
                value = prev.value
                self._copy(len(value))
            if put.prev and prev is not None:
                self._spend(_item_bytes(prev))
        weight = len(value) >> WEIGHT
        if weight:
            self.work += WORK_OF_COPY * weight
        self.written += 1 + weight
        if lease != old_lease:
            if old_lease:
                self._leases.detach(old_lease, key)
            if lease:
                self._leases.attach(lease, key)
        return PutAnswer(self._mvcc.put(key, value, lease, old), prev if put.prev else None)

    def _copy(self, size: int) -> None:
        """A value that nobody has sent is written once more."""
        most = self.limits.max_page_bytes
        if self._copied and self._copied + size > most:
            raise Refuse(
                Reason.TOO_LARGE, message=f"a transaction leaves values of at most {most} bytes in all as they are"
            )
        self._copied += size

    def _delete(self, delete: Delete) -> DeleteAnswer:
        pending, mvcc = self._pending, self._mvcc
        found: list[tuple[bytes, bytes]] = []
        key = delete.keys.key
        if delete.keys.end is None:
            old = pending.get("keys", key)
            if old is not None:
                found.append((key, old))
        else:
            budget = Budget(self._deletable, self._budget.dead)
            try:
                found += records(View(pending, mvcc.now, _BATCH), delete.keys, budget)
            except TooManyKeys:
                raise (self._too_many_deletes() if budget.dead else TooManyKeys(key)) from None
            self._budget.dead = budget.dead
        if len(found) > self._deletable:
            raise self._too_many_deletes()
        prev = []
        if delete.prev:
            for key, old in found:
                item = item_of(pending, key, old)
                self._spend(_item_bytes(item))
                prev.append(item)
        for key, old in found:
            self._remove(key, old)
        return DeleteAnswer(mvcc.now, len(found), tuple(prev))

    def _too_many_deletes(self) -> Refuse:
        most = self.limits.max_deleted_keys
        return Refuse(
            Reason.TOO_LARGE,
            message=f"one request deletes at most {most} keys in all (limits.max_deleted_keys): delete them in parts",
        )

    def _remove(self, key: bytes, old: bytes) -> None:
        lease = RECORD.unpack_from(old)[3]
        if lease:
            self._leases.detach(lease, key)
        self._mvcc.delete(key, old)
        self._deletable -= 1
        self.written += 1

    def _range(self, request: Range) -> RangeAnswer:
        current = self._mvcc.revision
        revision = request.revision or self._mvcc.now
        if request.revision > current:
            raise Refuse(Reason.FUTURE_REVISION, current)
        if revision < self.compact_revision:
            raise Refuse(Reason.COMPACTED, self.compact_revision)
        limits = self.limits
        answer = read_range(
            View(self._pending, revision, None if request.revision else _BATCH),
            request,
            self._budget,
            max_items=limits.max_scanned_keys,
            max_bytes=limits.max_page_bytes,
        )
        if isinstance(answer, RangePart):
            raise TooManyKeys(answer.next)
        if answer.more and (not request.limit or len(answer.items) < request.limit):
            self.work += limits.max_page_bytes >> WEIGHT
            raise Refuse(
                Reason.TOO_LARGE, message=f"a range inside a transaction is over {limits.max_page_bytes} bytes"
            )
        self._spend(ANSWER_BYTES + sum(map(_item_bytes, answer.items)))
        return answer

    # -- transactions -------------------------------------------------------------------------------------------------

    def _path(self, txn: Txn) -> list[bool]:
        """Whether the comparisons hold, of the transaction and of those nested in the branch that will run, in order.

        All are made before anything happens, nested ones too (etcd: compareToPath).
        """
        path = [all(self._holds(comparison) for comparison in txn.compare)]
        for operation in txn.success if path[0] else txn.failure:
            if isinstance(operation, Txn):
                path += self._path(operation)
        return path

    def _txn(self, txn: Txn, path: Iterator[bool], fresh_id: int) -> TxnAnswer:
        succeeded = next(path)
        responses: list[PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer | LeaseGranted | Done] = []
        for operation in txn.success if succeeded else txn.failure:
            self._spend(ANSWER_BYTES)
            self.work += WORK_OF_WRITE
            if isinstance(operation, LeaseRevoke):
                responses.append(self._revoke(operation))
                self._revoked = True
            elif self._revoked:
                raise Refuse(Reason.INVALID, message="a transaction revokes leases after all else")
            elif isinstance(operation, Put):
                responses.append(self._put(operation))
            elif isinstance(operation, Delete):
                responses.append(self._delete(operation))
            elif isinstance(operation, Range):
                responses.append(self._range(operation))
            elif isinstance(operation, LeaseGrant):
                responses.append(self._grant(operation, fresh_id))
            else:
                responses.append(self._txn(operation, path, fresh_id))
        return TxnAnswer(self._mvcc.now, succeeded, tuple(responses))

    def _holds(self, comparison: Comparison) -> bool:
        any_key = False
        by_value = comparison.target is Target.VALUE
        budget, keys = self._budget, comparison.keys
        found: Iterable[tuple[bytes, bytes]]
        if budget.left <= 0:
            raise TooManyKeys(keys.key)
        if keys.end is None:
            budget.left -= 1
            only = self._pending.get("keys", keys.key)
            found = () if only is None else ((keys.key, only),)
        else:
            found = records(View(self._pending, self._mvcc.now, _BATCH), keys, budget)
            self.work += WORK_OF_WRITE
        for key, record in found:
            any_key = True
            actual: int | bytes
            if by_value:
                actual = item_of(self._pending, key, record).value
                budget.left -= len(actual) >> WEIGHT
            else:
                mod, create, version, lease, _ = RECORD.unpack_from(record)
                actual = _number(comparison.target, mod, create, version, lease)
            if not _related(actual, comparison.relation, comparison.operand):
                return False
        return any_key or (not by_value and _related(0, comparison.relation, comparison.operand))

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _compact(self, compact: Compact) -> Done:
        if compact.revision <= self.compact_revision:
            raise Refuse(Reason.COMPACTED, self.compact_revision)
        if compact.revision > self._mvcc.revision:
            raise Refuse(Reason.FUTURE_REVISION, self._mvcc.revision)
        self.compact_revision = compact.revision
        return Done(self._mvcc.revision)

    def _grant(self, grant: LeaseGrant, fresh_id: int) -> LeaseGranted:
        if not 0 < grant.ttl < float("inf") or not 0 <= grant.id < 1 << 63:
            raise Refuse(Reason.INVALID, message="a lease needs a positive TTL and an id of 63 bits")
        if self.read_only:
            raise Refuse(Reason.NO_SPACE)
        if grant.id in self._leases.by_id:
            raise Refuse(Reason.LEASE_EXISTS, grant.id)
        if len(self._leases.by_id) >= self.limits.max_leases:
            raise Refuse(Reason.FULL)
        id = grant.id
        if not id:
            id = max(fresh_id, self._next_id)
            while id in self._leases.by_id:  # somebody chose that number as his own
                id += 1
            self._next_id = id + 1
        self.written += 1
        self._leases.grant(id, grant.ttl, fresh_id >> FRESH_ID_BITS)
        return LeaseGranted(id, grant.ttl)

    def _revoke(self, revoke: LeaseRevoke) -> Done:
        lease = self._leases.by_id.get(revoke.id)
        if lease is None:
            raise Refuse(Reason.LEASE_NOT_FOUND, revoke.id)
        if lease.keys > self._deletable < self.limits.max_deleted_keys:  # the keys of one lease always go together
            raise self._too_many_deletes()
        self._end_lease(revoke.id)
        return Done(self._mvcc.now)

    def _end_lease(self, id: int) -> None:
        changing = self._mvcc.revision + 1
        for key in list(self._leases.keys(id)):
            old = self._pending.get("keys", key)
            if old is not None:
                if RECORD.unpack_from(old)[0] == changing:
                    raise Refuse(Reason.INVALID, message="a transaction revokes the lease of a key that it has put")
                self._remove(key, old)
        self._leases.remove(id)

    def end_lease(self, id: int) -> None:
        """End a lease that exists: its keys go, in one revision."""
        self.work += WORK_OF_WRITE + WORK_OF_DELETE * self._leases.by_id[id].keys
        self._end_lease(id)
        self._mvcc.finish()


class _Batch:
    """A batch is as new as whoever reads it: nobody else changes it meanwhile."""

    def shows(self, revision: int) -> bool:
        return True


_BATCH = _Batch()


def _item_bytes(item: Item) -> int:
    return len(item.key) + len(item.value) + ITEM_OVERHEAD


def _number(target: Target, mod: int, create: int, version: int, lease: int) -> int:
    if target is Target.VERSION:
        return version
    if target is Target.CREATE_REVISION:
        return create
    return mod if target is Target.MOD_REVISION else lease


def _related(actual: int | bytes, relation: Relation, operand: int | bytes) -> bool:
    if relation is Relation.EQUAL:
        return actual == operand
    if relation is Relation.NOT_EQUAL:
        return actual != operand
    if relation is Relation.GREATER:
        return actual > operand  # type: ignore[operator]
    return actual < operand  # type: ignore[operator]


# --- what is wrong with a transaction before it runs -----------------------------------------------------------------


def nests_too_deep(operation: Operation, depth: int = 0) -> bool:
    """Whether transactions lie deeper in one another than is ever valid."""
    if type(operation) is Txn:
        if depth > MAX_NESTED_TXNS:
            return True
        for branch in (operation.success, operation.failure):
            for each in branch:
                if type(each) is Txn and nests_too_deep(each, depth + 1):
                    return True
    return False


def _count(txn: Txn) -> int:
    """The operations and comparisons of a transaction, nested ones included."""
    count = len(txn.compare)
    for comparison in txn.compare:
        if isinstance(comparison.operand, bytes) is not (comparison.target is Target.VALUE):
            raise Refuse(Reason.INVALID, message="a value is compared with bytes, everything else with a number")
    for branch in (txn.success, txn.failure):
        for operation in branch:
            count += 1 + (_count(operation) if isinstance(operation, Txn) else 0)
    return count


def _touched(operations: Sequence[Operation]) -> tuple[set[bytes], list[KeyRange]]:
    """Keys that the operations may put, and ranges that they may delete, over all ways through nested transactions.

    Raises:
        Refuse: operations that can both run put the same key, or put and delete it.
    """
    puts: set[bytes] = set()
    deletes: list[KeyRange] = []
    for operation in operations:
        if isinstance(operation, Put):
            more_puts, more_deletes = {operation.key}, []
        elif isinstance(operation, Delete):
            more_puts, more_deletes = set(), [operation.keys]
        elif isinstance(operation, Txn):  # of its branches only one runs, so they may well touch the same keys
            more_puts, more_deletes = _touched(operation.success)
            other_puts, other_deletes = _touched(operation.failure)
            more_puts |= other_puts
            more_deletes += other_deletes
        else:
            continue
        if not puts.isdisjoint(more_puts):
            raise Refuse(Reason.INVALID, message="a transaction puts the same key twice")
        if (deletes and _any_inside(more_puts, deletes)) or (more_deletes and _any_inside(puts, more_deletes)):
            raise Refuse(Reason.INVALID, message="a transaction puts a key that it also deletes")
        puts |= more_puts
        deletes += more_deletes
    return puts, deletes


def _any_inside(keys: set[bytes], ranges: list[KeyRange]) -> bool:
    return any(start <= key and (end is None or key < end) for start, end in map(bounds, ranges) for key in keys)
