"""The client's core of watches against members that are played, one thing at a time."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from lab.client.ear import Ear
from raykeeper.actors.client.core import subscription
from raykeeper.actors.client.core.router import Router
from raykeeper.actors.client.core.subscription import Phase, Subscription
from raykeeper.actors.client.core.watch_core import WatchCore
from raykeeper.errors import ClusterMismatch, CompactedError, InvalidArgument, Unavailable
from raykeeper.limits import (
    CLIENT_MAX_BACKOFF_S,
    MAX_WATCHES_PER_STREAM,
    WATCH_CREATES_AT_ONCE,
    WATCH_LAG_S,
    WATCH_LINGER_S,
    WATCH_POLL_GRACE_S,
    WATCH_POLL_S,
    Limits,
)
from raykeeper.schema.answers import Item
from raykeeper.schema.frames import (
    CreateWatch,
    Refusal,
    Refused,
    Reply,
    Request,
    WatchBatch,
    Watched,
    WatchEvent,
    WatchPoll,
)
from raykeeper.schema.operations import KeyRange

CLUSTER = 7
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Request).decode


class Play:
    """A core whose polls are answered by hand."""

    def __init__(self, members: tuple[int, ...] = (1, 2, 3), seed: int = 1) -> None:
        self.now = 100.0
        self.core = WatchCore(CLUSTER, Router(members), Limits(), random.Random(seed))
        self.polls: list[tuple[int, int, WatchPoll]] = []
        """Call, member and content of those without an answer."""

    def watch(self, key: bytes = b"a", end: bytes | None = None, start: int = 0, **options: Any) -> Subscription:
        options = {"puts": True, "deletes": True, "signal": Ear(), **options}
        watch = self.core.create(KeyRange(key, end), start_revision=start, **options)
        self.look()
        return watch

    def look(self) -> list[WatchPoll]:
        """Take what the core sends; the new polls."""
        new = []
        for call, member, frame in self.core.outgoing(self.now):
            poll = decode(frame)
            assert isinstance(poll, WatchPoll)
            assert poll.cluster == CLUSTER
            self.polls.append((call, member, poll))
            new.append(poll)
        return new

    def reply(self, reply: Reply, index: int = 0) -> None:
        call, _, _ = self.polls.pop(index)
        self.core.on_reply(call, encode(reply), self.now)
        self.look()

    def fail(self, index: int = 0) -> None:
        call, _, _ = self.polls.pop(index)
        self.core.on_failure(call, self.now, "it is dead")
        self.look()

    def wait(self, seconds: float) -> None:
        """Let time pass, as the owner's timer does."""
        until = self.now + seconds
        while True:
            wakeup = self.core.next_wakeup()
            self.now = until if wakeup is None else max(self.now, min(until, wakeup))
            self.core.on_time(self.now)
            self.look()
            if self.now >= until:
                return
            self.now += 0.001

    def begin(self, *starts: int, revision: int = 10) -> list[Subscription]:
        """A stream with these watches, confirmed; a poll hangs."""
        create = self.core.create
        watches = [
            create(KeyRange(b"a"), start_revision=start, puts=True, deletes=True, signal=Ear()) for start in starts
        ]
        self.look()
        created = tuple((each.id, each.start_revision or revision + 1) for each in self.poll.create)
        self.reply(Watched(1, revision, created, lagging=tuple(id for id, start in created if start <= revision)))
        return watches

    @property
    def poll(self) -> WatchPoll:
        return self.polls[-1][2]

    @property
    def member(self) -> int:
        return self.polls[-1][1]


def events(*revisions: int) -> tuple[WatchEvent, ...]:
    return tuple(WatchEvent(False, Item(b"a", b"v", 1, revision, 1, 0)) for revision in revisions)


def seen(taken: Any) -> list[int]:
    return [event.item.mod_revision for event in taken.events]


@pytest.fixture
def play() -> Play:
    return Play()


def test_a_watch_from_now_is_fixed_by_its_confirmation(play: Play) -> None:
    watch = play.watch()
    assert play.poll.first
    assert play.poll.create == (CreateWatch(1, KeyRange(b"a")),)
    assert not watch.fixed
    play.reply(Watched(1, 10, created=((1, 11),)))
    assert watch.fixed
    assert play.core.position(watch) == 10
    assert not play.poll.first
    assert play.poll.deadline == WATCH_POLL_S


