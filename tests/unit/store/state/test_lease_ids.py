"""A lease's id is any number of 64 bits but 0, as in etcd."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.store_model import FIRST, Hand, plain
from raykeeper.schema.answers import Done, Failed, LeaseGranted, PutAnswer, RangeAnswer, Reason
from raykeeper.schema.operations import KeyRange, LeaseGrant, LeaseRevoke, Put, Relation, Target, Txn, TxnCompare
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State

LEAST, MOST = -(1 << 63), (1 << 63) - 1
IDS = (LEAST, LEAST + 1, -1, 1, MOST - 1, MOST)


@pytest.mark.parametrize("id", IDS)
def test_a_lease_of_any_id_takes_its_own_keys_along(disk: RocksDisk, tmp_path: Path, id: int) -> None:
    """... also after the state was closed and opened again, and those of the ids around it stay."""
    hand = Hand(State.create(disk, str(tmp_path / "more"), FIRST))
    for number, each in enumerate(IDS):
        assert hand.do(LeaseGrant(each, 10.0)) == LeaseGranted(each, 10.0, 1 + number)
        assert hand.do(Put(b"%d" % each, b"v", each)) == PutAnswer(2 + number)
    hand.state.close()
    hand.state = State.open(disk, str(tmp_path / "more"))
    assert plain(hand.do(LeaseGrant(id, 10.0))) == Failed(Reason.LEASE_EXISTS, id)
    assert list(hand.state.lease_keys(id)) == [b"%d" % id]
    assert hand.do(LeaseRevoke(id)) == Done(2 + len(IDS))
    left = hand.range(KeyRange(b"", b""))
    assert isinstance(left, RangeAnswer)
    assert {item.lease for item in left.items} == set(IDS) - {id} == set(hand.state.leases)
    hand.state.close()


def test_comparisons_know_the_sign_of_a_lease(hand: Hand) -> None:
    hand.run(LeaseGrant(-5, 10.0), Put(b"a", b"", -5))
    for relation, holds in ((Relation.LESS, True), (Relation.GREATER, False)):
        answer = hand.do(Txn((TxnCompare(KeyRange(b"a"), Target.LEASE, relation, 0),)))
        assert answer.succeeded is holds  # type: ignore[union-attr]


def test_the_lease_with_the_id_minus_one_is_one_like_any_other(hand: Hand) -> None:
    """It is not the sign to keep the key's lease."""
    hand.do(Put(b"a", b""))
    assert plain(hand.do(Put(b"a", b"", -1))) == Failed(Reason.LEASE_NOT_FOUND, -1)
    assert plain(hand.do(LeaseRevoke(-1))) == Failed(Reason.LEASE_NOT_FOUND, -1)
