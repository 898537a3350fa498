"""The short way of common writes does exactly what the whole way does.

Two states are given the same writes, most of them such as the short way is for, or just not any more; one of the two
has no short way. Answers, counted work, and all that is stored are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lab.store_model import FIRST, Hand
from raykeeper.schema.answers import Failed, PutAnswer, Reason, TxnAnswer
from raykeeper.schema.operations import (
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
from raykeeper.store.state.executor import Executor
from raykeeper.store.state.machine import State
from raykeeper.store.state.stored_state import FAMILIES
from simulation.disk import SimDisk

KEYS = [b"a", b"b", b"c", b"d"]
VALUES = (b"", b"v", b"w" * 1500, b"x" * 5000)


SMALL: list[dict[str, int]] = [
    {},
    {},
    {"max_txn_operations": 1},
    {"max_page_bytes": 150},
    {"max_scanned_keys": 3},
    {"max_deleted_keys": 1},
]


class Pair:
    """Two states, of which one goes the whole way each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hands = [Hand(State.create(SimDisk(), name, FIRST)) for name in ("short", "whole")]
        self.short = 0
        """Writes that went the short way."""
        short, whole = (hand.state._executor for hand in self.hands)
        run_plain = short.run_plain

        def counted(operation: Operation, room: int) -> Any:
            answer = run_plain(operation, room)
            self.short += answer is not None
            return answer

        monkeypatch.setattr(short, "run_plain", counted)
        monkeypatch.setattr(whole, "run_plain", lambda operation, room: None)

    def run(self, *operations: Operation) -> list[Any]:
        answers, other = (hand.run(*operations) for hand in self.hands)
        assert answers == other
        short, whole = (self._seen(hand.state._executor) for hand in self.hands)
        assert short == whole
        return answers

    @staticmethod
    def _seen(executor: Executor) -> tuple[int, ...]:
        return executor.work, executor.written, executor.answer_bytes, executor.txns, executor._mvcc.revision

    def check_stored(self) -> None:
        short, whole = ([[*hand.state._engine.iterate(family)] for family in FAMILIES] for hand in self.hands)
        assert short == whole


def change_limits(hand: Hand, **limits: int) -> None:
    """To less than can be configured, too."""
    executor = hand.state._executor
    executor.limits = msgspec.structs.replace(executor.limits, **limits)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(monkeypatch)


@pytest.mark.parametrize("seed", range(20))
def test_the_short_way_does_what_the_whole_way_does(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)

    def put() -> Any:
        if rng.random() < 0.1:
            return rng.choice(
                [
                    Put(rng.choice(KEYS), None),
                    Put(rng.choice(KEYS), b"v", 7),
                    Put(rng.choice(KEYS), b"v", None),
                    Put(rng.choice(KEYS), b"v", 0, True),
                    Range(KeyRange(rng.choice(KEYS))),
                    Delete(KeyRange(rng.choice(KEYS))),
                ]
            )
        return Put(rng.choice(KEYS), rng.choice(VALUES))

    def compare() -> TxnCompare:
        target, keys = rng.choice([*Target]), KeyRange(rng.choice(KEYS), b"" if rng.random() < 0.05 else None)
        operand: Any = rng.choice(VALUES) if target is Target.VALUE else rng.randrange(8)
        if rng.random() < 0.03:
            operand = 1 if target is Target.VALUE else b"1"
        return TxnCompare(keys, target, rng.choice([*Relation]), operand)

    def operation() -> Operation:
        if rng.random() < 0.2:
            chosen: Operation = rng.choice((put, lambda: Delete(KeyRange(rng.choice(KEYS)))))()
            return chosen
        branches = [tuple(put() for _ in range(rng.choice((0, 1, 1, 2)))) for _ in range(2)]
        if rng.random() < 0.1:  # whose answer counts as more than nothing
            branches[0] = tuple(Put(b"many/%d" % number, b"v") for number in range(20))
        return Txn(tuple(compare() for _ in range(rng.randrange(3))), branches[0], branches[1])

    pair.run(LeaseGrant(7, 60.0), *[Put(key, b"v", 7 if rng.random() < 0.3 else 0) for key in KEYS])
    small = SMALL[seed % len(SMALL)]
    for hand in pair.hands:
        change_limits(hand, **small)
    answers = [answer for _ in range(40) for answer in pair.run(*[operation() for _ in range(rng.randrange(1, 6))])]
    assert any(isinstance(answer, TxnAnswer) and answer.succeeded and answer.responses for answer in answers)
    assert any(isinstance(answer, TxnAnswer) and not answer.succeeded for answer in answers)
    assert any(isinstance(answer, Failed) for answer in answers)
    assert pair.short > len(answers) / 4
    pair.check_stored()


CAS = Txn((TxnCompare(KeyRange(b"a"), Target.VERSION, Relation.GREATER, 0),), (Put(b"a", b"1"), Put(b"b", b"2")))


def test_a_transaction_is_one_revision(pair: Pair) -> None:
    (first,) = pair.run(Put(b"a", b"0"))
    (answer,) = pair.run(CAS)
    revision = first.revision + 1
    assert answer == TxnAnswer(revision, True, (PutAnswer(revision), PutAnswer(revision)))
    assert pair.short == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hand: change_limits(hand, max_session_answer_bytes=300), Reason.FULL),
        (lambda hand: setattr(hand.state._executor, "read_only", True), Reason.NO_SPACE),
    ],
    ids=["no room for the answer", "no space"],
)
def test_what_is_refused_is_refused_the_same_way(pair: Pair, change: Callable[[Hand], object], reason: Reason) -> None:
    pair.run(Put(b"a", b"0"))
    for hand in pair.hands:
        change(hand)
    refused = pair.run(*[CAS] * 4, *[Put(b"a", b"0")] * 4)
    assert {answer.reason for answer in refused if isinstance(answer, Failed)} == {reason}
    pair.check_stored()
