"""Work has bounds, which cut it off: of one request with all that is in it, and of one turn. It is counted in what is
the same on every member, and what died costs nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.store_model import FIRST, Hand, plain
from raykeeper.limits import (
    APPLY_WORK,
    DELETES_IN_MEMORY,
    ENTRY_CHANGES,
    KNOWN_LEASE_KEYS,
    PAST_CHANGES,
    Limits,
    Settings,
    encode_settings,
)
from raykeeper.schema.answers import (
    Answer,
    DeleteAnswer,
    Done,
    Failed,
    LeaseGranted,
    PutAnswer,
    RangeAnswer,
    RangePart,
    Reason,
    SessionOpened,
    TxnAnswer,
)
from raykeeper.schema.commands import (
    ClientWrite,
    ClientWrites,
    Configure,
    ExpireSessions,
    Expiry,
    OpenSession,
    PassTime,
    RequestId,
)
from raykeeper.schema.operations import (
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
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state import executor, ranges
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

KEYS = KeyRange(b"k", b"l")
COUNT = Range(KEYS, count_only=True)
ALIVE = TxnCompare(KEYS, Target.VERSION, Relation.GREATER, 0)
BY_VALUE = TxnCompare(KEYS, Target.VALUE, Relation.NOT_EQUAL, b"")


class Looks:
    """Counts the records that are read in order, by family."""

    def __init__(self, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: Counter[str] = Counter()
        original = state._engine.iterate

        def iterate(family: str, *arguments: Any, **options: Any) -> Iterator[tuple[bytes, bytes]]:
            pairs = original(family, *arguments, **options)

            def counted() -> Iterator[tuple[bytes, bytes]]:
                for pair in pairs:
                    self.read[family] += 1
                    yield pair

            return counted()

        monkeypatch.setattr(state._engine, "iterate", iterate)

    def total(self) -> int:
        """Since this was last asked."""
        read, self.read = self.read, Counter()
        return read.total()


def sim_hand() -> Hand:
    return Hand(State.create(SimDisk(), "s", FIRST))


def filled(keys: int = 300, **limits: int) -> Hand:
    hand = sim_hand()
    hand.configure(**{"max_scanned_keys": 1000, "max_deleted_keys": 400, **limits})
    for lease in (1, 2):
        hand.do(LeaseGrant(lease, 60.0))
    hand.run(*(Put(b"k%04d" % n, b"v") for n in range(keys)))
    hand.run(*(Put(b"leased%d/%04d" % (lease, n), b"v", lease) for lease in (1, 2) for n in range(300)))
    hand.run(*(Put(b"long%02d" % n, bytes(100_000)) for n in range(30)))
    return hand


LONG = KeyRange(b"long", b"lonh")

HEAVY: list[Operation] = [
    Txn((), (COUNT,) * 4),
    Txn((), (COUNT,) * 100),
    Txn((ALIVE,) * 100),
    Txn((), (Txn((), (COUNT, COUNT)), Txn((ALIVE, ALIVE)))),
    Txn((ALIVE, ALIVE), (COUNT, COUNT)),
    Txn((ALIVE,), (Range(KEYS, sort=Sort.VERSION, keys_only=True),) * 3),
    Txn((BY_VALUE,) * 4),
    Txn((TxnCompare(LONG, Target.VALUE, Relation.NOT_EQUAL, b""),)),
    Txn((), (Range(LONG, sort=Sort.VALUE, keys_only=True),)),
    Txn((), (Delete(KeyRange(b"k", b"k02")), Delete(KeyRange(b"k02", b"leased2")))),
    Txn((), (Delete(KeyRange(b"leased1", b"leased2")), LeaseRevoke(2))),
    Txn((), (LeaseRevoke(1), LeaseRevoke(2))),
    Txn((), (Txn((), (LeaseRevoke(1),)), LeaseRevoke(2))),
    Txn((TxnCompare(KeyRange(b"long00"), Target.VALUE, Relation.NOT_EQUAL, b""),) * 100),
    Txn((), (Range(KeyRange(b"x", b"y"), revision=600),) * 100),
    Txn((), (Range(KEYS, revision=3, count_only=True),)),
]


@pytest.mark.parametrize("operation", HEAVY, ids=[str(n) for n in range(len(HEAVY))])
def test_the_work_of_a_whole_request_is_cut_off_at_its_bound(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = filled()
    if operation == HEAVY[-1]:
        hand.run(*(Put(b"other", b"v") for _ in range(500)))
        hand.run(*(Put(b"other", b"v") for _ in range(500)))
    before, revision = hand.state._mvcc.changed[:], hand.state.revision
    looks = Looks(hand.state, monkeypatch)
    answer = hand.do(operation)
    assert plain(answer) == Failed(Reason.TOO_LARGE)
    assert isinstance(answer, Failed)
    assert "limits.max_" in answer.message
    assert looks.total() <= 1000 + 400 + 100
    assert (hand.state.revision, before) == (revision, [])
    assert isinstance(hand.do(Put(b"k0000", b"w")), PutAnswer)


NONE = TxnCompare(KEYS, Target.VERSION, Relation.EQUAL, 0)

AFTER_DEATH: list[tuple[Operation, ...]] = [
    (Txn((), (Delete(KEYS), *(COUNT,) * 100)),),
    (Txn((), (Delete(KEYS), *(Delete(KEYS),) * 100)),),
    (Txn((), (Delete(KEYS), *(Range(KEYS, limit=1, descending=True, uncounted=True),) * 100)),),
    (Txn((), (Delete(KEYS), Txn((), (COUNT,) * 50), Txn((), (Delete(KEYS, prev=True),) * 50))),),
    (Delete(KEYS), Txn((NONE,) * 100)),
    (Delete(KEYS), Txn((), (Txn((NONE,) * 50), COUNT, COUNT))),
    (Delete(KEYS), Put(b"k9", b"v"), Txn((), (Delete(KEYS), Put(b"x", b"v"), *(COUNT,) * 100))),
]


@pytest.mark.parametrize("operations", AFTER_DEATH, ids=[str(n) for n in range(len(AFTER_DEATH))])
def test_looks_at_what_the_same_command_has_deleted_are_cut_off(
    operations: tuple[Operation, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the command is written, the database still holds those keys: each look passes by all of them."""
    hand = filled()
    looks = Looks(hand.state, monkeypatch)
    answer = hand.run(*operations)[-1]
    assert plain(answer) == Failed(Reason.TOO_LARGE)
    assert looks.total() <= 300 + 1000 + 400
    few = Txn((NONE, NONE), (COUNT,))
    other = filled()
    assert isinstance(other.run(Delete(KEYS), few)[-1], TxnAnswer)
    assert isinstance(other.do(Txn((NONE,) * 100)), TxnAnswer)


