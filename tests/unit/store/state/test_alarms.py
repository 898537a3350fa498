"""Alarms in the state machine; what a cluster without room still does; the hash of the content as of one entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.errors import DataCorrupted, Unavailable
from raykeeper.limits import MAX_ALARM_CHARACTERS
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.schema.answers import (
    ContentAsked,
    DeleteAnswer,
    Done,
    Failed,
    LeaseGranted,
    PutAnswer,
    RangeAnswer,
    Reason,
    SessionOpened,
    TxnAnswer,
)
from raykeeper.schema.commands import (
    AlarmKind,
    ClientWrite,
    ClientWrites,
    CompactHistory,
    HashContent,
    OpenSession,
    RenewLeases,
    RequestId,
    SetAlarm,
)
from raykeeper.schema.operations import Compact, Delete, KeyRange, LeaseGrant, LeaseRevoke, Put, Range, Txn
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State

FULL = Failed(Reason.NO_SPACE)


def alarm(hand: Hand, member: int = 2, kind: AlarmKind = AlarmKind.NOSPACE, on: bool = True, said: str = "why") -> None:
    assert isinstance(hand.apply(SetAlarm(member, kind, on, said)), Done)


def test_alarms_are_on_until_they_are_ended(hand: Hand) -> None:
    alarm(hand, 2, AlarmKind.NOSPACE)
    alarm(hand, 2, AlarmKind.NOSPACE, said="again")
    alarm(hand, 3, AlarmKind.CORRUPT)
    assert hand.state.alarms == {(2, AlarmKind.NOSPACE): "again", (3, AlarmKind.CORRUPT): "why"}
    alarm(hand, 2, AlarmKind.NOSPACE, on=False)
    alarm(hand, 2, AlarmKind.NOSPACE, on=False)
    assert hand.state.alarms == {(3, AlarmKind.CORRUPT): "why"}


def test_alarms_outlive_the_process(disk: RocksDisk, tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    hand = Hand(State.create(disk, path, FIRST))
    alarm(hand, 2, said="é" * (MAX_ALARM_CHARACTERS + 1))
    hand.state.close()
    hand.state = State.open(disk, path)
    assert hand.state.alarms == {(2, AlarmKind.NOSPACE): "é" * MAX_ALARM_CHARACTERS}
    assert hand.do(Put(b"k", b"v")) == FULL
    hand.state.close()


def test_only_members_have_alarms_and_take_them_along(hand: Hand) -> None:
    refused = hand.apply(SetAlarm(4, AlarmKind.NOSPACE, True))
    assert isinstance(refused, Failed)
    assert refused.reason is Reason.INVALID
    alarm(hand, 2)
    entry = Entry(hand.state.applied_index + 1, hand.term, EntryKind.CONFIGURATION, b"")
    hand.state.apply([entry], {entry.index: Configuration(voters=(1, 3))})
    assert hand.state.alarms == {}
    assert isinstance(hand.do(Put(b"k", b"v")), PutAnswer)


def test_an_alarm_that_cannot_be_read_is_damage(hand: Hand) -> None:
    alarm(hand, 2)
    engine = hand.state._engine
    engine.write([("meta", b"alarm/" + (2).to_bytes(8, "big") + b"\xff", b"of an unknown kind")])
    with pytest.raises(DataCorrupted, match="cannot be read"):
        State(engine)


def test_without_room_nothing_is_put_and_all_else_goes_on(hand: Hand) -> None:
    hand.do(Put(b"a", b"1"))
    hand.do(Put(b"b", b"1"))
    lease = hand.do(LeaseGrant(0, 10.0))
    assert isinstance(lease, LeaseGranted)
    hand.do(Put(b"c", b"1", lease=lease.id))
    before = hand.state.revision
    alarm(hand)
    assert hand.do(Put(b"a", b"2")) == FULL
    assert hand.do(Put(b"a", b"2", prev=True)) == FULL
    assert hand.do(LeaseGrant(0, 10.0)) == FULL
    assert hand.do(Txn(success=(Delete(KeyRange(b"a")), Put(b"n", b"1")))) == FULL
    assert hand.state.revision == before, "a refused transaction has no effect, not even its deletes"

    assert isinstance(hand.do(Txn(success=(Range(KeyRange(b"a")),), failure=(Put(b"n", b"1"),))), TxnAnswer)
    assert isinstance(hand.do(Txn(success=(Delete(KeyRange(b"a")),))), TxnAnswer)
    assert isinstance(hand.do(Delete(KeyRange(b"b"))), DeleteAnswer)
    assert isinstance(hand.do(Compact(hand.state.revision)), Done)
    assert isinstance(hand.apply(RenewLeases(hand.term, (lease.id,))), Done)
    assert hand.state.leases[lease.id].heard == hand.state.applied_index
    assert isinstance(hand.do(LeaseRevoke(lease.id)), Done)
    assert isinstance(hand.apply(OpenSession(b"another", 60.0)), SessionOpened)
    left = hand.range(KeyRange(b"", b""))
    assert isinstance(left, RangeAnswer)
    assert left.items == ()
    alarm(hand, on=False)
    assert isinstance(hand.do(Put(b"a", b"3")), PutAnswer)


def test_each_of_two_alarms_alone_keeps_the_cluster_read_only(hand: Hand) -> None:
    alarm(hand, 1)
    alarm(hand, 2)
    alarm(hand, 1, on=False)
    assert hand.do(Put(b"k", b"v")) == FULL
    alarm(hand, 2, on=False)
    assert isinstance(hand.do(Put(b"k", b"v")), PutAnswer)


def test_a_corrupt_alarm_refuses_no_put(hand: Hand) -> None:
    alarm(hand, kind=AlarmKind.CORRUPT)
    assert isinstance(hand.do(Put(b"k", b"v")), PutAnswer)


def test_a_request_id_may_be_used_again_once_there_is_room(hand: Hand) -> None:
    def named(sequence: int) -> ClientWrites:
        return ClientWrites(hand.session, sequence, (ClientWrite(sequence, Put(b"k", b"v"), RequestId(b"name", b"")),))

    alarm(hand)
    assert hand.apply(named(1)) == FULL
    alarm(hand, on=False)
    assert isinstance(hand.apply(named(2)), PutAnswer)
    assert hand.state.remembered_requests == 1


def test_history_that_is_forgotten_already_stays_so(hand: Hand) -> None:
    for _ in range(5):
        hand.do(Put(b"k", b"v"))
    hand.apply(CompactHistory(4))
    assert hand.state.compact_revision == 4
    for revision in (3, 4, hand.state.revision + 1):
        hand.apply(CompactHistory(revision))
        assert hand.state.compact_revision == 4


# --- the hash as of an entry -----------------------------------------------------------------------------------------


def test_the_hash_is_of_its_entry_whatever_is_applied_with_it(hand: Hand, disk: RocksDisk, tmp_path: Path) -> None:
    other = Hand(State.create(disk, str(tmp_path / "other"), FIRST))
    commands = [hand.writes(Put(b"a", b"1")), HashContent(), hand.writes(Put(b"a", b"2"), Put(b"b", b"2"))]
    answers = hand.apply_all(commands)
    at = hand.state.applied_index - 1
    assert answers[1] == (ContentAsked(at),)
    for command in commands[:2]:
        other.apply_all([command])
    expected = other.state.content_hash()
    content = hand.state.take_content_hasher()
    assert content is not None
    assert hand.state.take_content_hasher() is None
    assert (content.index, content.revision) == (at, 2)
    hand.do(Delete(KeyRange(b"", b"")))
    hand.do(Compact(hand.state.revision))
    while hand.state.compact_slice(1):
        pass
    assert content.digest() == expected
    assert hand.state.content_hash() != expected
    other.state.close()


def test_an_alarm_is_part_of_the_content(hand: Hand, disk: RocksDisk, tmp_path: Path) -> None:
    other = Hand(State.create(disk, str(tmp_path / "other"), FIRST))
    alarm(hand, 2)
    alarm(other, 3)
    assert hand.state.content_hash() != other.state.content_hash()
    other.state.close()


def test_hashing_goes_in_slices_and_can_be_given_up(hand: Hand) -> None:
    for n in range(2000):
        hand.do(Put(b"%d" % n, b"v"))
    rests: list[int] = []
    hand.apply(HashContent())
    content = hand.state.take_content_hasher()
    assert content is not None
    content.digest(lambda: rests.append(1))
    assert len(rests) > 3

    hand.apply(HashContent())
    content = hand.state.take_content_hasher()
    assert content is not None
    rests.clear()

    def give_up() -> None:
        rests.append(1)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        content.digest(give_up)
    assert len(rests) == 1


def test_closing_the_state_does_not_wait_for_who_hashes_it(disk: RocksDisk, tmp_path: Path) -> None:
    hand = Hand(State.create(disk, str(tmp_path / "state"), FIRST))
    for n in range(2000):
        hand.do(Put(b"%d" % n, b"v"))
    hand.apply(HashContent())
    content = hand.state.take_content_hasher()
    assert content is not None
    with pytest.raises(Unavailable):
        content.digest(hand.state.close)
    State.open(disk, str(tmp_path / "state")).close()


def test_deleted_data_gives_its_space_back(disk: RocksDisk, tmp_path: Path) -> None:
    hand = Hand(State.create(disk, str(tmp_path / "state"), FIRST))
    for n in range(400):
        hand.do(Put(b"%d" % n, bytes([n % 256]) * 997 * 30))
    hand.state.flush()
    full = hand.state.size()
    hand.do(Delete(KeyRange(b"", b"")))
    hand.do(Compact(hand.state.revision))
    while hand.state.compact_slice(1000):
        pass
    hand.state.reclaim(free=0)
    hand.state.reclaim(free=1 << 30)
    assert hand.state.size() < full / 10
    hand.state.close()
    hand.state.reclaim(free=1 << 30)
