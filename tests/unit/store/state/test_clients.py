"""Who opened a session and who made a lease: kept as long as either is there, and the same on every member."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.actors.member.client_list import client_of, clients_of, owner_of
from raykeeper.limits import MAX_IDENTITY_LETTERS
from raykeeper.schema.answers import Failed, SessionOpened
from raykeeper.schema.client_identity import ClientIdentity, cut, is_bounded
from raykeeper.schema.commands import (
    ClientWrite,
    ClientWrites,
    CloseSession,
    ExpireLeases,
    ExpireSessions,
    Expiry,
    OpenSession,
)
from raykeeper.schema.operations import KeyRange, LeaseGrant, LeaseRevoke, Operation, Put, Relation, Target, Txn
from raykeeper.schema.operations import TxnCompare as Compared
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State

WHO = ClientIdentity(host="rk1", pid=4711, started=12345, boot="b", node="ab" * 28, job="01000000", actor="worker")


class Process:
    """A client of a hand's state, with a session of its own."""

    def __init__(self, hand: Hand, nonce: bytes = b"process", who: ClientIdentity | None = WHO) -> None:
        opened = hand.apply(OpenSession(nonce, 5.0, who))
        assert isinstance(opened, SessionOpened)
        self.hand, self.session, self.sequence = hand, opened.session, 0

    def do(self, operation: Operation) -> object:
        self.sequence += 1
        write = ClientWrite(self.sequence, operation)
        ((answer,),) = self.hand.apply_all([ClientWrites(self.session, self.sequence, (write,))])
        return answer

    def grant(self, id: int, task: str = "shards.work") -> None:
        assert not isinstance(self.do(LeaseGrant(id, 10.0, task, 1000.5)), Failed)


def test_a_session_says_who_opened_it(hand: Hand) -> None:
    process = Process(hand)
    status = client_of(hand.state, process.session)
    assert status is not None
    assert (status.identity, status.open, status.leases) == (WHO, True, 0)
    hand.apply(CloseSession(process.session))
    assert client_of(hand.state, process.session) is None
    assert not hand.state.clients


def test_a_session_without_an_identity_is_listed_without_one(hand: Hand) -> None:
    listed, more = clients_of(hand.state, 0, 10)
    assert [(each.session, each.identity, each.open) for each in listed] == [(hand.session, None, True)]
    assert not more


def test_a_lease_says_who_made_it(hand: Hand) -> None:
    process = Process(hand)
    process.grant(7)
    owner = owner_of(hand.state, 7)
    assert owner is not None
    assert (owner.client.identity, owner.task, owner.at, owner.client.leases) == (WHO, "shards.work", 1000.5, 1)
    assert owner_of(hand.state, 8) is None


def test_the_owner_of_a_lease_outlives_its_session(hand: Hand) -> None:
    """A lock whose holder has been silent for long is what an operator asks about."""
    process = Process(hand)
    process.grant(7)
    process.grant(8)
    hand.apply(ExpireSessions(1, (Expiry(process.session, hand.state.sessions[process.session].heard),)))
    owner = owner_of(hand.state, 7)
    assert owner is not None
    assert (owner.client.identity, owner.client.open, owner.client.leases) == (WHO, False, 2)
    assert [each.session for each in clients_of(hand.state, hand.session, 10)[0]] == [process.session]
    hand.do(LeaseRevoke(7))
    assert process.session in hand.state.clients
    hand.apply(ExpireLeases(1, (Expiry(8, hand.state.leases[8].heard),)))
    assert not hand.state.clients


@pytest.mark.parametrize("closed", [False, True])
def test_what_is_rolled_back_counts_no_lease(hand: Hand, closed: bool) -> None:
    process, other = Process(hand), Process(hand, b"other", None)
    process.grant(7)
    if closed:
        hand.apply(CloseSession(process.session))
    fails = Put(b"k", b"v", lease=99)
    assert isinstance(other.do(Txn((), (fails,), ())), Failed)
    ending = Txn((), (LeaseGrant(9, 5.0), LeaseRevoke(7), LeaseRevoke(98)), ())
    assert isinstance((other if closed else process).do(ending), Failed)
    assert hand.state.clients[process.session].leases == 1
    assert hand.state.clients[process.session].open is not closed
    other.do(LeaseRevoke(7))
    assert (process.session in hand.state.clients) is not closed


def test_a_lease_made_in_a_transaction_that_does_not_hold_is_none(hand: Hand) -> None:
    process = Process(hand)
    never = Compared(KeyRange(b"k"), Target.VERSION, Relation.GREATER, 0)
    process.do(Txn((never,), (LeaseGrant(7, 5.0),), ()))
    assert hand.state.clients[process.session].leases == 0


def test_all_of_it_is_on_disk(disk: RocksDisk, tmp_path: Path) -> None:
    hand = Hand(State.create(disk, str(tmp_path / "state"), FIRST))
    process = Process(hand)
    process.grant(7)
    hand.apply(CloseSession(process.session))
    before, owner = hand.state.content_hash(), owner_of(hand.state, 7)
    hand.state.close()
    opened = State.open(disk, str(tmp_path / "state"))
    assert owner_of(opened, 7) == owner
    assert opened.content_hash() == before
    opened.close()


def test_members_that_disagree_on_it_are_found(disk: RocksDisk, tmp_path: Path) -> None:
    hashes = []
    for folder, who in (("a", WHO), ("b", ClientIdentity(host="another"))):
        hand = Hand(State.create(disk, str(tmp_path / folder), FIRST))
        Process(hand, who=who)
        hashes.append(hand.state.content_hash())
        hand.state.close()
    assert hashes[0] != hashes[1]


def test_what_is_too_long_is_cut_by_the_client_and_left_out_by_the_state(hand: Hand) -> None:
    long = "x" * (MAX_IDENTITY_LETTERS + 1)
    assert len(cut(long)) == MAX_IDENTITY_LETTERS
    assert is_bounded(ClientIdentity(host=cut(long)))
    process = Process(hand, who=ClientIdentity(host=long))
    assert process.session not in hand.state.clients
    process.grant(7, task=long)
    assert len(hand.state.leases[7].task) == MAX_IDENTITY_LETTERS


def test_clients_are_listed_in_parts(hand: Hand) -> None:
    sessions = [hand.session, *(Process(hand, b"%d" % n).session for n in range(5))]
    found: list[int] = []
    while True:
        some, more = clients_of(hand.state, found[-1] if found else 0, 4)
        found += [each.session for each in some]
        if not more:
            break
    assert found == sessions


def test_a_name_that_cannot_be_encoded_travels() -> None:
    assert cut("host\udcff") == "host?"