def test_what_other_commands_have_deleted_counts_for_nothing() -> None:
    """They may be in the same batch on one member, and long written on another."""
    one, other = filled(), filled()
    commands = [
        one.writes(Delete(KeyRange(b"k", b"k01")), Put(b"k0001", b"v")),
        one.writes(Delete(KeyRange(b"k", b"k02")), Txn((NONE,) * 100), Txn((), (COUNT,) * 9), Put(b"k0003", b"v")),
        one.writes(Txn((), (Delete(KEYS), COUNT, COUNT)), Txn((NONE,) * 40), Txn((NONE,) * 3)),
        one.writes(Txn((NONE,) * 100)),
    ]
    entries = [one.entry(command, offset) for offset, command in enumerate(commands)]
    together = one.state.apply(entries)
    assert together == [other.state.apply([entry])[0] for entry in entries]
    assert one.state.content_hash() == other.state.content_hash()
    assert isinstance(together[-1][0], TxnAnswer)


def test_every_look_in_a_turn_is_counted() -> None:
    """Leases that come and go under one id, puts inside transactions: a turn ends all the same."""
    hand = filled()
    keys = [Put(b"l%d" % n, b"", lease=1) for n in range(KNOWN_LEASE_KEYS + 1)]
    again = [LeaseGrant(1, 60.0), *keys, LeaseRevoke(1)]
    many = [Txn((), tuple(Put(b"p%03d%02d" % (n, m), b"") for m in range(60))) for n in range(200)]
    for operations in ([LeaseRevoke(1), *again * 100], many):
        entry, slices = hand.entry(hand.writes(*operations)), 1
        while not hand.state.apply_some([entry]):
            slices += 1
            assert hand.state._executor.work <= 1.2 * APPLY_WORK
        assert slices >= 3


