"""Applying is total: whatever a log entry holds, it gets the same answer on every member, and nothing is raised.

An entry that raised would raise again after each restart, on every member: the end of the cluster.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.extremes import encoded, raw, structs, unbounded
from lab.store_model import FIRST, Hand, encode
from raykeeper.errors import DataCorrupted
from raykeeper.limits import APPLY_WORK, Settings, encode_settings
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.schema import commands
from raykeeper.schema.answers import Done, Failed, PutAnswer, Reason, TxnAnswer
from raykeeper.schema.commands import ClientWrite, ClientWrites, Command, CommandUnknown, Configure, RetireMember
from raykeeper.schema.operations import KeyRange, LeaseGrant, Operation, Put, Range, Txn
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state import sessions
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk


def patch_run(monkeypatch: pytest.MonkeyPatch, run: Callable[[Any, Any, int, int], Any]) -> None:
    """Have ``run`` see every operation, also those that are short enough to be run at once."""
    monkeypatch.setattr(sessions.Executor, "run", run)
    monkeypatch.setattr(sessions.Executor, "run_plain", lambda self, operation, room: None)


@contextmanager
def pair() -> Iterator[tuple[State, State]]:
    """Two members' states that have had the same life so far."""
    states = [State.create(SimDisk(), "s", FIRST) for _ in range(2)]
    for state in states:
        hand = Hand(state)
        hand.run(LeaseGrant(7, 30.0), Put(b"k", b"1", 7), Put(b"l", b"2" * 2000), Put(b"a", b"3"))
    yield states[0], states[1]
    for state in states:
        state.close()


def entries(state: State, datas: Sequence[bytes]) -> list[Entry]:
    first, term = state.applied_index + 1, max(1, state.applied_term)
    return [Entry(index, term, EntryKind.NORMAL, data) for index, data in enumerate(datas, first)]


def frame(operation: Any, sequence: int = 5, session: int = 1, low: int = 5) -> bytes:
    return msgspec.msgpack.encode((20, session, low, ((sequence, operation),)))


def nested(depth: int) -> bytes:
    """The encoding of transactions inside each other, which the encoder would not make."""
    inner = encode(Put(b"k", b"deep"))
    operation = b"\x94\x04\x90\x91" * depth + inner + b"\x90" * depth
    return b"\x94\x14\x01\x05\x91" + b"\x92\x05" + operation