def test_until_it_is_confirmed_now_stays_now(play: Play) -> None:
    play.watch()
    play.fail()
    assert play.poll.create[0].start_revision == 0
    play.reply(Watched(1, 10, created=((play.poll.create[0].id, 11),)))
    play.fail()
    assert play.poll.create[0].start_revision == 11, "confirmed, though it has seen no event yet"


def test_its_confirmation_may_come_with_its_first_event_in_the_answer_to_an_earlier_poll(play: Play) -> None:
    play.begin(5)
    late = play.watch()
    assert len(play.polls) == 2, "a poll that creates overtakes the one that hangs"
    id = play.poll.create[0].id
    play.reply(Watched(2, 12, created=((id, 12),), batches=(WatchBatch(id, 12, events(12)),)))
    assert late.fixed
    play.fail()
    assert {create.start_revision for create in play.poll.create} == {13}
    assert seen(play.core.deliver(late)) == [12]


def test_news_of_a_watch_that_was_not_confirmed_is_not_believed(play: Play) -> None:
    play.begin(5)
    late = play.watch()
    play.reply(Watched(2, 12, batches=(WatchBatch(play.poll.create[0].id, 12, events(12)),)))
    assert not late.fixed
    assert play.core.deliver(late).events == []


def test_the_progress_of_a_stream_says_nothing_of_a_watch_that_it_does_not_know_yet(play: Play) -> None:
    play.begin(5, revision=50)
    past = play.watch(start=20)
    play.reply(Watched(2, 60, lagging=(1,)))
    assert play.core.position(past) == 19
    play.reply(Watched(3, 60, created=((2, 20),), lagging=(2,)))
    assert play.core.position(past) == 19
    play.reply(Watched(4, 61, batches=(WatchBatch(2, 30, events(25)),), lagging=(2,)))
    assert seen(play.core.deliver(past)) == [25]
    assert play.core.position(past) == 30


def test_a_new_watch_that_reads_the_past_repeats_nothing(play: Play) -> None:
    play.begin(5, revision=50)
    past = play.watch(start=20)
    play.reply(Watched(2, 50))
    play.reply(Watched(3, 60, created=((2, 20),), batches=(WatchBatch(2, 40, events(20, 30)),), lagging=(2,)))
    assert seen(play.core.deliver(past)) == [20, 30]
    assert play.core.position(past) == 40


def test_answers_count_in_the_order_of_their_numbers(play: Play) -> None:
    (watch,) = play.begin(0)
    play.watch(b"other")
    play.reply(Watched(3, 13, created=((2, 13),), batches=(WatchBatch(1, 13, events(13)),)), index=1)
    assert play.core.position(watch) == 10
    play.reply(Watched(2, 12, batches=(WatchBatch(1, 12, events(11, 12)),)))
    assert seen(play.core.deliver(watch)) == [11, 12, 13]


def test_a_gap_that_nobody_can_fill_ends_the_stream(play: Play) -> None:
    (watch,) = play.begin(0)
    stream = play.poll.stream
    play.reply(Watched(3, 13, batches=(WatchBatch(1, 13, events(13)),)))
    assert play.poll.stream != stream
    assert play.poll.create[0].start_revision == 11
    assert seen(play.core.deliver(watch)) == []


@pytest.mark.parametrize(
    "answer",
    [
        Watched(0, 20, stale=True),
        Refused(Refusal.NOT_SERVING),
        Refused(Refusal.OVERLOADED),
        Refused(Refusal.TIMED_OUT),
        Watched(1, 20),
    ],
)
def test_whatever_goes_wrong_the_watches_go_on_elsewhere_from_where_they_stand(play: Play, answer: Reply) -> None:
    watch, other = play.begin(0, 3)
    play.reply(Watched(2, 15, batches=(WatchBatch(1, 15, events(12)),), lagging=(2,)))
    member, stream = play.member, play.poll.stream
    play.reply(answer)
    assert play.member != member
    assert play.poll.stream != stream
    assert play.poll.first
    assert [create.start_revision for create in play.poll.create] == [16, 3]
    assert seen(play.core.deliver(watch)) == [12]
    assert seen(play.core.deliver(other)) == []


def test_a_stale_answer_still_counts_before_the_stream_moves(play: Play) -> None:
    (watch,) = play.begin(0)
    play.reply(Watched(2, 12, batches=(WatchBatch(1, 12, events(12)),), stale=True))
    assert seen(play.core.deliver(watch)) == [12]
    assert play.poll.first
    assert play.poll.create[0].start_revision == 13