LIGHT: list[Operation] = [
    Txn((), (COUNT,) * 3),
    Txn((ALIVE,), (COUNT, COUNT)),
    Delete(KEYS),
    LeaseRevoke(1),
    Txn((), (Delete(KeyRange(b"k", b"k01")), LeaseRevoke(2))),
    Txn((), (Range(LONG, keys_only=True),) * 20),
]


@pytest.mark.parametrize("operation", LIGHT, ids=[str(n) for n in range(len(LIGHT))])
def test_what_fits_is_done(operation: Operation) -> None:
    assert not isinstance(filled().do(operation), Failed)


def test_one_lease_always_goes_with_its_keys() -> None:
    assert isinstance(filled(max_deleted_keys=100).do(LeaseRevoke(1)), Done)
    assert isinstance(filled(max_deleted_keys=100).do(Txn((), (LeaseRevoke(1),))), TxnAnswer)


def test_a_look_does_not_pass_what_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a queue of which many were consumed, none of it compacted."""
    hand = sim_hand()
    hand.configure(max_scanned_keys=50)
    for start in range(0, 3000, 500):
        hand.run(*(Put(b"k%05d" % n, b"v") for n in range(start, start + 500)))
    recent = hand.state.revision
    hand.run(*(Put(b"k%05d" % n, b"v") for n in range(3000, 3010)))
    for start in range(0, 3000, 500):
        hand.run(*(Delete(KeyRange(b"k%05d" % n)) for n in range(start, start + 500)))
    looks = Looks(hand.state, monkeypatch)
    first = hand.range(KEYS, limit=1)
    assert isinstance(first, RangeAnswer)
    assert (first.items[0].key, first.count) == (b"k03000", 10)
    assert isinstance(hand.range(KEYS, limit=1, descending=True), RangeAnswer)
    assert looks.total() <= 25
    answer = hand.do(Txn((ALIVE,), (COUNT,)))
    assert isinstance(answer, TxnAnswer)
    assert answer.succeeded
    assert isinstance(
        hand.do(Txn((ALIVE, TxnCompare(KEYS, Target.VERSION, Relation.LESS, 0)), (), (COUNT,))), TxnAnswer
    )
    assert looks.total() <= 60
    now = hand.state.revision
    hand.do(Delete(KeyRange(b"k03005")))
    page = hand.range(KEYS, revision=now)  # as the pages after the first, during writes
    assert isinstance(page, RangeAnswer)
    assert page.count == 10
    assert looks.total() <= 40
    assert isinstance(hand.range(KEYS, revision=recent, count_only=True), RangeAnswer)


def test_deletes_do_not_pile_up_in_memory(hand: Hand) -> None:
    """RocksDB keeps a tombstone for each delete, which reads must skip until it is merged away."""
    count = 3 * DELETES_IN_MEMORY
    for start in range(0, count, 1000):
        hand.run(*(Put(b"k%06d" % n, b"") for n in range(start, start + 1000)))
    for start in range(0, count, 1000):
        hand.run(*(Delete(KeyRange(b"k%06d" % n)) for n in range(start, start + 1000)))
    deletes = hand.state._engine._deletes  # type: ignore[attr-defined]
    assert deletes["keys"] < DELETES_IN_MEMORY
    assert hand.range(KEYS).count == 0  # type: ignore[union-attr]


def test_compaction_needs_no_flush(hand: Hand) -> None:
    """Its tombstones lie where nothing is read any more."""
    for _ in range(0, 2 * DELETES_IN_MEMORY, 1000):
        hand.run(*(Put(b"k%d" % (n % 7), b"") for n in range(1000)))
    hand.do(Compact(hand.state.revision))
    while hand.state.compact_slice(1000):
        pass
    engine = hand.state._engine
    assert engine._deletes["history"] > DELETES_IN_MEMORY  # type: ignore[attr-defined]
    assert engine._flushing is None  # type: ignore[attr-defined]


def test_a_bound_does_not_depend_on_how_far_compaction_has_come() -> None:
    """Members remove what was compacted at their own pace: no answer may depend on it."""
    hands = [sim_hand() for _ in range(2)]
    for hand in hands:
        hand.configure(max_scanned_keys=40, max_deleted_keys=40)
        hand.run(*(Put(b"k%03d" % n, b"v") for n in range(100)))
        hand.run(*(Delete(KeyRange(b"k%03d" % n)) for n in range(70)))
        hand.run(*(Put(b"k%03d" % n, b"w") for n in range(5)))
        hand.do(Compact(hand.state.revision - 3))
    while hands[0].state.compact_slice(1000):
        pass
    now = hands[0].state.revision
    for operation in (
        Txn((ALIVE,)),
        Txn((), (COUNT,)),
        Txn((), (Range(KEYS, now - 3),)),
        Txn((), (Range(KEYS, now - 2), Range(KEYS, now))),
        Delete(KEYS),
    ):
        one, other = (hand.do(operation) for hand in hands)
        assert one == other
    assert hands[0].state.content_hash() == hands[1].state.content_hash()


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("scan", [1, 3, 0])
def test_the_distant_past_is_read_in_parts(monkeypatch: pytest.MonkeyPatch, descending: bool, scan: int) -> None:
    """Beyond what the history is looked through for: by the keys that ever changed, however they came and went."""
    hand = sim_hand()
    keys = [b"k%d\0" % n for n in range(12)]
    hand.run(*(Put(key, b"1" * (2000 if n % 3 else 1)) for n, key in enumerate(keys)))
    hand.run(Delete(KeyRange(keys[2])), Put(keys[3], b"2"), Delete(KeyRange(keys[4])), Put(keys[4], b"3"))
    then = hand.state.revision
    expected = hand.range(KEYS)
    assert isinstance(expected, RangeAnswer)
    hand.run(Delete(KeyRange(keys[0], keys[6])), Put(keys[1], b"4"), Put(b"k11", b"new"), Put(keys[7], b"5"))
    hand.run(*(Put(b"other", b"%d" % n) for n in range(30)), Delete(KeyRange(keys[8])))
    for most in (PAST_CHANGES, 10):
        monkeypatch.setattr("raykeeper.store.state.ranges.PAST_CHANGES", most)
        found, start, end = [], b"k", b"l"
        while True:
            request = Range(KeyRange(start, end), then, descending=descending)
            answer = hand.state.range(request, page_items=99, page_bytes=1 << 20, max_scanned=scan)
            assert isinstance(answer, (RangeAnswer, RangePart))
            found += answer.items
            if isinstance(answer, RangeAnswer):
                break
            start, end = (start, answer.next + b"\0") if descending else (answer.next, end)
        assert found == list(reversed(expected.items) if descending else expected.items)


# --- a turn ----------------------------------------------------------------------------------------------------------


def test_a_command_of_many_writes_is_spread_over_turns() -> None:
    hand, other = filled(), filled()
    hand.state.take_changed_keys()
    heavy = Txn((), (COUNT, COUNT, COUNT, Put(b"made", b"v")))
    count = 10 * APPLY_WORK // 900
    batch = [
        [hand.entry(hand.writes(Put(b"before", b"v"))), hand.entry(hand.writes(*[heavy] * count, low=1), 1)],
        [other.entry(other.writes(Put(b"before", b"v"))), other.entry(other.writes(*[heavy] * count, low=1), 1)],
    ]
    state, index = hand.state, hand.state.applied_index
    turns = 0
    answers: list[tuple[Answer, ...]] = []
    while not (answers := state.apply_some(batch[0])):
        turns += 1
        assert (state.applied_index, state.take_changed_keys()) == (index, [])
        assert hand.range(KeyRange(b"made")).count == hand.range(KeyRange(b"before")).count == 0  # type: ignore[union-attr]
        assert state._executor.work <= 1.2 * APPLY_WORK
    assert 8 <= turns <= 14
    assert answers == other.state.apply(batch[1])
    assert state.content_hash() == other.state.content_hash()
    assert set(state.take_changed_keys()) == {b"before", b"made"}


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param(Txn((TxnCompare(KEYS, Target.VERSION, Relation.EQUAL, 1),), (Put(b"made", b"v"),)), id="compare"),
        pytest.param(Txn((), (COUNT, Put(b"made", b"v"))), id="count"),
        pytest.param(Txn((), (Range(KEYS, limit=2, sort=Sort.VERSION), Put(b"made", b"v"))), id="sort"),
        pytest.param(Txn((ALIVE,), (Txn((), (COUNT, Put(b"made", b"v"))),)), id="nested"),
    ],
)
def test_looking_at_many_keys_is_spread_over_turns(monkeypatch: pytest.MonkeyPatch, looks: Txn) -> None:
    """What it finds is what it would find at once."""
    for module in (executor, ranges):
        monkeypatch.setattr(module, "SCAN_SLICE", 50)
    hand, other = filled(), filled()
    batch = [hand.entry(hand.writes(looks))]
    state, index, turns = hand.state, hand.state.applied_index, 0
    while not (answers := state.apply_some(batch)):
        turns += 1
        assert state.applied_index == index
        assert hand.range(KeyRange(b"made")).count == 0  # type: ignore[union-attr]
    assert turns >= 300 // 50 - 1
    assert answers == other.state.apply([other.entry(other.writes(looks))])
    assert isinstance(answers[0][0], TxnAnswer)
    assert answers[0][0].succeeded
    assert state.content_hash() == other.state.content_hash()


def test_a_crash_in_the_middle_of_a_command_leaves_nothing_of_it() -> None:
    disk = SimDisk()
    hand = Hand(State.create(disk, "s", FIRST))
    hand.run(*(Put(b"k%04d" % n, b"v") for n in range(900)))
    digest = hand.state.content_hash()
    entry = hand.entry(hand.writes(*[Txn((), (COUNT,) * 10)] * 10))
    assert hand.state.apply_some([entry]) == []
    hand.state.close()
    state = State.open(disk, "s")
    assert state.content_hash() == digest
    assert len(state.apply([entry])[0]) == 10


def test_in_the_middle_of_a_command_the_content_is_what_is_on_the_disk() -> None:
    """A backup that is made then says what it holds."""
    disk = SimDisk()
    hand = Hand(State.create(disk, "s", FIRST))
    hand.run(*(Put(b"k%04d" % n, b"v") for n in range(900)))
    configured = Configure(encode_settings(Settings(limits=Limits(max_leases=5))))
    heavy = hand.writes(*[Txn((), (COUNT,) * 10)] * 10)
    commands = [hand.writes(Put(b"light", b"v"), low=1), configured, PassTime(0.0, 5.0, 1, 1, True), heavy]
    entries = [hand.entry(command, offset) for offset, command in enumerate(commands)]
    for number in itertools.count():
        if not entries:
            break
        del entries[: len(hand.state.apply_some(entries))]
        digest = hand.state.content_hash()
        hand.state.flush()
        copy = f"copy{number}"
        hand.state.checkpoint(copy)
        state = State.open(disk, copy)
        assert state.content_hash() == digest
        state.close()
    assert hand.state.clock.seconds == 5.0


def test_half_a_command_is_never_written() -> None:
    """Not if the next turn gets fewer entries either, as after a change of ``max_apply_bytes`` just before it."""
    hand = sim_hand()
    hand.run(*(Put(b"k%04d" % n, b"v") for n in range(900)))
    heavy = [Txn((), (Put(b"made%d" % n, b"v"), *(COUNT,) * 10)) for n in range(8)]
    configured = Configure(encode_settings(Settings(limits=Limits(max_apply_bytes=1024))))
    entries = [hand.entry(configured), hand.entry(hand.writes(*heavy), 1)]
    assert hand.state.apply_some(entries) == [(Done(hand.state.revision),)]
    assert hand.state.settings
    del entries[0]
    entries.insert(0, hand.entry(hand.writes(Put(b"light", b"v"), low=1)))
    entries[1] = hand.entry(hand.writes(*heavy, low=1), 1)
    assert hand.state.apply_some(entries) == []
    assert [type(answer) for answer in hand.state.apply_some(entries[:1])[0]] == [PutAnswer]
    assert hand.range(KeyRange(b"made", b"madf")).count == 0  # type: ignore[union-attr]
    while not (answers := hand.state.apply_some(entries[1:])):
        pass
    assert [type(answer) for answer in answers[0]] == [TxnAnswer] * 8
    assert hand.range(KeyRange(b"made", b"madf")).count == 8  # type: ignore[union-attr]


BIG = KeyRange(b"big")
WIDE = 60
"""Operations in a transaction of those below."""
MANY = tuple(Put(b"p%03d" % n, b"") for n in range(WIDE))
CROSSED = (*(Delete(KeyRange(b"d%03d" % n, b"e")) for n in range(WIDE)), *MANY)
NOTHING = KeyRange(b"x", b"y")

CROWDED: dict[str, Operation] = {
    "puts": Txn((), MANY),
    "deletes": Txn((), (*(Put(b"d%03d" % n, b"") for n in range(WIDE)), Delete(KeyRange(b"k0", b"k01")))),
    "grants": Txn((), (LeaseGrant(0, 60.0),) * WIDE),
    "values that are sent": Put(b"sent", b"v" * 100_000),
    "values left as they are": Put(b"big", None),
    "values left as they are, in transactions": Txn((), (Put(b"big", None),)),
    "values before": Put(b"big", None, prev=True),
    "values that are read": Txn((), (Range(BIG),)),
    "values that are too long to be answered": Txn((), (Range(BIG),) * 5),
    "looks at nothing": Txn((TxnCompare(NOTHING, Target.VERSION, Relation.EQUAL, 0),) * WIDE),
    "reads of nothing": Txn((), (Range(NOTHING),) * WIDE),
    "deletes of nothing": Txn((), (Delete(NOTHING),) * WIDE),
    "operations that cannot stand together": Txn((), (*CROSSED, MANY[0])),
    "operations that have to be compared": Txn((), (), CROSSED),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", CROWDED)
def test_a_frame_of_anything_at_all_is_spread_over_turns_and_bounded_in_what_it_writes(
    name: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small requests in one frame, each of which is within all bounds."""
    hand, other = filled(max_scanned_keys=10_000), filled(max_scanned_keys=10_000)
    for each in (hand, other):
        each.run(Put(b"big", b"v" * 1_200_000), LeaseGrant(0, 60.0))
    request_id = RequestId(b"one name for all of them", b"") if named else None
    writes = tuple(ClientWrite(n, CROWDED[name], request_id) for n in range(2000, 2250))
    sizes: list[tuple[int, int]] = []
    seeks: list[int] = []
    prepare, iterate = hand.state._batch.prepare, hand.state._engine.iterate

    def weighed(*arguments: Any) -> Any:
        written = [value or b"" for layer in hand.state._batch._layers.values() for value in layer.values.values()]
        sizes.append((len(written), sum(map(len, written))))
        return prepare(*arguments)

    def counted(*arguments: Any, **options: Any) -> Iterator[tuple[bytes, bytes]]:
        seeks[-1] += 1
        return iterate(*arguments, **options)

    monkeypatch.setattr(hand.state._batch, "prepare", weighed)
    monkeypatch.setattr(hand.state._engine, "iterate", counted)
    entry = hand.entry(ClientWrites(hand.session, 1, writes))
    answers: list[tuple[Answer, ...]] = []
    while not answers:
        seeks.append(0)
        answers = hand.state.apply_some([entry])
        assert hand.state._executor.work <= 1.5 * APPLY_WORK
        assert seeks[-1] <= APPLY_WORK / 4
    assert 0 < len(answers[0]) <= len(writes)
    ((records, size),) = sizes
    assert records <= 3 * (ENTRY_CHANGES + 200)
    assert size <= 15_000_000
    if "operations that" in name and not named:
        assert len(seeks) >= 10
    assert answers == other.state.apply([entry])
    assert hand.state.content_hash() == other.state.content_hash()


