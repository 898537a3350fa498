"""Administration of a member by frames: what goes through the log, what a leader refuses, and what follows of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from raykeeper.actors.member import proposals as proposals_module
from raykeeper.limits import Limits, Settings, Timings, encode_settings
from raykeeper.raft.messages import ChangeKind, MemberChange
from raykeeper.schema import commands
from raykeeper.schema.answers import Answer, Done, Failed, MemberReserved, Reason
from raykeeper.schema.commands import (
    Administration,
    ClientWrite,
    ClientWrites,
    Configure,
    RegisterMember,
    ReserveMember,
    RetireMember,
)
from raykeeper.schema.frames import Refusal, Refused, Reply, Writes, Written
from raykeeper.schema.operations import LeaseGrant, Put, Txn
from raykeeper.schema.operator_frames import Administer, ChangeMembership


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member() as made:
        until(lambda: made.loop.replica.node.committed_in_term)
        yield made


def ask(member: OneMember, request: Any) -> Any:
    got: list[Any] = []
    ready = threading.Event()

    def done(make: Callable[[], bytes]) -> None:
        got.append(msgspec.msgpack.decode(make(), type=Reply))
        ready.set()

    member.loop.handler.handle_request(msgspec.msgpack.encode(request), done)
    assert ready.wait(PATIENCE)
    return got[0]


def administer(member: OneMember, command: Administration) -> Answer:
    reply = ask(member, Administer(member.cluster, PATIENCE, command))
    assert isinstance(reply, Written), reply
    return reply.answers[0]


def change(member: OneMember, kind: ChangeKind, who: int) -> Answer:
    reply = ask(member, ChangeMembership(member.cluster, PATIENCE, (MemberChange(kind, who),)))
    assert isinstance(reply, Written), reply
    return reply.answers[0]


def test_a_member_is_reserved_learns_and_is_not_promoted_before_it_has_caught_up(member: OneMember) -> None:
    assert administer(member, ReserveMember(b"n", "node:10.0.0.2", "/data")) == MemberReserved(2)
    assert isinstance(change(member, ChangeKind.ADD_LEARNER, 2), Done)
    assert isinstance(change(member, ChangeKind.ADD_LEARNER, 2), Done), "asked again, nothing happens"
    assert member.loop.replica.state.configuration.learners == (2,)
    answer = change(member, ChangeKind.ADD_VOTER, 2)
    assert isinstance(answer, Failed)
    assert answer.reason is Reason.NOT_CAUGHT_UP
    assert isinstance(administer(member, RetireMember(2)), Failed), "it takes part"
    assert isinstance(change(member, ChangeKind.REMOVE, 2), Done)
    assert isinstance(change(member, ChangeKind.REMOVE, 2), Done)
    gone = change(member, ChangeKind.ADD_VOTER, 2)
    assert isinstance(gone, Failed)
    assert gone.reason is Reason.INVALID, "waiting for it to catch up would take forever"
    assert isinstance(administer(member, RetireMember(2)), Done)
    assert member.loop.replica.state.members.is_removed(2)


def test_the_last_voter_stays(member: OneMember) -> None:
    answer = change(member, ChangeKind.REMOVE, 1)
    assert isinstance(answer, Failed)
    assert answer.reason is Reason.INVALID
    assert "no voter would be left" in answer.message


def test_a_change_has_a_bounded_number_of_steps(member: OneMember) -> None:
    for steps in ((), (MemberChange(ChangeKind.ADD_LEARNER, 2),) * 100):
        reply = ask(member, ChangeMembership(member.cluster, PATIENCE, steps))
        assert isinstance(reply, Refused)
        assert reply.refusal is Refusal.INVALID


def test_members_follow_new_settings(member: OneMember) -> None:
    replica = member.loop.replica
    settings = Settings(
        timings=Timings(heartbeat_interval=0.05, election_timeout=0.5), limits=Limits(max_txn_operations=7)
    )
    assert isinstance(administer(member, Configure(encode_settings(settings))), Done)
    until(lambda: replica.limits.max_txn_operations == 7)
    assert (replica.timings.election_timeout, replica.node.config.election_ticks) == (0.5, 10)
    reply = ask(
        member, Writes(member.cluster, PATIENCE, ClientWrites(1, 1, (ClientWrite(1, Txn((), (Put(b"k", b""),) * 8)),)))
    )
    assert isinstance(reply, Refused)
    assert reply.refusal is Refusal.INVALID


def test_commands_that_not_every_member_knows_are_refused(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = member.loop.replica
    monkeypatch.setitem(commands.SINCE, LeaseGrant, 2)
    monkeypatch.setitem(commands.SINCE, Configure, 2)
    monkeypatch.setattr(proposals_module, "COMMANDS_VERSION", 2)
    assert replica.active_version == 1
    new = Administer(member.cluster, PATIENCE, Configure(encode_settings(Settings())))
    grant = Writes(member.cluster, PATIENCE, ClientWrites(9, 1, (ClientWrite(1, LeaseGrant(0, 5.0)),)))
    nested = Writes(member.cluster, PATIENCE, ClientWrites(9, 1, (ClientWrite(1, Put(b"k", b"v")),)))
    answer = ask(member, new).answers[0]
    assert answer.reason is Reason.INVALID
    assert "version 2" in answer.message
    refused = ask(member, grant)
    assert (type(refused), refused.refusal) == (Refused, Refusal.INVALID)
    assert isinstance(ask(member, nested), Written), "what all know goes on"

    assert isinstance(administer(member, RegisterMember(1, "node:10.0.0.1", "/data", 2)), Done)
    assert replica.active_version == 2
    assert isinstance(ask(member, new).answers[0], Done)
    assert isinstance(ask(member, grant), Written)
    # A member that has not told its version yet holds everybody back again.
    assert isinstance(change(member, ChangeKind.ADD_LEARNER, 5), Done)
    assert replica.active_version == 1
    assert isinstance(ask(member, grant), Refused)
