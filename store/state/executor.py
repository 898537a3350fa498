"""Executes the operations of clients on the write batch: puts, deletes, reads, transactions, compaction, leases.

An operation has all of its effects or none. Everything that one operation changes, a transaction with all its branches
included, shares one revision. A read inside a transaction sees what the transaction has done before it. The rules of
transactions are etcd's: all comparisons, nested ones included, are evaluated before anything changes, and no key may be
put twice, or put and deleted, by operations that can both run.

Every member does this work in its loop, so each operation has bounds on the keys that its comparisons and ranges look
at, and on the keys that it deletes. Work is counted in quantities that are the same on every member. So an operation
that exceeds a bound fails without effect, and does so on every member.

One operation may delete 100,000 keys, and look at a million. So operations run as generators that yield after each
slice of them, and the loop does other things in between; the operation goes on in the state in which it stopped, since
nothing else is applied meanwhile (``State.apply_some``).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import cast

from ...limits import (
    DELETE_SLICE_KEYS,
    MAX_IDENTITY_LETTERS,
    SCAN_SLICE,
    WORK_OF_CHECKS_SHIFT,
    WORK_OF_COPY,
    WORK_OF_DELETE,
    WORK_OF_WRITE,
    Limits,
)
from ...schema.answers import (
    Answer,
    DeleteAnswer,
    Done,
    Failed,
    Item,
    LeaseGranted,
    Names,
    Permissions,
    PutAnswer,
    RangeAnswer,
    RangePart,
    Reason,
    TxnAnswer,
)
from ...schema.auth_operations import PROBLEM_TEXTS, AuthOperation
from ...schema.operations import (
    KEEP_LEASE,
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Txn,
    TxnCompare,
)
from ...schema.txn_size import txn_total
from ...telemetry import TTL_BUCKETS, Histogram
from .auth import Auth, AuthRefused
from .auth_table import Rights
from .lease_table import FRESH_ID_BITS, LeaseTable
from .mvcc import ITEM_OVERHEAD, RECORD, Mvcc, lease_of, mod_revision
from .operation_rules import (
    VALUE,
    Rejected,
    check_operands,
    compared_number,
    is_well_formed,
    puts_and_deletes,
    relation_holds,
)
from .permission_check import leases_of, may_run
from .ranges import WEIGHT_SHIFT, Budget, RevisionView, TooManyKeys, item_of, read_in_slices, records
from .write_batch import WriteBatch

ANSWER_OVERHEAD_BYTES = 64
"""What an answer counts in bounds on bytes, on top of its items."""


class Executor:
    """Runs operations on a write batch, one after the other."""

    def __init__(
        self, batch: WriteBatch, mvcc: Mvcc, leases: LeaseTable, auth: Auth, limits: Limits, compact_revision: int
    ) -> None:
        self._batch = batch
        self._mvcc = mvcc
        self._leases = leases
        self._auth = auth
        self.rights: Rights | None = None
        """Of the user whose command runs; ``None`` while no user is needed."""
        self.limits = limits
        self.compact_revision = compact_revision
        self.read_only = False
        """Whether puts and grants are refused because a member is running out of space (etcd: applierV3Capped)."""
        self.answer_bytes = 0
        """Approximate size of the last answer in bytes; the same on every member."""
        self.work = 0
        """Work done since it was last set to 0, in keys looked at. A kilobyte of values read or copied counts as one
        key."""
        self.written = 0
        """Changes that the running command will write (see ``ENTRY_CHANGES``)."""
        self._session = 0
        """Whose writes are run."""
        self._next_id = 0
        """Higher than the id of any lease that the running command has granted."""
        self._answer_room = 0
        self._budget = Budget(0)
        self._deletable = 0
        """The number of keys that the running operation may still delete."""
        self._copied = 0
        """Bytes of unchanged values that the running operation has written again."""
        self._revoked = False
        """Whether the running transaction has revoked a lease: the keys deleted with it must not change again."""
        self.txns = self.granted = self.revoked = self.expired = 0
        """Transactions so far, and leases that were granted, revoked, and ended by themselves; for metrics."""
        self.lease_ttls = Histogram(TTL_BUCKETS)
        """TTLs of leases that were granted."""

    def begin_entry(self, session: int) -> None:
        """The operations of a new log entry follow: writes of this session."""
        self._session = session
        self.written = self._next_id = 0

    def run_plain(self, operation: Operation, room: int) -> Answer | None:
        """The answer of :meth:`run` for the common cases: a plain put, and a transaction that compares single keys and
        puts plain values. ``None``, with nothing done, for all else: for what is refused, too, and for the writes of a
        user, whose rights :meth:`run` looks up."""
        if self.rights is not None:
            return None
        if type(operation) is Txn:
            return self._run_plain_txn(operation, room)
        if type(operation) is not Put or not _is_plain(operation) or room < ANSWER_OVERHEAD_BYTES or self.read_only:
            return None
        self.answer_bytes = ANSWER_OVERHEAD_BYTES
        self.work += WORK_OF_WRITE
        answer = self._put_plainly(operation)
        self._mvcc.finish()
        return answer

    def _run_plain_txn(self, txn: Txn, room: int) -> TxnAnswer | None:
        """A transaction of which nothing has to be rolled back: it is known to succeed before anything changes."""
        compare, success, failure = txn.compare, _plain_puts(txn.success), _plain_puts(txn.failure)
        if success is None or failure is None:
            return None
        longest = max(len(compare), len(success), len(failure))
        limits = self.limits
        most_bytes = ANSWER_OVERHEAD_BYTES * (1 + longest)
        if longest > limits.max_txn_operations or most_bytes > min(room, limits.max_page_bytes) or self.read_only:
            return None
        for comparison in compare:
            if comparison.keys.end is not None or not is_well_formed(comparison):
                return None
        self._budget = budget = Budget(limits.max_scanned_keys)
        looked_at = budget.left
        try:
            succeeded = all(map(self._key_compares, compare))
        except TooManyKeys:
            return None
        self.txns += 1
        puts = success if succeeded else failure
        responses = tuple(map(self._put_plainly, puts))
        total = len(compare) + len(success) + len(failure)
        answer = TxnAnswer(self._mvcc.now, succeeded, responses)
        self._mvcc.finish()
        self.answer_bytes = size = ANSWER_OVERHEAD_BYTES * (1 + len(puts))
        self.written += size >> WEIGHT_SHIFT
        self.work += WORK_OF_WRITE * (1 + len(puts)) + (total * total >> WORK_OF_CHECKS_SHIFT)
        self.work += looked_at - budget.left + (size >> WEIGHT_SHIFT)
        return answer

    def run(self, operation: Operation, room: int, fresh_id: int) -> Generator[None, None, Answer]:
        """Run one operation: with all its effects or, if it answers ``Failed``, with none. Yields after each slice of
        keys that it deletes or looks at.

        Changes since the savepoint are rolled back on failure, but the work counts: every member did it.

        Args:
            room: bytes that the answer may take; if it needs more, the operation fails with FULL.
            fresh_id: a number that no other operation ever gets, for new ids.
        """
        self.answer_bytes = ANSWER_OVERHEAD_BYTES
        self.work += WORK_OF_WRITE
        if room < ANSWER_OVERHEAD_BYTES:
            return Failed(Reason.FULL)
        if self.rights is not None and not (yield from self.is_allowed(operation)):
            return Failed(Reason.DENIED)
        self._answer_room = room
        self._batch.set_savepoint()
        written, self._copied = self.written, 0
        self._revoked = False
        limits = self.limits
        most = limits.max_scanned_keys
        self._budget = budget = Budget(most, max(most, limits.max_deleted_keys))
        skipped = self._batch.skipped_deletes
        self._deletable = deletable = limits.max_deleted_keys
        try:
            answer: Answer = yield from self._dispatch(operation, fresh_id)
        except Rejected as rejected:
            answer = rejected.failed
        except TooManyKeys:
            answer = Failed(
                Reason.TOO_LARGE,
                message=f"one request may look at {most} keys in all (limits.max_scanned_keys), its comparisons and "
                "ranges together: narrow them, or read outside the transaction",
            )
        self.work += most - budget.left + WORK_OF_DELETE * (deletable - self._deletable)
        self.work += self._batch.skipped_deletes - skipped + (self.answer_bytes >> WEIGHT_SHIFT)
        if type(answer) is Failed:
            self._mvcc.sub = 0
            self.answer_bytes = ANSWER_OVERHEAD_BYTES
            self.written = written
            yield from self._batch.rollback_to_savepoint()
        else:
            self.written += self.answer_bytes >> WEIGHT_SHIFT
            self._batch.release_savepoint()
            self._mvcc.finish()
        return answer

    def _dispatch(self, operation: Operation, fresh_id: int) -> Generator[None, None, Answer]:
        """The most frequent kinds first. A transaction evaluates all its comparisons before anything changes."""
        if isinstance(operation, Put):
            return self._put(operation)
        if isinstance(operation, Delete):
            return (yield from self._delete(operation))
        if isinstance(operation, Range):
            return (yield from self._range(operation))
        if isinstance(operation, Txn):
            self.txns += 1
            self._check_txn(operation)
            path = yield from self._evaluate_compares(operation)
            return (yield from self._txn(operation, iter(path), fresh_id))
        if isinstance(operation, Compact):
            return self._compact(operation)
        if isinstance(operation, LeaseGrant):
            return self._grant(operation, fresh_id)
        if isinstance(operation, LeaseRevoke):
            return (yield from self._revoke(operation))
        return self._run_auth(operation, fresh_id)

    def is_allowed(self, operation: Operation) -> Generator[None, None, bool]:
        """Whether the user whose command runs may have an operation done; yields after each slice of keys of leases
        that it looks at."""
        rights = self.rights
        if rights is None or rights.is_root:
            return True
        if not may_run(operation, rights):
            return False
        for lease in dict.fromkeys(leases_of(operation)):
            if lease not in self._leases.by_id:
                continue
            keys = self._leases.keys(lease)
            while more := [*islice(keys, DELETE_SLICE_KEYS)]:
                self.work += len(more)
                if not all(rights.may_write(KeyRange(key)) for key in more):
                    return False
                if len(more) == DELETE_SLICE_KEYS:
                    yield
        return True

    def _run_auth(self, operation: AuthOperation, fresh_id: int) -> Answer:
        """An operation on users and roles: it may look at all of them."""
        table = self._auth.table
        self.work += len(table.users) + len(table.roles)
        try:
            answer = self._auth.run(operation, self._mvcc.revision, fresh_id)
        except AuthRefused as refused:
            raise Rejected(Reason.AUTH, refused.problem, PROBLEM_TEXTS[refused.problem]) from None
        if isinstance(answer, Names):
            self._add_answer_bytes(sum([len(name) for name in answer.names]))
        elif isinstance(answer, Permissions):
            self._add_answer_bytes(
                sum([len(each.names.key) + len(each.names.end or b"") for each in answer.permissions])
            )
        else:
            self.written += 1
        return answer

    def _check_txn(self, txn: Txn) -> None:
        """Refuse a transaction that is invalid whatever the keys hold."""
        most = self.limits.max_txn_operations
        count = txn_total(txn, most)
        if count is None:
            raise Rejected(Reason.TOO_LARGE, message=f"a transaction holds at most {most} operations")
        check_operands(txn)
        self.work += count * count >> WORK_OF_CHECKS_SHIFT
        puts_and_deletes(txn.success)
        puts_and_deletes(txn.failure)

    def _add_answer_bytes(self, size: int) -> None:
        self.answer_bytes += size
        if self.answer_bytes > self.limits.max_page_bytes:
            raise Rejected(Reason.TOO_LARGE, message=f"the answer is over {self.limits.max_page_bytes} bytes")
        if self.answer_bytes > self._answer_room:
            raise Rejected(Reason.FULL)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _put_plainly(self, put: Put) -> PutAnswer:
        """Write one key, and nothing else: the common case, and nothing to refuse or roll back. To the same effect as
        ``_put``."""
        key, value = put.key, put.value
        assert value is not None
        old = self._batch.get("keys", key)
        if old is not None and (lease := lease_of(old)):
            self._leases.detach(lease, key)
        weight = len(value) >> WEIGHT_SHIFT
        if weight:
            self.work += WORK_OF_COPY * weight
            self.written += weight
        self.written += 1
        return PutAnswer(self._mvcc.put(key, value, 0, old))

    def _put(self, put: Put) -> PutAnswer:
        """Write one key."""
        if self.read_only:
            raise Rejected(Reason.NO_SPACE)
        key, value, lease = put.key, put.value, put.lease
        old = self._batch.get("keys", key)
        old_lease = lease_of(old) if old is not None else 0
        if lease is KEEP_LEASE:
            if old is None:
                raise Rejected(Reason.KEY_NOT_FOUND)
            lease = old_lease
        elif lease:
            found = self._leases.by_id.get(lease)
            if found is None:
                raise Rejected(Reason.LEASE_NOT_FOUND, lease)
            if lease != old_lease and found.keys >= self.limits.max_lease_keys:
                raise Rejected(Reason.TOO_LARGE, message=f"a lease holds at most {self.limits.max_lease_keys} keys")
            if found.owner != self._session:
                self._leases.use(lease, self._session)
        prev = None
        if value is None or put.prev:
            if old is not None:
                prev = item_of(self._batch, key, old)
            if value is None:
                if prev is None:
                    raise Rejected(Reason.KEY_NOT_FOUND)
                value = prev.value
                self._count_copied(len(value))
            if put.prev and prev is not None:
                self._add_answer_bytes(_item_bytes(prev))
        weight = len(value) >> WEIGHT_SHIFT
        if weight:
            self.work += WORK_OF_COPY * weight
        self.written += 1 + weight
        if lease != old_lease:
            if old_lease:
                self._leases.detach(old_lease, key)
            if lease:
                self._leases.attach(lease, key)
        return PutAnswer(self._mvcc.put(key, value, lease, old), prev if put.prev else None)

    def _count_copied(self, size: int) -> None:
        """Count a value that a put leaves unchanged (``Put.value`` is ``None``): it is written again although no client
        has sent it, so the limits on requests do not bound it."""
        most = self.limits.max_page_bytes
        if self._copied and self._copied + size > most:
            raise Rejected(
                Reason.TOO_LARGE, message=f"a transaction leaves values of at most {most} bytes in all as they are"
            )
        self._copied += size

    def _delete(self, delete: Delete) -> Generator[None, None, DeleteAnswer]:
        """Delete a key or a range. The keys are found before any is deleted: the batch must not change while it is
        iterated, and an operation over its bound must fail before it has done the work."""
        batch, mvcc = self._batch, self._mvcc
        found: list[tuple[bytes, bytes]] = []
        key = delete.keys.key
        if delete.keys.end is None:
            old = batch.get("keys", key)
            if old is not None:
                found.append((key, old))
        else:
            budget = Budget(self._deletable, self._budget.deleted)
            try:
                pairs = records(RevisionView(batch, mvcc.now, _BATCH), delete.keys, budget)
                while more := [*islice(pairs, DELETE_SLICE_KEYS)]:
                    found += more
                    if len(more) == DELETE_SLICE_KEYS:
                        yield
            except TooManyKeys:
                raise (self._too_many_deletes() if budget.deleted else TooManyKeys(key)) from None
            self._budget.deleted = budget.deleted
        if len(found) > self._deletable:
            raise self._too_many_deletes()
        prev = []
        if delete.prev:
            for key, old in found:
                item = item_of(batch, key, old)
                self._add_answer_bytes(_item_bytes(item))
                prev.append(item)
                if not len(prev) % DELETE_SLICE_KEYS:
                    yield
        count = len(found)
        found.reverse()
        while found:  # which is emptied on the way: the records may take much memory
            self._remove(*found.pop())
            if not len(found) % DELETE_SLICE_KEYS and found:
                yield
        return DeleteAnswer(mvcc.now, count, tuple(prev))

    def _too_many_deletes(self) -> Rejected:
        most = self.limits.max_deleted_keys
        return Rejected(
            Reason.TOO_LARGE,
            message=f"one request deletes at most {most} keys in all (limits.max_deleted_keys): delete them in parts",
        )

    def _remove(self, key: bytes, old: bytes) -> None:
        lease = lease_of(old)
        if lease:
            self._leases.detach(lease, key)
        self._mvcc.delete(key, old)
        self._deletable -= 1
        self.written += 1

    def _range(self, request: Range) -> Generator[None, None, RangeAnswer]:
        """A read inside a transaction: all of the range or an error, because a transaction cannot be continued with
        another page."""
        current = self._mvcc.revision
        revision = request.revision or self._mvcc.now
        if request.revision > current:
            raise Rejected(Reason.FUTURE_REVISION, current)
        if revision < self.compact_revision:
            raise Rejected(Reason.COMPACTED, self.compact_revision)
        limits = self.limits
        answer = yield from read_in_slices(
            RevisionView(self._batch, revision, None if request.revision else _BATCH),
            request,
            self._budget,
            newest=self._mvcc.now,
            max_items=limits.max_scanned_keys,
            max_bytes=limits.max_page_bytes,
        )
        if isinstance(answer, RangePart):
            raise TooManyKeys(answer.next)
        if answer.more and (not request.limit or len(answer.items) < request.limit):
            self.work += limits.max_page_bytes >> WEIGHT_SHIFT
            raise Rejected(
                Reason.TOO_LARGE, message=f"a range inside a transaction is over {limits.max_page_bytes} bytes"
            )
        self._add_answer_bytes(ANSWER_OVERHEAD_BYTES + sum(map(_item_bytes, answer.items)))
        return answer

    # -- transactions -------------------------------------------------------------------------------------------------

    def _evaluate_compares(self, txn: Txn) -> Generator[None, None, list[bool]]:
        """Whether the comparisons hold: of this transaction, and of those nested in the branch that will run, in order.

        All of them are evaluated before anything changes (etcd: compareToPath).
        """
        holds = True
        for comparison in txn.compare:
            if comparison.keys.end is None:
                holds = self._key_compares(comparison)
            else:
                holds = yield from self._range_compares(comparison)
            if not holds:
                break
        path = [holds]
        for operation in txn.success if holds else txn.failure:
            if isinstance(operation, Txn):
                path += yield from self._evaluate_compares(operation)
        return path

    def _txn(self, txn: Txn, path: Iterator[bool], fresh_id: int) -> Generator[None, None, TxnAnswer]:
        """Run the branch that ``path``, the outcomes of all comparisons in order, selects. Revokes come last: a lease
        takes its keys along, and a key must not change twice in one revision."""
        succeeded = next(path)
        responses: list[PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer | LeaseGranted | Done] = []
        for operation in txn.success if succeeded else txn.failure:
            self._add_answer_bytes(ANSWER_OVERHEAD_BYTES)
            self.work += WORK_OF_WRITE
            if self._revoked and not isinstance(operation, LeaseRevoke):
                raise Rejected(Reason.INVALID, message="a transaction revokes leases after all else")
            if isinstance(operation, Put):
                responses.append(self._put(operation))
            elif isinstance(operation, LeaseRevoke):
                responses.append((yield from self._revoke(operation)))
                self._revoked = True
            elif isinstance(operation, Delete):
                responses.append((yield from self._delete(operation)))
            elif isinstance(operation, Range):
                responses.append((yield from self._range(operation)))
            elif isinstance(operation, LeaseGrant):
                responses.append(self._grant(operation, fresh_id))
            else:
                responses.append((yield from self._txn(operation, path, fresh_id)))
        return TxnAnswer(self._mvcc.now, succeeded, tuple(responses))

    def _key_compares(self, comparison: TxnCompare) -> bool:
        """Evaluate a comparison of one key. If it does not exist, numbers are compared with 0, and a comparison of
        values is false (etcd: applyCompare)."""
        key, budget = comparison.keys.key, self._budget
        if budget.left <= 0:
            raise TooManyKeys(key)
        budget.left -= 1
        record = self._batch.get("keys", key)
        return self._nothing_compares(comparison) if record is None else self._compares(comparison, key, record)

    def _range_compares(self, comparison: TxnCompare) -> Generator[None, None, bool]:
        """Evaluate a comparison of a range: it holds if it holds for every key there. Without any, as for one key that
        does not exist (etcd: applyCompare)."""
        any_key = False
        budget, keys = self._budget, comparison.keys
        if budget.left <= 0:
            raise TooManyKeys(keys.key)
        self.work += WORK_OF_WRITE
        pause_at = budget.left - SCAN_SLICE
        for key, record in records(RevisionView(self._batch, self._mvcc.now, _BATCH), keys, budget):
            any_key = True
            if budget.left <= pause_at:
                pause_at = budget.left - SCAN_SLICE
                yield
            if not self._compares(comparison, key, record):
                return False
        return any_key or self._nothing_compares(comparison)

    def _compares(self, comparison: TxnCompare, key: bytes, record: bytes) -> bool:
        """Whether a comparison holds for a key that exists."""
        actual: int | bytes
        if comparison.target is VALUE:
            actual = item_of(self._batch, key, record).value
            self._budget.left -= len(actual) >> WEIGHT_SHIFT
        else:
            create, version, lease, _, mod = RECORD.unpack_from(record)
            actual = compared_number(comparison.target, mod, create, version, lease)
        return relation_holds(actual, comparison.relation, comparison.operand)

    @staticmethod
    def _nothing_compares(comparison: TxnCompare) -> bool:
        """Whether a comparison holds where there is no key."""
        return comparison.target is not VALUE and relation_holds(0, comparison.relation, comparison.operand)

    # -- compaction and leases ----------------------------------------------------------------------------------------

    def _compact(self, compact: Compact) -> Done:
        if compact.revision <= self.compact_revision:
            raise Rejected(Reason.COMPACTED, self.compact_revision)
        if compact.revision > self._mvcc.revision:
            raise Rejected(Reason.FUTURE_REVISION, self._mvcc.revision)
        self.compact_revision = compact.revision
        return Done(self._mvcc.revision)

    def _grant(self, grant: LeaseGrant, fresh_id: int) -> LeaseGranted:
        """Grant a lease. An id that the client has not chosen comes from the entry's index and position, so that every
        member chooses the same one."""
        if not 0 < grant.ttl < float("inf"):
            raise Rejected(Reason.INVALID, message="a lease needs a positive TTL")
        if self.read_only:
            raise Rejected(Reason.NO_SPACE)
        if grant.id in self._leases.by_id:
            raise Rejected(Reason.LEASE_EXISTS, grant.id)
        if len(self._leases.by_id) >= self.limits.max_leases:
            raise Rejected(Reason.FULL)
        id = grant.id
        if not id:
            id = max(fresh_id, self._next_id)
            while id in self._leases.by_id:  # a client has chosen that id
                id += 1
            self._next_id = id + 1
        self.written += 1
        self._leases.grant(
            id,
            grant.ttl,
            fresh_id >> FRESH_ID_BITS,
            session=self._session,
            at=grant.at,
            owner=self._session if grant.owned else 0,
            task=grant.task[:MAX_IDENTITY_LETTERS],
        )
        self.granted += 1
        self.lease_ttls.observe(grant.ttl)
        return LeaseGranted(id, grant.ttl, self._mvcc.now)

    def _revoke(self, revoke: LeaseRevoke) -> Generator[None, None, Done]:
        lease = self._leases.by_id.get(revoke.id)
        if lease is None:
            raise Rejected(Reason.LEASE_NOT_FOUND, revoke.id)
        # A revoke deletes all keys of its lease or none; one that comes first may exceed the bound, or it never could.
        if lease.keys > self._deletable < self.limits.max_deleted_keys:
            raise self._too_many_deletes()
        yield from self._end_lease(revoke.id)
        self.revoked += 1
        return Done(self._mvcc.now)

    def _end_lease(self, id: int) -> Generator[None, None, None]:
        changing = self._mvcc.revision + 1
        attached, keys = self._leases.keys(id), list[bytes]()
        while more := [*islice(attached, DELETE_SLICE_KEYS)]:
            keys += more
            if len(more) == DELETE_SLICE_KEYS:
                yield
        for count, key in enumerate(keys, start=1):
            old = self._batch.get("keys", key)
            if old is not None:
                if mod_revision(old) == changing:
                    raise Rejected(Reason.INVALID, message="a transaction revokes the lease of a key that it has put")
                self._remove(key, old)
            if not count % DELETE_SLICE_KEYS:
                yield
        self._leases.remove(id)

    def end_lease(self, id: int) -> Generator[None, None, None]:
        """End an existing lease and delete its keys, in one revision; yields after each slice of keys."""
        work = WORK_OF_WRITE + WORK_OF_DELETE * self._leases.by_id[id].keys
        yield from self._end_lease(id)
        self.expired += 1
        self.work += work
        self._mvcc.finish()


class _TxnBatch:
    """For reads inside a transaction: the batch always shows the newest revision, since only the reader changes it."""

    def shows(self, revision: int) -> bool:
        return True


_BATCH = _TxnBatch()


def _is_plain(put: Put) -> bool:
    """Whether a put only sets a value."""
    return put.value is not None and put.lease == 0 and not put.prev


def _plain_puts(branch: Sequence[Operation]) -> Sequence[Put] | None:
    """The operations of a transaction's branch, if they only set the values of different keys."""
    for operation in branch:
        if type(operation) is not Put or not _is_plain(operation):
            return None
    puts = cast("Sequence[Put]", branch)
    return None if len(puts) > 1 and len({put.key for put in puts}) < len(puts) else puts


def _item_bytes(item: Item) -> int:
    return len(item.key) + len(item.value) + ITEM_OVERHEAD
