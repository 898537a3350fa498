"""Exactly once: a repeated write gets its old answer, and nothing below the low mark has an effect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.store_model import FIRST, Hand, plain
from raykeeper.limits import Limits, Settings, encode_settings
from raykeeper.raft.messages import Entry, EntryKind
from raykeeper.schema.answers import Answer, Done, Failed, LeaseGranted, PutAnswer, RangeAnswer, Reason, SessionOpened
from raykeeper.schema.commands import (
    ClientWrite,
    ClientWrites,
    CloseSession,
    Configure,
    ExpireSessions,
    Expiry,
    ForgetRequests,
    OpenSession,
    RequestId,
)
from raykeeper.schema.operations import (
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    Operation,
    Put,
    Range,
    Relation,
    Target,
    Txn,
    TxnCompare,
)
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

K = KeyRange(b"k")
EXPIRED, BELOW, FULL = Failed(Reason.SESSION_EXPIRED), Failed(Reason.BELOW_MARK), Failed(Reason.FULL)


def named(name: bytes | None, meaning: bytes = b"meaning", held: int = 0) -> RequestId | None:
    return None if name is None else RequestId(name, meaning, held)


def put(sequence: int, value: bytes = b"v", request_id: bytes | None = None, **options: Any) -> ClientWrite:
    return ClientWrite(sequence, Put(b"k", value, **options), named(request_id))


def send(hand: Hand, low: int, *writes: ClientWrite, session: int | None = None) -> list[Any]:
    command = ClientWrites(hand.session if session is None else session, low, writes)
    (answers,) = hand.apply_all([command])
    return [plain(answer) for answer in answers]


def version(hand: Hand) -> int:
    answer = hand.range(K)
    assert isinstance(answer, RangeAnswer)
    return answer.items[0].version if answer.items else 0


def test_a_repeated_write_gets_its_old_answer(hand: Hand) -> None:
    first = send(hand, 1, put(1), put(2, prev=True))
    assert send(hand, 1, put(2, prev=True), put(1), put(3)) == [first[1], first[0], PutAnswer(4)]
    assert version(hand) == 3


def test_a_write_twice_in_one_command_runs_once(hand: Hand) -> None:
    assert send(hand, 1, put(1), put(1)) == [PutAnswer(2), PutAnswer(2)]
    assert version(hand) == 1


def test_below_the_mark_nothing_has_an_effect(hand: Hand) -> None:
    send(hand, 1, put(1))
    assert send(hand, 3, put(1), put(2), put(3)) == [BELOW, BELOW, PutAnswer(3)]
    # A delayed command that names an older low mark does not lower it.
    assert send(hand, 1, put(1), put(2), put(3), put(4)) == [BELOW, BELOW, PutAnswer(3), PutAnswer(4)]
    assert version(hand) == 3


def test_failed_answers_are_remembered_too(hand: Hand) -> None:
    lost = ClientWrite(1, Put(b"k", b"v", lease=5))
    assert send(hand, 1, lost) == [Failed(Reason.LEASE_NOT_FOUND, 5)]
    hand.apply(OpenSession(b"other", 1.0))
    send(hand, 1, ClientWrite(2, LeaseGrant(5, 10.0)))
    assert send(hand, 1, lost) == [Failed(Reason.LEASE_NOT_FOUND, 5)]


def test_an_unknown_session_changes_nothing(hand: Hand) -> None:
    assert send(hand, 1, put(1), put(2), session=999) == [EXPIRED, EXPIRED]
    assert hand.state.revision == 1


def test_a_session_is_opened_once_for_a_nonce(hand: Hand) -> None:
    one, again, two = (hand.apply(OpenSession(nonce, 5.0)) for nonce in (b"x", b"x", b"y"))
    assert one == again != two
    assert isinstance(one, SessionOpened)
    assert hand.state.sessions[one.session].ttl == 5.0
    assert hand.apply(CloseSession(one.session)) == Done(1)
    assert hand.apply(CloseSession(one.session)) == EXPIRED
    assert hand.apply(OpenSession(b"x", 5.0)) not in (one, two)


def test_an_expiry_is_void_after_a_sign_of_life_and_in_another_term(hand: Hand) -> None:
    heard = hand.state.sessions[hand.session].heard
    send(hand, 1, put(1))
    hand.apply(ExpireSessions(hand.term, (Expiry(hand.session, heard),)))
    assert hand.session in hand.state.sessions
    expiry = Expiry(hand.session, hand.state.sessions[hand.session].heard)
    assert plain(hand.apply(ExpireSessions(hand.term + 1, (expiry,)))) == Failed(Reason.INVALID, hand.term)
    assert hand.session in hand.state.sessions
    hand.apply(ExpireSessions(hand.term, (expiry, Expiry(12345, 0))))
    assert hand.session not in hand.state.sessions
    assert send(hand, 1, put(1)) == [EXPIRED]
    assert list(hand.state._engine.iterate("sessions")) == []


def test_answers_are_bounded_in_number(hand: Hand) -> None:
    hand.configure(max_session_answers=3)
    assert send(hand, 1, *(put(n) for n in range(1, 6))) == [PutAnswer(2), PutAnswer(3), PutAnswer(4), FULL, FULL]
    assert version(hand) == 3
    # FULL is not remembered: once the client has confirmed, the same writes go through.
    assert send(hand, 3, put(3), put(4), put(5)) == [PutAnswer(4), FULL, FULL]
    assert send(hand, 4, put(4), put(5)) == [PutAnswer(5), PutAnswer(6)]


def test_answers_are_bounded_in_bytes(hand: Hand) -> None:
    hand.configure(max_session_answer_bytes=5000)
    big = Put(b"big", b"x" * 2000, prev=True)
    answers = send(hand, 1, *(ClientWrite(n, big) for n in range(1, 6)))
    assert [type(answer) for answer in answers] == [PutAnswer, PutAnswer, PutAnswer, Failed, Failed]
    assert answers[3:] == [FULL, FULL]
    found = hand.range(KeyRange(b"big"))
    assert isinstance(found, RangeAnswer)
    assert found.items[0].version == 3
    # A small answer still fits, also after a big one that did not.
    assert send(hand, 1, put(4)) == [PutAnswer(5)]
    # Confirming gives the room back.
    assert isinstance(send(hand, 5, ClientWrite(6, big))[0], PutAnswer)


def test_sessions_are_bounded(hand: Hand) -> None:
    hand.configure(max_sessions=2)
    assert isinstance(hand.apply(OpenSession(b"2", 1.0)), SessionOpened)
    assert hand.apply(OpenSession(b"3", 1.0)) == FULL
    assert isinstance(hand.apply(OpenSession(b"2", 1.0)), SessionOpened)


def test_a_request_id_holds_across_sessions(hand: Hand) -> None:
    other = hand.apply(OpenSession(b"other", 1.0))
    assert isinstance(other, SessionOpened)
    assert send(hand, 1, put(1, request_id=b"r")) == [PutAnswer(2)]
    assert send(hand, 1, put(1, request_id=b"r"), put(2, request_id=b"s"), session=other.session) == [
        PutAnswer(2),
        PutAnswer(3),
    ]
    assert send(hand, 1, put(9, request_id=b"s")) == [PutAnswer(3)]
    assert version(hand) == 2
    assert hand.state.remembered_requests == 2


def test_a_name_is_good_for_one_operation(hand: Hand) -> None:
    other = hand.apply(OpenSession(b"other", 60.0))
    assert isinstance(other, SessionOpened)
    first = ClientWrite(1, Put(b"k", b"1"), named(b"r", b"put k"))
    second = ClientWrite(2, Put(b"j", b"2"), named(b"r", b"put j"))
    done, refused = send(hand, 1, first, second)
    assert done == PutAnswer(2)
    assert plain(refused) == Failed(Reason.INVALID)
    assert send(hand, 1, second) == [refused]  # a copy of it
    assert send(hand, 1, first, session=other.session) == [done]
    assert plain(send(hand, 1, ClientWrite(3, second.operation, second.request_id))[0]) == Failed(Reason.INVALID)
    assert hand.state.revision == 2


@pytest.mark.parametrize("depth", [1, 2])
def test_what_was_not_done_because_of_a_guard_may_be_asked_for_again(hand: Hand, depth: int) -> None:
    name = named(b"r", held=depth)
    there = (TxnCompare(KeyRange(b"lock"), Target.VERSION, Relation.GREATER, 0),)
    guarded: Txn | Put = Put(b"k", b"1")
    for level in reversed(range(depth)):
        guarded = Txn(there if level == depth - 1 else (), (guarded,), ())
    (refused,) = send(hand, 1, ClientWrite(1, guarded, name))
    assert hand.state.revision == 1
    send(hand, 1, ClientWrite(2, Put(b"lock", b"")))
    (done,) = send(hand, 1, ClientWrite(3, guarded, name))
    assert done != refused
    assert hand.state.revision == 3
    assert send(hand, 1, ClientWrite(4, guarded, name)) == [done]
    assert hand.state.revision == 3


def test_a_transaction_whose_comparisons_do_not_hold_is_done_all_the_same(hand: Hand) -> None:
    txn = Txn((TxnCompare(KeyRange(b"k"), Target.VERSION, Relation.GREATER, 0),), (), (Put(b"k", b"1"),))
    first = send(hand, 1, ClientWrite(1, txn, named(b"r")))
    assert send(hand, 1, ClientWrite(2, txn, named(b"r"))) == first
    under_a_guard = Txn((), (txn,), ())
    (first_guarded,) = send(hand, 1, ClientWrite(3, under_a_guard, named(b"s", held=1)))
    assert send(hand, 1, ClientWrite(4, under_a_guard, named(b"s", held=1))) == [first_guarded]


@pytest.mark.parametrize("held", [-(2**63), -1, 5, 2**63 - 1])
def test_any_number_of_levels_is_taken(hand: Hand, held: int) -> None:
    for number, operation in enumerate((Txn(), Txn((), (Txn(),)), Put(b"k", b""), Compact(7)), 1):
        first = send(hand, 1, ClientWrite(2 * number, operation, named(b"%d" % number, held=held)))
        assert send(hand, 1, ClientWrite(2 * number + 1, operation, named(b"%d" % number, held=held))) == first


def test_request_ids_are_forgotten_by_age(hand: Hand) -> None:
    send(hand, 1, put(1, request_id=b"r"))
    index = hand.state.applied_index
    send(hand, 1, put(2, request_id=b"s"))
    hand.apply(ForgetRequests(index))
    assert hand.state.remembered_requests == 1
    assert send(hand, 1, put(3, request_id=b"s"), put(4, request_id=b"r")) == [PutAnswer(3), PutAnswer(4)]
    # The session remembers on its own: forgetting the name does not make its writes new.
    hand.apply(ForgetRequests(hand.state.applied_index))
    assert hand.state.remembered_requests == 0
    assert send(hand, 1, put(1, request_id=b"r")) == [PutAnswer(2)]


def test_request_ids_are_bounded(hand: Hand) -> None:
    hand.configure(max_remembered_requests=1, max_deleted_keys=1)
    assert send(hand, 1, put(1, request_id=b"r"), put(2, request_id=b"s"), put(3)) == [PutAnswer(2), FULL, PutAnswer(3)]
    hand.apply(ForgetRequests(hand.state.applied_index))
    assert send(hand, 1, put(2, request_id=b"s")) == [PutAnswer(4)]


def test_a_chosen_lease_id_is_free_and_the_same_everywhere(hand: Hand) -> None:
    one, two = hand.run(LeaseGrant(0, 1.0), LeaseGrant(0, 1.0))
    assert isinstance(one, LeaseGranted)
    assert isinstance(two, LeaseGranted)
    assert one.id != two.id
    following = (hand.state.applied_index + 1) << 16
    taken, given = hand.run(LeaseGrant(following + 1, 1.0), LeaseGrant(0, 1.0))
    assert [type(taken), type(given)] == [LeaseGranted, LeaseGranted]
    assert len(hand.state.leases) == 4


def test_settings_take_effect_at_their_place_in_the_log(hand: Hand) -> None:
    assert plain(hand.apply(Configure(b"nonsense"))) == Failed(Reason.INVALID)
    hand.configure(max_deleted_keys=1)
    assert hand.state.limits.max_deleted_keys == 1
    hand.run(Put(b"1", b""), Put(b"2", b""))
    assert plain(hand.do(Delete(KeyRange(b"", b"")))) == Failed(Reason.TOO_LARGE)


def test_settings_that_are_based_on_others_are_refused(hand: Hand) -> None:
    first, second, third = (
        encode_settings(Settings(limits=Limits(max_deleted_keys=number))) for number in (1000, 2000, 3000)
    )
    hand.apply(Configure(first))
    assert isinstance(hand.apply(Configure(second, first)), Done)
    assert plain(hand.apply(Configure(third, first))) == Failed(Reason.CHANGED)
    assert hand.state.settings == second
    assert isinstance(hand.apply(Configure(second, first)), Done)  # asked for again, as its answer was lost


# --- random clients --------------------------------------------------------------------------------------------------


class Ledger:
    """What exactly once means, said with dicts."""

    def __init__(self) -> None:
        self.low = 1
        self.answers: dict[int, Answer] = {}
        self.names: dict[bytes, Answer] = {}
        self.runs = 0

    def write(self, low: int, write: ClientWrite) -> Answer | None:
        """The answer that must come, or ``None`` if the write must run."""
        self.low = max(self.low, low)
        if write.sequence < self.low:
            return BELOW
        if write.sequence in self.answers:
            return self.answers[write.sequence]
        return self.names.get(write.request_id.name if write.request_id else b"-")

    def ran(self, write: ClientWrite, answer: Answer) -> None:
        self.answers[write.sequence] = answer
        if write.request_id:
            self.names[write.request_id.name] = answer


WRITES = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([None, None, b"r", b"s"])), min_size=1, max_size=5)


@settings(max_examples=150)
@given(
    rounds=st.lists(st.tuples(st.integers(1, 8), WRITES, st.booleans()), min_size=1, max_size=10),
)
def test_random_retries(rounds: list[tuple[int, list[tuple[int, bytes | None]], bool]]) -> None:
    disk = SimDisk()
    hand, ledger = Hand(State.create(disk, "state", FIRST)), Ledger()
    for low, writes, reopen in rounds:
        command = ClientWrites(
            hand.session, low, tuple(ClientWrite(n, Put(b"k", b"%d" % n, prev=True), named(name)) for n, name in writes)
        )
        runs_before = version(hand)
        (answers,) = hand.apply_all([command])
        runs = 0
        for write, answer in zip(command.writes, answers, strict=True):
            expected = ledger.write(low, write)
            if expected is None:
                runs += 1
                assert isinstance(answer, PutAnswer)
                assert (answer.prev.version if answer.prev else 0) == runs_before + runs - 1
                ledger.ran(write, answer)
            else:
                assert answer == expected
                if answer != BELOW:
                    ledger.answers[write.sequence] = answer
        assert version(hand) == runs_before + runs
        if reopen:
            content = hand.state.content_hash()
            hand.state.close()
            hand.state = State.open(disk, "state")
            assert hand.state.content_hash() == content
        session = hand.state.sessions[hand.session]
        assert session.low == ledger.low
        stored = [int.from_bytes(key[9:], "big") for key, _ in hand.state._engine.iterate("sessions", b"a", b"b")]
        assert sorted(stored) == sorted(stored_under for _, stored_under, _, _ in session.batches)
        assert all(last >= session.low for last, _, _, _ in session.batches)
        assert {n for n in session.answered if n >= session.low} == {n for n in ledger.answers if n >= ledger.low}


@pytest.mark.parametrize("operations", [[Put(b"a", b"1")], [Txn((), (Put(b"a", b"1"), Range(KeyRange(b"", b""))))]])
def test_answers_outlive_a_restart(disk: RocksDisk, tmp_path: Any, operations: list[Operation]) -> None:
    path = str(tmp_path / "s")
    hand = Hand(State.create(disk, path, FIRST))
    command = hand.writes(*operations, low=1)
    (before,) = hand.apply_all([command])
    hand.state.close()
    hand.state = State.open(disk, path)
    (after,) = hand.apply_all([command])
    assert after == before
    assert hand.state.revision == 2
    hand.state.close()


def test_entries_must_follow_each_other(hand: Hand) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        hand.state.apply([Entry(hand.state.applied_index + 2, 1, EntryKind.NORMAL, b"")])
