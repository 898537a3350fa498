"""What ends with a process that is dead: its session, and the leases that it alone has used."""

from __future__ import annotations

from lab.store_model import Hand, plain
from raykeeper.schema.answers import Answer, Done, Failed, LeaseGranted, Reason, SessionOpened
from raykeeper.schema.commands import ClientWrite, ClientWrites, EndDeadSessions, OpenSession, RenewLeases
from raykeeper.schema.operations import KeyRange, LeaseGrant, Operation, Put, Relation, Target, Txn, TxnCompare


class Process:
    """One that has a session."""

    def __init__(self, hand: Hand, name: bytes) -> None:
        self.hand = hand
        opened = hand.apply(OpenSession(name, 60.0))
        assert isinstance(opened, SessionOpened)
        self.session = opened.session
        self.sequence = 0

    def do(self, operation: Operation) -> Answer:
        self.sequence += 1
        writes = ClientWrites(self.session, self.sequence, (ClientWrite(self.sequence, operation),))
        ((answer,),) = self.hand.apply_all([writes])
        return answer

    def lease(self, id: int, *, owned: bool = True) -> None:
        assert isinstance(self.do(LeaseGrant(id, 10.0, owned=owned)), LeaseGranted)
        self.do(Put(b"of %d" % id, b"", id))

    def die(self) -> Answer:
        return self.hand.apply(EndDeadSessions((self.session,)))


def keys(hand: Hand) -> list[bytes]:
    return [item.key for item in hand.range(KeyRange(b"", b"")).items]  # type: ignore[union-attr]


def test_the_leases_that_a_dead_process_owns_end_and_no_others(hand: Hand) -> None:
    dead, alive = Process(hand, b"dead"), Process(hand, b"alive")
    dead.lease(1)
    dead.lease(2, owned=False)
    dead.lease(3)
    alive.lease(4)
    before = hand.state.revision
    assert isinstance(dead.die(), Done)
    assert keys(hand) == [b"of 2", b"of 4"]
    assert set(hand.state.leases) == {2, 4}
    assert hand.state.revision == before + 2, "a revision for each lease"
    assert dead.session not in hand.state.sessions
    assert alive.session in hand.state.sessions


def test_to_be_told_twice_changes_nothing(hand: Hand) -> None:
    dead = Process(hand, b"dead")
    dead.lease(1)
    dead.die()
    before = hand.state.revision
    assert dead.die() == Done(before)
    assert isinstance(hand.apply(EndDeadSessions((1 << 40,))), Done)


def test_what_a_dead_process_has_sent_has_no_effect_afterwards(hand: Hand) -> None:
    """A grant that was on its way would make a lease that nobody ends before its TTL."""
    dead = Process(hand, b"dead")
    dead.die()
    assert plain(dead.do(LeaseGrant(1, 10.0, owned=True))) == Failed(Reason.SESSION_EXPIRED)
    assert not hand.state.leases


def test_a_lease_that_another_process_keeps_alive_is_spared(hand: Hand) -> None:
    dead, other = Process(hand, b"dead"), Process(hand, b"other")
    for id in (1, 2, 3):
        dead.lease(id)
    hand.apply(RenewLeases(hand.term, (1,), other.session))
    hand.apply(RenewLeases(hand.term, (2,)))  # nobody knows by whom
    hand.apply(RenewLeases(hand.term, (3,), dead.session))
    dead.die()
    assert set(hand.state.leases) == {1, 2}


def test_what_was_used_by_another_is_owned_by_nobody_forever(hand: Hand) -> None:
    dead, other = Process(hand, b"dead"), Process(hand, b"other")
    dead.lease(1)
    hand.apply(RenewLeases(hand.term, (1,), other.session))
    hand.apply(RenewLeases(hand.term, (1,), dead.session))
    dead.do(Put(b"more", b"", 1))
    dead.die()
    other.die()
    assert set(hand.state.leases) == {1}


def test_a_lease_to_which_another_process_attaches_a_key_is_spared(hand: Hand) -> None:
    """Alone, or in a transaction; not by one that fails, or only keeps the lease of a key."""
    dead, other = Process(hand, b"dead"), Process(hand, b"other")
    for id in (1, 2, 3, 4):
        dead.lease(id)
    other.do(Put(b"x", b"", 1))
    other.do(Txn(success=(Put(b"y", b"", 2),)))
    never = TxnCompare(KeyRange(b"of 3"), Target.VERSION, Relation.EQUAL, 99)
    other.do(Txn((never,), (Put(b"z", b"", 3),)))
    failed = other.do(Txn(success=(Put(b"z", b"", 3), Put(b"none", b"", 77))))
    assert plain(failed) == Failed(Reason.LEASE_NOT_FOUND, 77)
    other.do(Put(b"of 4", b"changed", None))
    dead.die()
    assert set(hand.state.leases) == {1, 2}


def test_an_owner_is_known_after_the_state_was_loaded_again(hand: Hand) -> None:
    dead, other = Process(hand, b"dead"), Process(hand, b"other")
    dead.lease(1)
    dead.lease(2)
    other.do(Put(b"x", b"", 2))
    hand.state._reload()
    dead.die()
    assert set(hand.state.leases) == {2}


def test_more_than_one_command_may_delete_goes_in_several(hand: Hand) -> None:
    hand.configure(max_deleted_keys=5)
    dead = Process(hand, b"dead")
    for id in range(1, 10):
        dead.lease(id)
    times = 1
    while plain(dead.die()) == Failed(Reason.CHANGED):
        assert plain(dead.do(Put(b"late", b""))) == Failed(Reason.SESSION_EXPIRED)
        times += 1
    assert times > 1
    assert not hand.state.leases
    assert keys(hand) == []
