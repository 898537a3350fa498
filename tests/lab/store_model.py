"""What the tests of the store share: a plain-dict model of the keys, and a hand that feeds a State."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from raykeeper.limits import Limits, Settings, encode_settings
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.schema.answers import (
    Answer,
    DeleteAnswer,
    Done,
    Failed,
    Item,
    LeaseGranted,
    PutAnswer,
    RangeAnswer,
    Reason,
    SessionOpened,
    TxnAnswer,
)
from raykeeper.schema.commands import ClientWrite, ClientWrites, Command, Configure, OpenSession
from raykeeper.schema.operations import (
    KEEP_LEASE,
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Relation,
    Sort,
    Target,
    Txn,
    TxnCompare,
)
from raykeeper.store.state.machine import State
from raykeeper.store.state.stored_state import FAMILIES

encode = msgspec.msgpack.Encoder().encode
FIRST = Configuration(voters=(1, 2, 3))


class Hand:
    """Feeds commands to a state machine, as a log would."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.term = 1
        self.sequence = 0
        opened = self.apply(OpenSession(b"hand", 60.0))
        assert isinstance(opened, SessionOpened)
        self.session = opened.session

    def entry(self, command: Command | None, offset: int = 0) -> Entry:
        data = b"" if command is None else encode(command)
        return Entry(self.state.applied_index + 1 + offset, self.term, EntryKind.NORMAL, data)

    def apply_all(self, commands: Sequence[Command | None]) -> list[tuple[Answer, ...]]:
        return self.state.apply([self.entry(command, offset) for offset, command in enumerate(commands)])

    def apply(self, command: Command) -> Answer:
        ((answer,),) = self.apply_all([command])
        return answer

    def writes(self, *operations: Operation, low: int | None = None) -> ClientWrites:
        """The next writes of the hand's session; all earlier ones are answered."""
        first = self.sequence + 1
        self.sequence += len(operations)
        writes = tuple(ClientWrite(first + n, operation) for n, operation in enumerate(operations))
        return ClientWrites(self.session, first if low is None else low, writes)

    def run(self, *operations: Operation) -> list[Answer]:
        (answers,) = self.apply_all([self.writes(*operations)])
        return list(answers)

    def do(self, operation: Operation) -> Answer:
        (answer,) = self.run(operation)
        return answer

    def configure(self, **limits: int) -> None:
        settings = Settings(limits=Limits(**limits))
        assert isinstance(self.apply(Configure(encode_settings(settings))), Done)

    def range(self, keys: KeyRange, *, items: int = 1000, size: int = 1 << 22, **options: Any) -> RangeAnswer | Failed:
        return self.state.range(Range(keys, **options), page_items=items, page_bytes=size)


def wipe(engine: Any) -> State:
    """Make a used database empty, which is quicker than making a new one."""
    writes: list[tuple[str, bytes, bytes | None]] = []
    for family in FAMILIES:
        writes += [(family, key, None) for key, _ in engine.iterate(family)]
    writes += [
        ("meta", b"format", encode(2)),
        ("meta", b"applied", encode((0, 0, 1, 0, 0, 0))),
        ("meta", b"configuration", encode(FIRST)),
        ("meta", b"settings", b""),
    ]
    engine.write(writes)
    return State(engine)


def plain(answer: Any) -> Any:
    """An answer without the words in it."""
    return Failed(answer.reason, answer.detail) if isinstance(answer, Failed) else answer


class Refused(Exception):
    def __init__(self, reason: Reason, detail: int = 0) -> None:
        self.failed = Failed(reason, detail)


def inside(key: bytes, keys: KeyRange) -> bool:
    if keys.end is None:
        return key == keys.key
    return key >= keys.key and (not keys.end or key < keys.end)