def test_an_old_streams_answers_are_not_heard(play: Play) -> None:
    (watch,) = play.begin(0)
    call = play.polls[0][0]
    play.fail()
    play.core.on_reply(call, encode(Watched(2, 12, batches=(WatchBatch(1, 12, events(12)),))), play.now)
    assert play.core.position(watch) == 10


def test_a_member_that_stands_still_is_left(play: Play) -> None:
    play.begin(0)
    play.wait(WATCH_POLL_S + WATCH_POLL_GRACE_S - 0.1)
    assert len(play.polls) == 1
    play.wait(0.2)
    assert len(play.polls) == 2
    assert play.polls[0][1] != play.polls[1][1]


def test_one_that_does_not_even_create_is_left_sooner(play: Play) -> None:
    play.watch()
    play.wait(2.0)
    assert len({member for _, member, _ in play.polls}) == 2


def test_a_stream_stays_while_its_member_answers(play: Play) -> None:
    play.begin(0)
    members = set()
    for number in range(2, 30):
        members.add(play.member)
        play.now += 3.0
        play.reply(Watched(number, 10))
    assert len(members) == 1


def test_chance_decides_who_is_asked_first() -> None:
    first = set()
    for seed in range(40):
        play = Play(seed=seed)
        play.watch()
        first.add(play.member)
    assert first == {1, 2, 3}


def test_a_member_that_lags_behind_what_the_process_knows_is_left(play: Play) -> None:
    play.begin(0)
    play.core.learn_revision(20, play.now)
    play.wait(WATCH_LAG_S - 0.1)
    assert len(play.polls) == 1
    play.wait(0.2)
    assert play.poll.deadline == 0.0, "asked how far it is"
    member = play.member
    play.reply(Watched(2, 19))
    assert play.member != member


def test_a_member_that_is_as_new_as_what_the_process_knows_is_not_left(play: Play) -> None:
    play.begin(0)
    member = play.member
    number, known = 1, 10
    for _ in range(20):
        play.wait(1.0)
        for _ in range(len(play.polls)):
            number += 1
            play.reply(Watched(number, known))  # as new as what was known a second ago
        known += 3
        play.core.learn_revision(known, play.now)
    assert {each for _, each, _ in play.polls} == {member}


def test_an_idle_watch_costs_one_poll_at_a_time(play: Play) -> None:
    play.begin(0)
    sent = 0
    for number in range(2, 12):
        play.wait(WATCH_POLL_S)
        assert len(play.polls) == 1
        sent += 1
        play.reply(Watched(number, 10))
    assert sent == 10


def test_nobody_answers(play: Play) -> None:
    """Every member in turn, with pauses that grow, and a look at who the members are."""
    play.watch()
    asked = []
    for _ in range(10):
        asked.append(play.member)
        play.fail()
        play.wait(CLIENT_MAX_BACKOFF_S)
    assert set(asked) == {1, 2, 3}
    assert play.core._router.wants_members
    assert play.core.problem


def test_a_process_of_a_cluster_that_is_another_one_now(play: Play) -> None:
    watch = play.watch()
    for _ in range(3):
        play.reply(Refused(Refusal.WRONG_CLUSTER))
        play.wait(0.5)
    assert isinstance(play.core.deliver(watch).error, ClusterMismatch)


def test_cancelled_watches_are_cancelled_with_the_next_poll(play: Play) -> None:
    watch, other = play.begin(0, 0)
    play.core.cancel(watch, play.now)
    assert play.look() == []
    play.reply(Watched(2, 12, batches=(WatchBatch(1, 12, events(12)), WatchBatch(2, 12, events(12)))))
    assert play.poll.cancel == (1,)
    assert play.core.deliver(watch) == ([], 10, True, None)
    assert seen(play.core.deliver(other)) == [12]


def test_a_stream_without_watches_lingers_for_the_next_one(play: Play) -> None:
    (watch,) = play.begin(0)
    stream = play.poll.stream
    play.core.cancel(watch, play.now)
    play.now += WATCH_LINGER_S / 2
    play.reply(Watched(2, 10))
    play.watch()
    assert play.poll.stream == stream
    assert play.poll.create
    play.core.cancel(next(iter(play.core._watches)), play.now)
    play.reply(Watched(3, 10))
    play.now += WATCH_LINGER_S
    play.reply(Watched(4, 10, created=((2, 11),)))
    assert play.polls == []
    assert play.core.next_wakeup() is None


