"""The table of members: ids that are never reused, one successor at a time, and what each member says of itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raykeeper.limits import MAX_REMOVED_MEMBERS, MAX_RESERVED_MEMBERS
from raykeeper.raft.messages import Configuration, Entry, EntryKind
from raykeeper.schema.answers import Answer, Done, Failed, MemberReserved, Reason
from raykeeper.schema.commands import Command, RegisterMember, ReserveMember, RetireMember
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk


class Keeper:
    """A state with three founders, and a disk under it that can be reopened."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.state = State.create(self.disk, "state", Configuration(voters=(1, 2, 3)))

    def do(self, command: Command) -> Answer:
        from msgspec.msgpack import encode

        index = self.state.applied_index + 1
        return self.state.apply([Entry(index, 1, EntryKind.NORMAL, encode(command))])[0][0]

    def configure(self, voters: Sequence[int], learners: Sequence[int] = ()) -> None:
        index = self.state.applied_index + 1
        new = Configuration(voters=tuple(voters), learners=tuple(learners), index=index)
        self.state.apply([Entry(index, 1, EntryKind.CONFIGURATION, b"")], {index: new})

    def reserve(self, nonce: bytes, replaces: int = 0) -> int:
        answer = self.do(ReserveMember(nonce, "place", "/data", replaces))
        assert isinstance(answer, MemberReserved)
        return answer.member

    def retire(self, member: int) -> Answer:
        return self.do(RetireMember(member))

    def reopen(self) -> None:
        self.state.close()
        self.state = State.open(self.disk, "state")


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def test_a_request_that_is_repeated_gets_the_same_id(keeper: Keeper) -> None:
    assert [keeper.reserve(b"a"), keeper.reserve(b"b"), keeper.reserve(b"a")] == [4, 5, 4]
    keeper.reopen()
    assert [keeper.reserve(b"a"), keeper.reserve(b"c")] == [4, 6]


def test_ids_are_never_given_out_twice(keeper: Keeper) -> None:
    assert keeper.reserve(b"a") == 4
    assert keeper.retire(4) == Done(1)
    keeper.reopen()
    assert keeper.reserve(b"b") == 5
    keeper.configure((1, 2, 3, 5))
    keeper.configure((1, 2, 3))
    keeper.retire(5)
    for nonce in range(MAX_REMOVED_MEMBERS + 5):
        keeper.retire(keeper.reserve(b"%d" % nonce))
    assert 4 not in keeper.state.members.by_id, "it does not remember forever"
    keeper.reopen()
    assert keeper.reserve(b"last") == MAX_REMOVED_MEMBERS + 11


def test_a_member_has_one_successor_at_a_time(keeper: Keeper) -> None:
    assert keeper.reserve(b"one supervisor", replaces=3) == 4
    assert keeper.reserve(b"another", replaces=3) == 4
    assert keeper.reserve(b"for another member", replaces=2) == 5
    keeper.retire(4)
    assert keeper.reserve(b"another", replaces=3) == 6
    keeper.configure((1, 2, 6), learners=(5,))
    assert keeper.state.members.by_id[6].replaces == 0, "its predecessor is gone"
    assert keeper.state.members.by_id[5].replaces == 2


def test_a_member_that_takes_part_cannot_be_retired(keeper: Keeper) -> None:
    for member in (1, 3, 4, 99):
        answer = keeper.retire(member)
        assert isinstance(answer, Failed)
        assert answer.reason is Reason.INVALID
    keeper.configure((1, 2))
    assert keeper.retire(3) == Done(1) == keeper.retire(3)
    assert keeper.state.members.is_removed(3)
    assert not keeper.state.members.is_removed(2)


def test_members_say_where_they_live_but_unknown_and_removed_ones_do_not(keeper: Keeper) -> None:
    assert keeper.do(RegisterMember(2, "node:10.0.0.2", "/data", 7)) == Done(1)
    known = keeper.state.members.by_id[2]
    assert (known.name, known.pin, known.base, known.version) == ("m2", "node:10.0.0.2", "/data", 7)
    new = keeper.reserve(b"n", replaces=1)
    assert keeper.do(RegisterMember(new, "elsewhere", "/data", 7)) == Done(1)
    assert keeper.state.members.by_id[new].replaces == 1
    keeper.retire(new)
    for member in (new, 9):
        assert isinstance(keeper.do(RegisterMember(member, "a", "/b", 1)), Failed)
    before = keeper.state.members.by_id
    keeper.reopen()
    assert keeper.state.members.by_id == before


def test_reservations_are_bounded(keeper: Keeper) -> None:
    for number in range(MAX_RESERVED_MEMBERS):
        keeper.reserve(b"%d" % number)
    answer = keeper.do(ReserveMember(b"too many", "", ""))
    assert isinstance(answer, Failed)
    assert answer.reason is Reason.FULL
    keeper.configure((1, 2, 3), learners=(4,))
    assert isinstance(keeper.do(ReserveMember(b"too many", "", "")), MemberReserved)