def some(rng: random.Random) -> bytes:
    """The data of an entry, in whatever state."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 40))
    if kind == 1:
        return nested(rng.randrange(1, 7))
    if kind < 6:
        return frame(
            raw(Operation, rng),
            sequence=rng.choice((5, 6, 7, 8, (1 << 63) - 1)),
            session=rng.choice((1, 1, 1, 2)),
            low=rng.choice((0, 5, 5, 6, (1 << 63) - 1)) if rng.random() < 0.2 else 5,
        )
    return encoded(Command, rng)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_entry_gets_the_same_answer_on_every_member(seed: int) -> None:
    rng = random.Random(seed)
    datas = [some(rng) for _ in range(rng.choice((1, 5, 12)))]
    with pair() as (one, other):
        together = one.apply(entries(one, datas))
        for position, data in enumerate(datas):  # however the entries come
            assert other.apply(entries(other, [data])) == [together[position]]
        digest = one.content_hash()
        assert digest == other.content_hash()
        assert not one.damage
        one._load()  # as after a restart
        assert one.content_hash() == digest
        Hand(one).do(Put(b"after", b"1"))


def test_the_trial_tries() -> None:
    """Enough of what is made up can be decoded, of every kind, for the test above to mean something."""
    rng = random.Random(1)
    kinds: Counter[type] = Counter()
    for _ in range(2000):
        with suppress(msgspec.MsgspecError):
            command = msgspec.msgpack.decode(some(rng), type=Command)
            kinds[type(command)] += 1
            if isinstance(command, ClientWrites):
                kinds.update(type(write.operation) for write in command.writes)
    assert min(kinds[kind] for kind in (*get_args(Command), *get_args(Operation))) >= 10, kinds


def test_every_number_in_a_command_has_bounds() -> None:
    """What cannot be decoded needs no check where it is used: so no field is forgotten."""
    assert unbounded(Command) == []
    assert set(get_args(Operation)) <= set(structs(Command))


@pytest.mark.parametrize("depth", [3, 50, 128, 129, 190, 400, 2000, 50_000])
def test_how_deep_a_transaction_can_be_decoded_changes_nothing(depth: int) -> None:
    """The decoder's patience depends on the thread's stack: the answer, and what is remembered, must not."""
    with pair() as (one, other):
        good = frame(Put(b"a", b"4"), sequence=6)
        before = one.content_hash()
        first, second = one.apply(entries(one, [nested(depth), good]))
        assert type(second[0]) is PutAnswer
        if depth <= 128:
            assert type(first[0]) is not Failed
        elif depth == 129:
            assert [answer.reason for answer in first if isinstance(answer, Failed)] == [Reason.TOO_LARGE]
        else:
            assert [answer.reason for answer in first if isinstance(answer, Failed)] == [Reason.INVALID]

        def deeper(left: int) -> None:
            if left:
                deeper(left - 1)
            else:
                other.apply(entries(other, [nested(depth), good]))

        deeper(500)
        assert one.content_hash() == other.content_hash() != before


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OverflowError("x"), AttributeError("x")])
def test_an_error_of_our_own_is_no_outage(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A command that raises an error after all has no effect, the others around it do, and applying continues."""
    with pair() as (one, other):
        datas = [frame(Put(b"a", b"%d" % n), sequence=5 + n) for n in range(5)]
        datas[2] = msgspec.msgpack.encode((20, 1, 5, [(7, Put(b"half", b"1")), (8, Put(b"boom", b"1"))]))
        original = sessions.Executor.run

        def run(self: Any, operation: Any, room: int, fresh: int) -> Any:
            if isinstance(operation, Put) and operation.key == b"boom":
                raise error
            return original(self, operation, room, fresh)

        patch_run(monkeypatch, run)
        answers = one.apply(entries(one, datas))
        assert [type(answer[0]) for answer in answers] == [PutAnswer, PutAnswer, Failed, PutAnswer, PutAnswer]
        assert len(answers[2]) == 2
        for data in datas:
            other.apply(entries(other, [data]))
        assert one.content_hash() == other.content_hash()
        assert one.range(Range(KeyRange(b"half")), page_items=1, page_bytes=99).count == 0  # type: ignore[union-attr]


def test_an_error_that_comes_of_what_else_is_in_the_batch_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which entries are applied together differs from member to member: what becomes of one must not hang on it."""
    with pair() as (one, other):
        datas = [frame(Put(b"a", b"%d" % n), sequence=5 + n) for n in range(5)]
        datas[3] = frame(Put(b"boom", b"1"), sequence=8)
        original = sessions.Executor.run

        def run(self: Any, operation: Any, room: int, fresh: int) -> Any:
            if operation.key == b"boom" and self._batch._layers["keys"].values:
                raise KeyError("something that is not written yet")
            return original(self, operation, room, fresh)

        patch_run(monkeypatch, run)
        together = one.apply(entries(one, datas))
        assert together == [other.apply(entries(other, [data]))[0] for data in datas]
        assert [type(answer[0]) for answer in together] == [PutAnswer] * 5
        assert one.content_hash() == other.content_hash()


def test_an_error_of_our_own_is_no_outage_late_in_a_long_command_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a later turn than that in which the command began."""
    with pair() as (one, other):
        writes = [(5 + n, Put(b"a", b"%d" % n)) for n in range(9)]
        long = msgspec.msgpack.encode((20, 1, 5, [*writes, (14, Put(b"boom", b"1"))]))
        original = sessions.Executor.run

        def run(self: Any, operation: Any, room: int, fresh: int) -> Any:
            self.work += APPLY_WORK // 3
            if operation.key == b"boom":
                raise KeyError("x")
            return original(self, operation, room, fresh)

        patch_run(monkeypatch, run)
        datas = [frame(Put(b"b", b"1"), sequence=4, low=4), long, frame(Put(b"b", b"2"), sequence=15, low=4)]
        together = one.apply(entries(one, datas))
        assert together == [other.apply(entries(other, [data]))[0] for data in datas]
        assert [len(answers) for answers in together] == [1, 10, 1]
        assert {type(answer) for answer in together[1]} == {Failed}
        assert one.content_hash() == other.content_hash()


class Unheard(msgspec.Struct, frozen=True, array_like=True, tag=99):
    """A command of a version to come."""

    what: str