class Model:
    """The keys at every revision, each a dict of its own. Slow, and hard to get wrong."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.past: dict[int, dict[bytes, Item]] = {1: {}}
        self.leases: dict[int, float] = {}
        self.history: list[tuple[int, bytes, bool]] = []

    def do(self, operation: Operation) -> Answer:
        self.now = dict(self.past[self.revision])
        self.changes: list[tuple[int, bytes, bool]] = []
        leases = dict(self.leases)
        self.revoked = False
        try:
            answer = self._do(operation)
        except Refused as refused:
            self.leases = leases
            return refused.failed
        if self.changes:
            self.revision += 1
            self.past[self.revision] = self.now
            self.history += self.changes
        return answer

    @property
    def at(self) -> int:
        return self.revision + 1 if self.changes else self.revision

    def _do(self, operation: Operation) -> Any:
        if isinstance(operation, Put):
            return self._put(operation)
        if isinstance(operation, Delete):
            gone = [self.now[key] for key in sorted(self.now) if inside(key, operation.keys)]
            for item in gone:
                self._remove(item.key)
            return DeleteAnswer(self.at, len(gone), tuple(gone) if operation.prev else ())
        if isinstance(operation, Range):
            return self.range(operation)
        if isinstance(operation, Txn):
            self._check(operation)
            return self._txn(operation)
        if isinstance(operation, Compact):
            if operation.revision <= self.compacted:
                raise Refused(Reason.COMPACTED, self.compacted)
            if operation.revision > self.revision:
                raise Refused(Reason.FUTURE_REVISION, self.revision)
            self.compacted = operation.revision
            return Done(self.revision)
        if isinstance(operation, LeaseGrant):
            if operation.id in self.leases:
                raise Refused(Reason.LEASE_EXISTS, operation.id)
            self.leases[operation.id] = operation.ttl
            return LeaseGranted(operation.id, operation.ttl, self.at)
        assert isinstance(operation, LeaseRevoke)
        if operation.id not in self.leases:
            raise Refused(Reason.LEASE_NOT_FOUND, operation.id)
        self.end_lease(operation.id)
        return Done(self.at)

    def end_lease(self, id: int) -> None:
        for key in [key for key, item in self.now.items() if item.lease == id]:
            self._remove(key)
        del self.leases[id]

    def _remove(self, key: bytes) -> None:
        del self.now[key]
        self.changes.append((self.revision + 1, key, True))

    def _put(self, put: Put) -> PutAnswer:
        old = self.now.get(put.key)
        lease = put.lease
        if lease is KEEP_LEASE:
            if old is None:
                raise Refused(Reason.KEY_NOT_FOUND)
            lease = old.lease
        elif lease and lease not in self.leases:
            raise Refused(Reason.LEASE_NOT_FOUND, lease)
        value = put.value
        if value is None:
            if old is None:
                raise Refused(Reason.KEY_NOT_FOUND)
            value = old.value
        main = self.revision + 1
        created, version = (old.create_revision, old.version + 1) if old else (main, 1)
        self.now[put.key] = Item(put.key, value, created, main, version, lease)
        self.changes.append((main, put.key, False))
        return PutAnswer(main, old if put.prev else None)

    def range(self, r: Range) -> RangeAnswer:
        if r.revision > self.revision:
            raise Refused(Reason.FUTURE_REVISION, self.revision)
        if r.revision and r.revision < self.compacted:
            raise Refused(Reason.COMPACTED, self.compacted)
        content = self.past[r.revision] if r.revision else self.now
        found = [content[key] for key in sorted(content) if inside(key, r.keys)]
        order = {
            Sort.KEY: lambda item: item.key,
            Sort.VERSION: lambda item: item.version,
            Sort.CREATE_REVISION: lambda item: item.create_revision,
            Sort.MOD_REVISION: lambda item: item.mod_revision,
            Sort.VALUE: lambda item: item.value,
        }[r.sort]  # ties stay in key order
        chosen = sorted(found, key=order, reverse=r.descending)[: r.limit or None]
        if r.keys_only:
            chosen = [msgspec.structs.replace(item, value=b"") for item in chosen]
        more = not r.count_only and len(chosen) < len(found)
        return RangeAnswer(self.at, () if r.count_only else tuple(chosen), len(found), more)

    def read(self, r: Range) -> RangeAnswer | Failed:
        """A read from outside."""
        self.now, self.changes = self.past[self.revision], []
        try:
            return self.range(r)
        except Refused as refused:
            return refused.failed

    def _txn(self, txn: Txn) -> TxnAnswer:
        succeeded = all(self._holds(comparison) for comparison in txn.compare)
        branch = txn.success if succeeded else txn.failure
        responses = tuple(self._part(operation) for operation in branch)
        return TxnAnswer(self.at, succeeded, responses)

    def _part(self, operation: Any) -> Any:
        """One operation of a transaction: what revokes a lease comes last, and no key changes twice."""
        if isinstance(operation, LeaseRevoke):
            put_now = [
                item for item in self.now.values() if item.lease == operation.id and item.mod_revision > self.revision
            ]
            if operation.id in self.leases and put_now:
                raise Refused(Reason.INVALID)
            answer = self._do(operation)
            self.revoked = True
            return answer
        if self.revoked:
            raise Refused(Reason.INVALID)
        return self._txn(operation) if isinstance(operation, Txn) else self._do(operation)

    def _holds(self, comparison: TxnCompare) -> bool:
        def number(item: Item) -> Any:
            return {
                Target.VERSION: item.version,
                Target.CREATE_REVISION: item.create_revision,
                Target.MOD_REVISION: item.mod_revision,
                Target.LEASE: item.lease,
                Target.VALUE: item.value,
            }[comparison.target]

        found = [number(item) for key, item in self.past[self.revision].items() if inside(key, comparison.keys)]
        if not found and comparison.target is Target.VALUE:
            return False
        compare = {
            Relation.EQUAL: lambda a, b: a == b,
            Relation.NOT_EQUAL: lambda a, b: a != b,
            Relation.GREATER: lambda a, b: a > b,
            Relation.LESS: lambda a, b: a < b,
        }[comparison.relation]
        return all(compare(actual, comparison.operand) for actual in found or [0])

    def _check(self, txn: Txn) -> None:
        """No way through a transaction puts a key twice, or puts and deletes it: tried way by way."""
        for branch in (txn.success, txn.failure):
            for way in ways(branch):
                puts = [o.key for o in way if isinstance(o, Put)]
                if len(set(puts)) < len(puts):
                    raise Refused(Reason.INVALID)
                if any(inside(key, o.keys) for o in way if isinstance(o, Delete) for key in puts):
                    raise Refused(Reason.INVALID)


def ways(operations: Sequence[Any]) -> list[list[Any]]:
    """All lists of plain operations that may come of a list with transactions in it."""
    found: list[list[Any]] = [[]]
    for operation in operations:
        if isinstance(operation, Txn):
            inner = ways(operation.success) + ways(operation.failure)
            found = [way + more for way in found for more in inner]
        else:
            found = [[*way, operation] for way in found]
    return found
