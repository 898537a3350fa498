"""When followers get entries, and learn what is committed: at once if the quorum needs them or something waits for it
there; otherwise after a pause, with all that has gathered. And who is told first where it was applied."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from lab.store_model import encode
from raykeeper.actors.member.events import Proposal, ReadAsked
from raykeeper.actors.member.replica import Replica
from raykeeper.limits import COMMIT_NOTICE_PAUSE_S, DEFERRED_SEND_PAUSE_S, Limits, Timings
from raykeeper.raft.messages import AppendEntries, Message
from raykeeper.schema.commands import ClientWrite, ClientWrites, OpenSession
from raykeeper.schema.frames import CreateWatch, WatchPoll
from raykeeper.schema.operations import KeyRange, Put
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from simulation.disk import SimDisk

MEMBERS = (1, 2, 3)


class Three:
    """Three replicas; messages arrive at once, and time passes when the test says so."""

    def __init__(self) -> None:
        founders = tuple(FirstMember(member, f"m{member}") for member in MEMBERS)
        self.now = 0.0
        self.messages: dict[int, deque[Message]] = {member: deque() for member in MEMBERS}
        self.notices: list[int] = []
        """Whom messages told nothing but a commit index."""
        self.replicas = {}
        for member in MEMBERS:
            self.replicas[member] = Replica(
                folder=DataDir.create(SimDisk(), f"m{member}", Identity("c", 7, member, f"m{member}", founders)),
                timings=Timings(heartbeat_interval=0.1, election_timeout=0.5),
                limits=Limits(),
                send=self._send,
                clock=lambda: self.now,
                rng=random.Random(member),
                background=lambda work, then: None,
            )
        while not (leaders := [member for member in MEMBERS if self.replicas[member].is_leader]):
            self.pass_time(0.1)
        (self.leader,) = leaders
        self.follower, self.other = (member for member in MEMBERS if member != self.leader)
        self.pass_time(0.1)
        self.pass_time(0.1)

    def _send(self, messages: Any) -> None:
        for message in messages:
            self.messages[message.to].append(message)
            if isinstance(message, AppendEntries) and message.commit_only:
                self.notices.append(message.to)

    def turn(self, member: int, *events: Any) -> None:
        messages = list(self.messages[member])
        self.messages[member].clear()
        self.replicas[member].turn(messages, events)

    def settle(self) -> None:
        while waiting := [member for member in MEMBERS if self.messages[member]]:
            for member in waiting:
                self.turn(member)

    def pass_time(self, seconds: float) -> None:
        """A turn of all members, those seconds later."""
        self.now += seconds
        for member in MEMBERS:
            self.turn(member)
        self.settle()

    def write(self) -> None:
        """Commit a command, and forget earlier notices."""
        self.notices = []
        data = encode(OpenSession(random.Random(self.now).randbytes(8), 60.0))
        self.turn(self.leader, Proposal(data, self.now + 10, self.now, lambda outcome: None))
        self.settle()

    def lag(self, member: int) -> int:
        """Entries that the leader has applied and this member has not."""
        applied = self.replicas[self.leader].state.applied_index
        return applied - self.replicas[member].state.applied_index


@pytest.fixture
def three() -> Three:
    return Three()


def test_the_news_waits_for_the_next_entries(three: Three) -> None:
    for count in range(1, 6):
        three.write()
        lags = [three.lag(three.follower), three.lag(three.other)]
        assert (sorted(lags), three.notices) == ([1, count], []), "the second one has got no entries yet"


def test_entries_and_news_wait_no_longer_than_their_pauses(three: Three) -> None:
    three.pass_time(COMMIT_NOTICE_PAUSE_S)  # between two heartbeats
    for _ in range(3):
        three.write()
    leader = three.replicas[three.leader]
    assert leader.next_wakeup() <= three.now + DEFERRED_SEND_PAUSE_S
    three.pass_time(DEFERRED_SEND_PAUSE_S)
    lasts = {replica.node.last_index for replica in three.replicas.values()}
    assert len(lasts) == 1, "all have all entries"
    assert sorted([three.lag(three.follower), three.lag(three.other)]) == [0, 1], (
        "and the later ones the news with them"
    )
    assert leader.next_wakeup() <= three.now + COMMIT_NOTICE_PAUSE_S
    three.pass_time(COMMIT_NOTICE_PAUSE_S)
    assert (three.lag(three.follower), three.lag(three.other)) == (0, 0)
    assert len(three.notices) == 1


def test_a_read_is_confirmed_by_others_if_the_first_one_asked_is_silent(three: Three) -> None:
    for silent in (three.follower, three.other):
        three.pass_time(0.1)
        allowed: list[Any] = []
        three.turn(three.leader, ReadAsked(three.now + 10, allowed.append))
        three.messages[silent].clear()
        three.settle()
        if allowed:
            continue  # it was not the one that is asked first
        three.now += DEFERRED_SEND_PAUSE_S
        three.turn(three.leader)
        three.settle()
        assert allowed == [None]
        return
    raise AssertionError("nobody was asked first")


def test_a_follower_that_is_polled_for_watches_is_told_at_once(three: Three) -> None:
    follower = three.replicas[three.follower]
    poll = WatchPoll(7, 5.0, b"stream", True, (CreateWatch(1, KeyRange(b"a", b"b"), 1),))
    follower.watches.poll(poll, three.now + 100, lambda make: None)
    three.pass_time(0.1)
    for _ in range(3):
        three.write()
        assert three.lag(three.follower) == 0
        assert three.lag(three.other) > 0
        assert three.notices == [three.follower]


def test_a_read_that_waits_for_a_revision_at_a_follower_asks_for_the_news(three: Three) -> None:
    three.write()
    assert three.lag(three.follower) == 1
    follower = three.replicas[three.follower]
    allowed: list[Any] = []
    at_least = follower.state.revision + 1
    three.turn(three.follower, ReadAsked(three.now + 10, allowed.append, serializable=True, at_least=at_least))
    three.settle()
    assert three.lag(three.follower) == 0
    assert three.notices == [three.follower]


def test_a_linearizable_read_at_a_follower_waits_for_nothing_else(three: Three) -> None:
    three.write()
    allowed: list[Any] = []
    three.turn(three.follower, ReadAsked(three.now + 10, allowed.append))
    three.settle()
    assert (allowed, three.lag(three.follower)) == ([None], 0)


def test_one_watch_is_told_before_the_writer_and_others_after_it(three: Three) -> None:
    leader = three.replicas[three.leader]
    opened: list[Any] = []
    three.turn(three.leader, Proposal(encode(OpenSession(b"12345678", 60.0)), three.now + 10, 0.0, opened.append))
    three.settle()
    session = opened[0][0].session
    told: list[str] = []
    for name in ("one", "two", "three"):
        for first in (True, False):  # the first poll is answered at once: the watch is there
            create = (CreateWatch(1, KeyRange(b"k"), 1),) if first else ()
            poll = WatchPoll(7, 5.0, name.encode(), first, create)

            def answered(make: Any, name: str = name, first: bool = first) -> None:
                if not first or make().batches:
                    told.append(name)

            leader.watches.poll(poll, three.now + 100, answered)
    put = ClientWrites(session, 1, (ClientWrite(1, Put(b"k", b"v")),))
    three.turn(three.leader, Proposal(encode(put), three.now + 10, three.now, lambda outcome: told.append("writer")))
    three.settle()
    assert told == ["one", "writer", "two", "three"]