def test_a_command_of_a_newer_version_stops_the_member_and_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answering it as garbage would part this member from those that know it."""
    disk = SimDisk()
    hand = Hand(State.create(disk, "s", FIRST))
    monkeypatch.setitem(commands.SINCE, Unheard, 2)
    data = commands.encode(Unheard("x"))  # type: ignore[arg-type]
    log = entries(hand.state, [encode(hand.writes(Put(b"a", b"1"))), data, encode(hand.writes(Put(b"a", b"2")))])
    with pytest.raises(CommandUnknown, match=f"log entry {log[1].index} .* version 2 .* knows 1"):
        hand.state.apply(log)
    assert hand.state.damage is None
    hand.state.close()
    again = State.open(disk, "s")
    assert again.applied_index == log[0].index - 1
    assert isinstance(again.apply(log[:1])[0][0], PutAnswer)  # all before it can be applied
    with pytest.raises(CommandUnknown):
        again.apply(log[1:])


def test_what_no_version_has_written_is_garbage_and_what_this_one_knows_is_done(hand: Hand) -> None:
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setitem(commands.SINCE, Put, 2)
        newer = commands.encode(hand.writes(Put(b"a", b"1"), low=1))
        nested = commands.encode(hand.writes(Txn((), (Put(b"b", b"1"),)), low=1))
    assert newer[0] == nested[0] == 0xC1
    known = newer[:8] + b"\0\1garbage"
    cut = [newer[:n] for n in range(1, 10)]
    log = entries(hand.state, [newer, nested, known, *cut, b"\xc1", b"\xc1" * 30])
    found = [answers[0] for answers in hand.state.apply(log)]
    assert [type(answer) for answer in found[:2]] == [PutAnswer, TxnAnswer]
    assert all(isinstance(answer, Failed) and answer.reason is Reason.INVALID for answer in found[2:])


@pytest.mark.parametrize("error", [OSError("gone"), DataCorrupted("rotten"), RuntimeError("closed"), MemoryError()])
def test_an_error_of_the_disk_is_no_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Another member's disk is well: were the command answered here, the members would part."""
    with pair() as (one, _):

        def get(family: str, key: bytes) -> bytes:
            raise error

        monkeypatch.setattr(one._batch, "_engine_get", get)
        with pytest.raises(type(error)):
            one.apply(entries(one, [frame(Put(b"a", b"4"))]))


def test_a_stored_record_that_cannot_be_read_is_damage(disk: RocksDisk, tmp_path: Path) -> None:
    hand = Hand(State.create(disk, str(tmp_path / "s"), FIRST))
    hand.do(Put(b"a", b"1"))
    hand.state._engine.write([("keys", b"a", b"short")])
    with pytest.raises(DataCorrupted):
        hand.do(Put(b"a", b"2"))
    hand.state.close()


def test_settings_that_cannot_be_lived_with_are_refused(hand: Hand) -> None:
    good = encode_settings(Settings())
    for bad in (
        b"",
        b"{",
        b"[" * 5000,
        good.replace(b'"heartbeat_interval":0.1', b'"heartbeat_interval":1e-300'),
        good.replace(b'"heartbeat_interval":0.1', b'"heartbeat_interval":-1'),
        good.replace(b'"election_timeout":1.0', b'"election_timeout":1e300'),
        good.replace(b'"max_page_items":1000', b'"max_page_items":9223372036854775808'),
        good.replace(b'"max_page_items":1000', b'"max_page_items":0'),
    ):
        assert bad != good
        answer = hand.apply(Configure(bad))
        assert isinstance(answer, Failed), bad
    assert isinstance(hand.apply(Configure(good)), Done)


def test_the_table_of_members_keeps_its_own_row(hand: Hand) -> None:
    """No member has id 0: the table keeps the last assigned id in its place."""
    path = hand.state._engine.path  # type: ignore[attr-defined]
    answers = hand.state.apply(entries(hand.state, [encode(RetireMember(0)), encode(RetireMember(-5))]))
    assert all(isinstance(answer[0], Failed) for answer in answers)
    hand.state.close()
    hand.state = State.open(RocksDisk(), path)


def test_writes_without_a_place_have_no_effect(hand: Hand) -> None:
    state = hand.state
    state.apply([Entry(state.applied_index + 1, 1, EntryKind.CONFIGURATION, b"\xc1")], {state.applied_index + 1: FIRST})
    assert state.configuration == FIRST
    command = ClientWrites(hand.session, 1, (ClientWrite(1, Txn()), ClientWrite(1, Txn())))
    assert len(hand.apply_all([command])[0]) == 2
    assert state.configuration == Configuration(voters=(1, 2, 3))
