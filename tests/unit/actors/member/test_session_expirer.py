"""The leader's part for sessions: those with signs of life live, silent ones end, whichever member leads."""

from __future__ import annotations

import msgspec
import pytest

from lab.store_model import FIRST, Hand
from lab.turns import turn_of
from raykeeper.actors.member.deadlines import ClusterTime
from raykeeper.actors.member.session_expirer import SessionExpirer
from raykeeper.raft.messages import Entry, EntryKind
from raykeeper.schema.answers import SessionOpened
from raykeeper.schema.commands import Command, OpenSession, RenewSessions
from raykeeper.schema.operations import Put
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

encode = msgspec.msgpack.Encoder().encode
HEARTBEAT = 0.1
TTL = 10.0


class Cluster:
    """One leader after the other over one log; what is proposed is committed with the next work."""

    def __init__(self) -> None:
        self.hand = Hand(State.create(SimDisk(), "state", FIRST))
        self.now = 100.0
        self.log: list[Command] = []
        self.proposed: list[Command] = []
        self.refuse = False
        self.time = ClusterTime(turn_of(lambda: self.hand.state), self._propose, self.now)
        self.keeper = SessionExpirer(turn_of(lambda: self.hand.state), self._propose, self.time)
        self.hand.term = 1
        self.lead()

    def _propose(self, command: Command) -> int:
        if self.refuse:
            return 0
        self.log.append(command)
        self.proposed.append(command)
        return self.hand.state.applied_index + len(self.log)

    def lead(self) -> None:
        self.keeper.stop()
        self.log.clear()
        self.hand.term += 1
        self.hand.apply_all([None])
        self.time.lead(self.hand.term, self.now)
        self.keeper.lead(self.hand.term, self.now)
        self.work(0.001)  # so that it has a reading that differs from the last one

    def commit(self) -> None:
        state, log = self.hand.state, self.log
        self.log = []
        first = state.applied_index + 1
        entries = [Entry(first + n, self.hand.term, EntryKind.NORMAL, encode(each)) for n, each in enumerate(log)]
        state.apply(entries)
        self.time.applied(self.now)
        self.keeper.applied()

    def work(self, seconds: float = 0.0) -> None:
        until = self.now + seconds
        while True:
            self.time.work(self.now, HEARTBEAT)
            self.keeper.work(self.now, HEARTBEAT)
            self.commit()
            if self.now >= until:
                return
            self.now = min(until, self.now + HEARTBEAT)

    def open(self) -> int:
        opened = self.hand.apply(OpenSession(b"%f" % self.now, TTL))
        assert isinstance(opened, SessionOpened)
        self.keeper.opened(opened.session, self.now)
        return opened.session

    def keep(self, session: int) -> list[bool | None]:
        answers: list[bool | None] = []
        self.keeper.keep_alive(session, self.now, answers.append)
        return answers

    def alive(self, session: int) -> bool:
        return session in self.hand.state.sessions


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_silent_session_ends_with_its_ttl(cluster: Cluster) -> None:
    session = cluster.open()
    cluster.work(TTL - 0.1)
    assert cluster.alive(session)
    cluster.work(0.3)
    assert not cluster.alive(session)
    assert cluster.keep(session) == [False]


@pytest.mark.parametrize("life", [0.3, 1.0, 4.0, 9.0])
def test_a_silent_session_ends_though_no_leader_lives_as_long(cluster: Cluster, life: float) -> None:
    session = cluster.open()
    cluster.work(1.0)
    silent_since = cluster.now
    while cluster.alive(session):
        cluster.work(life)
        cluster.lead()
        assert cluster.now - silent_since < 2 * TTL + life + 1.0


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("life", [0.3, 4.0, 25.0])
def test_a_session_that_gives_signs_of_life_lives(cluster: Cluster, life: float, writes: bool) -> None:
    session = cluster.hand.session
    cluster.work(1.0)
    changes = 0.0
    for _ in range(40):
        cluster.work(TTL / 3)
        if writes:
            cluster.hand.do(Put(b"k", b"v"))
            assert cluster.keeper.heard(session, cluster.now) is True
        else:
            answers = cluster.keep(session)
            cluster.work()
            assert answers == [True]
        changes += TTL / 3 / life
        for _ in range(int(changes)):
            cluster.lead()
        changes %= 1.0
    assert cluster.alive(session)


def test_an_idle_client_costs_the_log_one_entry_for_each_leader(cluster: Cluster) -> None:
    session = cluster.open()
    cluster.lead()
    cluster.proposed.clear()
    for _ in range(30):
        cluster.keep(session)
        cluster.keep(session)
        cluster.work(TTL / 3)
    renewals = [command for command in cluster.proposed if isinstance(command, RenewSessions)]
    assert renewals == [RenewSessions(cluster.hand.term, (session,))]


def test_who_waits_for_the_log_is_answered_when_the_leader_goes(cluster: Cluster) -> None:
    session = cluster.open()
    cluster.lead()
    answers = cluster.keep(session)
    assert answers == []
    cluster.lead()
    assert answers == [None]


def test_a_sign_of_life_that_the_log_does_not_take_is_to_be_asked_again(cluster: Cluster) -> None:
    session = cluster.open()
    cluster.lead()
    cluster.refuse = True
    answers = cluster.keep(session)
    cluster.work(HEARTBEAT)
    assert answers == [None]
    cluster.refuse = False
    answers = cluster.keep(session)
    cluster.work(HEARTBEAT)
    assert answers == [True]