def test_history_that_is_gone_ends_the_watch_behind_what_it_has_seen(play: Play) -> None:
    (watch,) = play.begin(3, revision=5)
    play.reply(Watched(2, 9, batches=(WatchBatch(1, 4, events(4)),), lagging=(1,)))
    play.fail()
    play.reply(Watched(1, 20, created=((2, 5),), compacted=((2, 15),)))
    taken = play.core.deliver(watch)
    assert seen(taken) == [4]
    assert taken.position == 4
    assert isinstance(taken.error, CompactedError)
    assert taken.error.compact_revision == 15


def test_a_creation_that_arrives_twice_ends_no_watch_that_has_seen_what_is_compacted(play: Play) -> None:
    (watch,) = play.begin(5)
    play.reply(Watched(2, 20, batches=(WatchBatch(1, 20, events(7)),)))
    # The poll that created it was carried twice, and late: the member starts over at 5, of which nothing is left.
    play.reply(Watched(3, 21, created=((1, 5),), compacted=((1, 15),)))
    taken = play.core.deliver(watch)
    assert taken.error is None
    assert seen(taken) == [7]
    assert [create.start_revision for create in play.poll.create] == [21], "it goes on where it stood, elsewhere"


def test_compaction_cannot_hurt_a_watch_that_has_not_begun(play: Play) -> None:
    play.begin(5)
    watch = play.watch()
    play.reply(Watched(2, 20, compacted=((2, 20),)))
    play.reply(Watched(3, 20, created=((2, 15),)))
    assert watch.phase is Phase.CREATING
    assert play.poll.create[0].start_revision == 0


def test_a_slow_consumer_rests_and_goes_on_from_history(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "WATCH_BUFFER_EVENTS", 3)
    slow, quick = play.begin(0, 0)
    play.reply(Watched(2, 14, batches=(WatchBatch(1, 14, events(11, 12, 13)), WatchBatch(2, 14, events(11)))))
    assert play.poll.cancel == (1,)
    assert slow.phase is Phase.PAUSED
    play.reply(Watched(3, 20, batches=(WatchBatch(2, 20, events(20)),)))
    assert seen(play.core.deliver(quick)) == [11, 20]
    taken = play.core.deliver(slow)
    assert (seen(taken), taken.position) == ([11, 12, 13], 14)
    play.look()
    assert play.poll.create[0].start_revision == 15
    assert play.poll.create[0].id == 3, "what is still on its way for the old one is not taken for news"


def test_a_resting_watch_rests_through_a_move(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "WATCH_BUFFER_EVENTS", 1)
    play.begin(0, 0)
    play.reply(Watched(2, 14, batches=(WatchBatch(1, 14, events(11)),)))
    play.fail()
    assert [create.start_revision for create in play.poll.create] == [15]


def test_thousands_of_watches_move_in_several_polls(play: Play) -> None:
    for _ in range(WATCH_CREATES_AT_ONCE + 5):
        play.core.create(KeyRange(b"a"), start_revision=5, puts=True, deletes=True, signal=Ear())
    play.look()
    assert len(play.poll.create) == WATCH_CREATES_AT_ONCE
    play.reply(Watched(1, 9, tuple((create.id, 5) for create in play.poll.create)))
    assert len(play.poll.create) == 5


def test_a_process_has_so_many_watches_and_no_more(play: Play) -> None:
    for _ in range(MAX_WATCHES_PER_STREAM):
        play.core.create(KeyRange(b"a"), puts=True, deletes=True, signal=Ear())
    with pytest.raises(Unavailable):
        play.watch()


def test_a_watch_that_no_member_takes_is_found_out(play: Play) -> None:
    good, bad = (play.core.create(KeyRange(key), puts=True, deletes=True, signal=Ear()) for key in (b"good", b"bad"))
    play.look()
    for _ in range(6):
        create = play.poll.create
        if any(each.keys.key == b"bad" for each in create):
            play.reply(Refused(Refusal.INVALID, message="no such thing"))
        elif create:
            play.reply(Watched(1, 5, tuple((each.id, 6) for each in create)))
    assert isinstance(play.core.deliver(bad).error, InvalidArgument)
    assert good.phase in (Phase.LIVE, Phase.CREATING)


def test_a_closed_core_ends_everything(play: Play) -> None:
    watch = play.watch()
    play.core.close(play.now)
    assert play.core.deliver(watch).over
    with pytest.raises(InvalidArgument):
        play.watch()
    assert play.core.next_wakeup() is None