def test_what_a_frame_leaves_undone_is_done_when_it_is_sent_again_and_nothing_twice() -> None:
    hand = sim_hand()
    for start in range(0, 3 * ENTRY_CHANGES, 1000):
        hand.run(*(Put(b"k%05d" % n, b"v") for n in range(start, start + 1000)))
    deletes = [Delete(KeyRange(b"k%05d" % n, b"k%05d" % (n + ENTRY_CHANGES // 2))) for n in range(0, 15_000, 2500)]
    frame = hand.writes(*deletes)
    found: list[Answer] = []
    revision = hand.state.revision
    for _ in range(len(deletes)):
        (answers,) = hand.apply_all([frame])  # all of it, as one who has heard nothing of the first time sends it
        assert list(answers[: len(found)]) == found
        assert len(answers) == min(len(deletes), len(found) + 2)
        found = list(answers)
    assert [answer.deleted for answer in found if isinstance(answer, DeleteAnswer)] == [ENTRY_CHANGES // 2] * 6
    assert (hand.state.revision, hand.range(KEYS).count) == (revision + 6, 0)  # type: ignore[union-attr]


def test_one_transaction_copies_no_more_than_an_answer_may_hold() -> None:
    hand = sim_hand()
    hand.configure(max_page_bytes=100_000)
    hand.run(*(Put(b"big%d" % n, b"v" * 60_000) for n in range(2)), Put(b"huge", b"v" * 500_000))
    both = Txn((), (Put(b"big0", None), Put(b"big1", None)))
    assert plain(hand.do(both)) == Failed(Reason.TOO_LARGE)
    assert isinstance(hand.do(Txn((), (Put(b"huge", None), Put(b"p", b"v")))), TxnAnswer)
    assert isinstance(hand.do(Put(b"huge", None)), PutAnswer)


def test_the_ids_of_many_leases_are_found_at_once_and_are_unique() -> None:
    one, other = sim_hand(), sim_hand()
    for hand in (one, other):
        next_index = hand.state.applied_index + 2
        hand.run(*(LeaseGrant((next_index << 16) + n, 60.0) for n in (1, 3, 64)))
    grants = [Txn((), (LeaseGrant(0, 60.0),) * 60), LeaseGrant(0, 60.0), Txn((ALIVE,), (), (LeaseGrant(0, 60.0),) * 9)]
    commands = [one.writes(*grants), one.writes(*grants)]
    entries = [one.entry(command, offset) for offset, command in enumerate(commands)]
    answers = one.state.apply(entries)
    apart = [other.state.apply([entry])[0] for entry in entries]
    assert answers == apart
    ids = [each.id for each in _granted([answer for each in answers for answer in each])]
    assert len(set(ids)) == len(ids) == 140
    assert set(ids) < set(one.state.leases)


def _granted(answers: Iterable[Answer]) -> Iterator[LeaseGranted]:
    for answer in answers:
        if isinstance(answer, TxnAnswer):
            yield from _granted(answer.responses)
        elif isinstance(answer, LeaseGranted):
            yield answer


def test_light_entries_are_written_together() -> None:
    hand = sim_hand()
    entries = [hand.entry(hand.writes(Put(b"k%d" % n, b"v")), n) for n in range(200)]
    assert len(hand.state.apply_some(entries)) == 200


def test_ending_sessions_is_bounded_by_their_answers() -> None:
    hand = sim_hand()
    hand.configure(max_deleted_keys=10)
    sessions = []
    for number in range(3):
        opened = hand.apply(OpenSession(b"%d" % number, 1.0))
        assert isinstance(opened, SessionOpened)
        other = Hand.__new__(Hand)
        other.state, other.term, other.sequence, other.session = hand.state, 1, 0, opened.session
        for _ in range(8):
            other.apply_all([other.writes(Put(b"k", b"v"), low=1)])
        sessions.append(opened.session)
    for left in (2, 1, 0):
        known = hand.state.sessions
        expiries = tuple(Expiry(session, known[session].heard) for session in sessions if session in known)
        hand.apply(ExpireSessions(1, expiries))
        assert len(set(sessions) & set(hand.state.sessions)) == left


def test_deleting_a_range_is_exact_at_its_bound(disk: RocksDisk, tmp_path: Path) -> None:
    hand = Hand(State.create(disk, str(tmp_path / "b"), FIRST))
    hand.configure(max_deleted_keys=5)
    hand.run(*(Put(b"k%d" % n, b"v") for n in range(6)))
    assert plain(hand.do(Delete(KEYS))) == Failed(Reason.TOO_LARGE)
    singles = tuple(Delete(KeyRange(b"k%d" % n)) for n in range(6))
    assert plain(hand.do(Txn((), singles))) == Failed(Reason.TOO_LARGE)
    answer = hand.do(Delete(KeyRange(b"k", b"k5")))
    assert isinstance(answer, DeleteAnswer)
    assert answer.deleted == 5
    hand.state.close()
