"""The hub core, case by case: who is asked, what is sent again, and what each end means."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from clientlab.model import ModelWorld, Trouble, decode, encode
from raykeeper.actors.client.core import HubCore, Outgoing
from raykeeper.actors.protocol import (
    Close,
    KeepAlive,
    Open,
    Opened,
    Read,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    Writes,
    Written,
)
from raykeeper.errors import (
    ClusterMismatch,
    CompactedError,
    FutureRevisionError,
    InvalidArgument,
    KeeperError,
    LeaseNotFound,
    NoSpace,
    RequestTimeout,
    RequestTooLarge,
    SessionExpired,
    Unavailable,
)
from raykeeper.limits import Limits, Timings
from raykeeper.store.commands import (
    Answer,
    Done,
    Failed,
    KeyRange,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Reason,
)

READ = Read(Range(KeyRange(b"k")))


class Play:
    """A hub core whose frames are answered by hand."""

    def __init__(self, leader: int = 1, members: tuple[int, ...] = (1, 2, 3), limits: Limits | None = None) -> None:
        self.core = HubCore(7, members, limits or Limits(), Timings(), random.Random(3), leader=leader)
        self.now = 0.0
        self.frames: list[Outgoing] = []

    def put(self, key: bytes = b"k", **options: Any) -> list[Answer | KeeperError]:
        return self._submit(Put(key, b"v"), **options)

    def read(self, **options: Any) -> list[Answer | KeeperError]:
        return self._submit(READ, **options)

    def _submit(self, request: Any, *, timeout: float = 10.0, **options: Any) -> list[Answer | KeeperError]:
        outcomes: list[Answer | KeeperError] = []
        self.number = self.core.submit(request, now=self.now, timeout=timeout, done=outcomes.append, **options)
        self.pump()
        return outcomes

    def pump(self) -> None:
        self.frames += self.core.outgoing(self.now)

    def next(self) -> tuple[Outgoing, Request]:
        """The oldest frame that was not looked at yet."""
        frame = self.frames.pop(0)
        return frame, decode(frame.frame)

    def reply(self, frame: Outgoing, reply: Reply) -> None:
        self.core.on_reply(frame.call, encode(reply), self.now)
        self.pump()

    def fail(self, frame: Outgoing) -> None:
        self.core.on_failure(frame.call, self.now, "gone")
        self.pump()

    def wait(self, seconds: float) -> None:
        """Pass the time, waking up whenever the core wants to."""
        end = self.now + seconds
        while True:
            wakeup = self.core.next_wakeup()
            if wakeup is None or wakeup > end:
                self.now = end
                return
            self.now = max(self.now, wakeup)
            self.core.on_time(self.now)
            self.pump()

    def open_session(self, session: int = 50, ttl: float = 60.0) -> None:
        """Answer the opening that is asked for."""
        frame, request = self.next()
        assert isinstance(request, Open)
        self.reply(frame, Opened(session, ttl))

    def writes(self) -> tuple[Outgoing, Writes]:
        frame, request = self.next()
        assert isinstance(request, Writes)
        return frame, request


def open_play(**options: Any) -> Play:
    """With a session, and one write done."""
    play = Play(**options)
    done = play.put(b"first")
    play.open_session()
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(2),)))
    assert done == [PutAnswer(2)]
    return play


def applied(outcomes: list[Answer | KeeperError]) -> tuple[type, bool | None]:
    assert len(outcomes) == 1
    (error,) = outcomes
    assert isinstance(error, KeeperError)
    return type(error), error.applied


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_is_opened_by_the_first_write_and_not_before() -> None:
    play = Play()
    play.read()
    assert isinstance(play.next()[1], Reads)
    play.put()
    frame, request = play.next()
    assert isinstance(request, Open)
    assert not play.frames
    play.reply(frame, Opened(50, 60.0))
    _, writes = play.writes()
    assert (writes.commands.session, writes.commands.low) == (50, 1)
    assert [write.sequence for write in writes.commands.writes] == [1]


def test_a_retried_opening_has_the_same_nonce() -> None:
    play = Play()
    play.put()
    frame, first = play.next()
    play.reply(frame, Refused(Refusal.NOT_LEADER, 2))
    frame, second = play.next()
    assert frame.member == 2
    play.fail(frame)
    _, third = play.next()
    assert isinstance(first, Open)
    assert isinstance(second, Open)
    assert isinstance(third, Open)
    assert first.nonce == second.nonce == third.nonce


def test_the_answer_to_an_opening_given_up_as_lost_is_taken() -> None:
    play = Play()
    outcomes = play.put()
    late, _ = play.next()
    play.wait(0.6)
    again, request = play.next()
    assert isinstance(request, Open)
    play.reply(late, Opened(50, 60.0))
    play.reply(again, Opened(50, 60.0))
    frame, writes = play.writes()
    assert writes.commands.session == 50
    play.reply(frame, Written((PutAnswer(2),)))
    assert outcomes == [PutAnswer(2)]


def test_the_mark_rises_over_what_is_answered_and_what_is_given_up() -> None:
    play = open_play()
    stuck = play.put(b"a")
    number = play.number
    play.writes()
    play.put(b"b")
    frame, writes = play.writes()
    assert (writes.commands.low, writes.commands.writes[0].sequence) == (2, 3)
    play.reply(frame, Written((PutAnswer(4),)))
    play.put(b"c")
    frame, writes = play.writes()
    assert writes.commands.low == 2
    play.core.give_up(number, play.now)
    assert applied(stuck) == (RequestTimeout, None)
    play.put(b"d")
    _, writes = play.writes()
    assert writes.commands.low == 4


def test_a_session_is_kept_alive_when_nothing_else_is_written() -> None:
    play = open_play()
    assert play.core.next_wakeup() == pytest.approx(20.0)
    play.wait(15.0)
    play.put()
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(3),)))
    play.wait(19.9)
    assert not play.frames
    play.wait(0.2)
    frame, request = play.next()
    assert request == KeepAlive(7, 20.0, 50)
    play.wait(0.1)
    play.reply(frame, Written((Done(3),)))
    assert play.core.next_wakeup() == pytest.approx(35.0 + 20.0), "counted from the sending"


def test_calls_open_when_a_session_expires_end_and_are_never_sent_again() -> None:
    play = open_play()
    first, second = play.put(b"a"), play.put(b"b")
    frame, _ = play.writes()
    other, _ = play.writes()
    play.reply(frame, Written((Failed(Reason.SESSION_EXPIRED),)))
    assert applied(first) == (SessionExpired, None)
    assert applied(second) == (SessionExpired, None)
    play.reply(other, Written((PutAnswer(9),)))
    assert len(second) == 1
    assert not play.frames


def test_calls_never_sent_go_with_the_next_session() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=1))
    sent, unsent = play.put(b"a"), play.put(b"b")
    frame, _ = play.writes()
    play.reply(frame, Written((Failed(Reason.SESSION_EXPIRED),)))
    assert applied(sent) == (SessionExpired, None)
    play.open_session(51)
    frame, writes = play.writes()
    assert (writes.commands.session, writes.commands.low, writes.commands.writes[0].sequence) == (51, 1, 1)
    play.reply(frame, Written((PutAnswer(5),)))
    assert unsent == [PutAnswer(5)]


def test_an_expiry_with_nothing_open_is_silent() -> None:
    play = open_play()
    play.wait(20.1)
    frame, _ = play.next()
    play.reply(frame, Written((Failed(Reason.SESSION_EXPIRED),)))
    assert play.core.session == 0
    outcomes = play.put()
    play.open_session(51)
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(5),)))
    assert outcomes == [PutAnswer(5)]


def test_after_a_long_silence_a_new_session_is_opened_instead_of_trying_the_old_one() -> None:
    play = open_play()
    play.now = 100.0  # the process was stopped: no keep-alive went out
    play.put()
    play.open_session(51)
    assert play.writes()[1].commands.session == 51


def test_an_answer_of_an_old_session_does_not_end_the_new_one() -> None:
    play = open_play()
    play.put(b"a")
    play.put(b"b")
    first, _ = play.writes()
    second, _ = play.writes()
    play.reply(first, Written((Failed(Reason.SESSION_EXPIRED),)))
    play.put(b"c")
    play.wait(0.6)  # the second batch counts as lost
    play.open_session(51)
    play.reply(second, Written((Failed(Reason.SESSION_EXPIRED),)))
    assert play.core.session == 51


def test_open_sequences_stay_within_what_members_remember() -> None:
    play = open_play(limits=Limits(max_session_answers=2, max_calls_in_flight=8))
    for key in b"abcd":
        play.put(bytes([key]))
    sequences = [write.sequence for _ in play.frames[:] for write in play.writes()[1].commands.writes]
    assert sequences == [2, 3]


def test_closing_ends_all_calls_and_the_session() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=1))
    sent, unsent, read = play.put(b"a"), play.put(b"b"), play.read()
    play.frames.clear()
    play.core.close(play.now)
    play.pump()
    assert applied(sent) == (Unavailable, None)
    assert applied(unsent) == (Unavailable, False)
    assert applied(read) == (Unavailable, False)
    assert isinstance(play.next()[1], Close)
    assert play.core.next_wakeup() is None
    assert applied(play.put()) == (InvalidArgument, False)


# --- who is asked ----------------------------------------------------------------------------------------------------


def test_a_hint_is_followed_at_once() -> None:
    play = open_play()
    play.put()
    frame, _ = play.writes()
    play.reply(frame, Refused(Refusal.NOT_LEADER, 3))
    frame, writes = play.writes()
    assert (frame.member, writes.commands.writes[0].sequence) == (3, 2)
    play.reply(frame, Written((PutAnswer(3),)))
    assert play.core.leader == 3


def test_members_that_send_each_other_round_in_a_circle_are_asked_with_pauses() -> None:
    play = open_play()
    play.put()
    for _ in range(8):
        if not play.frames:
            break
        frame, _ = play.writes()
        play.reply(frame, Refused(Refusal.NOT_LEADER, 2 if frame.member != 2 else 3))
    assert not play.frames
    assert play.core.next_wakeup() < play.now + 0.1  # type: ignore[operator]


def test_without_a_leader_the_members_are_asked_in_turn_with_growing_pauses() -> None:
    play = open_play()
    play.put()
    asked, times = [], []
    for _ in range(12):
        while not play.frames:
            play.wait(0.05)
        frame, _ = play.writes()
        asked.append(frame.member)
        times.append(play.now)
        play.frames.clear()
        play.reply(frame, Refused(Refusal.NOT_LEADER))
    assert set(asked[:4]) == {1, 2, 3}
    assert times[-1] < 3.0


def test_silence_is_taken_for_a_failure_and_the_late_answer_is_taken_too() -> None:
    play = open_play()
    outcomes = play.put()
    late, _ = play.writes()
    play.wait(0.49)
    assert not play.frames
    play.wait(0.05)
    frame, writes = play.writes()
    assert frame.member != 1
    assert writes.commands.writes[0].sequence == 2
    play.reply(late, Written((PutAnswer(3),)))
    assert outcomes == [PutAnswer(3)]
    play.reply(frame, Written((PutAnswer(3),)))
    assert len(outcomes) == 1


def test_a_silent_leader_is_left_alone_for_a_while_even_if_others_still_name_it() -> None:
    play = open_play()
    play.put()
    play.next()
    play.wait(0.55)
    asked = []
    while play.now < 1.4:
        if play.frames:
            frame, _ = play.next()
            asked.append(frame.member)
            play.reply(frame, Refused(Refusal.NOT_LEADER, 1))
        play.wait(0.02)
    assert 1 not in asked
    assert {2, 3} <= set(asked)
    play.wait(1.0)
    assert 1 in [frame.member for frame in play.frames]


def test_a_broken_call_goes_to_another_member_at_once() -> None:
    play = open_play()
    outcomes = play.put()
    frame, _ = play.writes()
    play.fail(frame)
    frame, _ = play.writes()
    assert frame.member in (2, 3)
    play.reply(frame, Written((PutAnswer(3),)))
    assert outcomes == [PutAnswer(3)]


def test_slow_answers_make_the_hub_patient() -> None:
    play = open_play()
    for _ in range(30):
        play.put()
        frame, _ = play.writes()
        play.now += 0.4
        play.reply(frame, Written((PutAnswer(3),)))
    play.put()
    play.frames.clear()
    play.wait(1.0)
    assert not play.frames
    play.wait(1.0)
    assert play.frames


def test_linearizable_reads_go_to_the_leader_and_to_others_when_it_is_silent() -> None:
    play = Play(leader=2)
    outcomes = play.read()
    frame, request = play.next()
    assert frame.member == 2
    assert isinstance(request, Reads)
    assert not request.serializable
    play.wait(0.55)
    frame, _ = play.next()
    assert frame.member != 2
    play.reply(frame, ReadReply((RangeAnswer(5, (), 0),)))
    assert outcomes == [RangeAnswer(5, (), 0)]


def test_reads_that_did_not_fit_into_a_reply_are_asked_again() -> None:
    play = Play(limits=Limits(max_calls_in_flight=1))
    first = play.read()
    frame, _ = play.next()
    waiting = [play.read() for _ in range(3)]
    play.reply(frame, ReadReply((RangeAnswer(5, (), 0),)))
    frame, request = play.next()
    assert isinstance(request, Reads)
    assert len(request.reads) == 3
    play.reply(frame, ReadReply((RangeAnswer(6, (), 0), RangeAnswer(7, (), 0))))
    assert first
    assert waiting[0] == [RangeAnswer(6, (), 0)]
    assert waiting[1] == [RangeAnswer(7, (), 0)]
    assert waiting[2] == []
    frame, request = play.next()
    assert isinstance(request, Reads)
    assert len(request.reads) == 1
    play.reply(frame, ReadReply((RangeAnswer(8, (), 0),)))
    assert waiting[2] == [RangeAnswer(8, (), 0)]


def test_writes_that_did_not_fit_into_a_log_entry_are_sent_again_under_their_numbers() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=1))
    first = play.put()
    frame, _ = play.writes()
    waiting = [play.put() for _ in range(3)]
    play.reply(frame, Written((PutAnswer(3),)))
    frame, request = play.writes()
    numbers = [write.sequence for write in request.commands.writes]
    play.reply(frame, Written((PutAnswer(4),)))
    assert (first, waiting) == ([PutAnswer(3)], [[PutAnswer(4)], [], []])
    frame, request = play.writes()
    assert [write.sequence for write in request.commands.writes] == numbers[1:]
    assert request.commands.low == numbers[1]
    play.reply(frame, Written((PutAnswer(5), PutAnswer(6))))
    assert waiting == [[PutAnswer(4)], [PutAnswer(5)], [PutAnswer(6)]]


def test_serializable_reads_stay_with_one_member_until_it_fails() -> None:
    play = Play()
    members = set()
    for _ in range(10):
        play.read(serializable=True)
        frame, request = play.next()
        assert isinstance(request, Reads)
        assert request.serializable
        members.add(frame.member)
        play.reply(frame, ReadReply((RangeAnswer(5, (), 0),)))
    assert len(members) == 1
    play.read(serializable=True)
    frame, _ = play.next()
    play.reply(frame, Refused(Refusal.NOT_SERVING))
    assert {play.next()[0].member}.isdisjoint(members)


def test_an_unknown_leader_asks_for_a_new_list_of_members() -> None:
    play = open_play()
    outcomes = play.put()
    frame, _ = play.writes()
    play.reply(frame, Refused(Refusal.NOT_LEADER, 4))
    assert play.core.wants_members
    play.core.set_members((2, 3, 4))
    assert not play.core.wants_members
    play.wait(0.1)
    frame, _ = play.writes()
    play.reply(frame, Refused(Refusal.NOT_LEADER, 4))
    frame, _ = play.writes()
    assert frame.member == 4
    play.reply(frame, Written((PutAnswer(3),)))
    assert outcomes == [PutAnswer(3)]


def test_no_members_at_all() -> None:
    play = Play(members=())
    outcomes = play.put(timeout=1.0)
    assert not play.frames
    play.wait(2.0)
    assert applied(outcomes) == (Unavailable, False)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_what_gathers_while_batches_are_under_way_travels_together() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=2))
    outcomes = [play.put(b"%d" % i) for i in range(10)]
    assert len(play.frames) == 2
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(3),)))
    _, lone = play.writes()
    assert len(lone.commands.writes) == 1
    frame, batch = play.writes()
    assert len(batch.commands.writes) == 8
    play.reply(frame, Written(tuple(PutAnswer(i) for i in range(8))))
    assert [o for each in outcomes[2:] for o in each] == [PutAnswer(i) for i in range(8)]


def test_beside_a_large_batch_another_goes_once_it_is_worth_it() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=4, max_batch_requests=100))
    for _ in range(100):
        play.core.submit(Put(b"k", b"v"), now=play.now, timeout=10.0, done=lambda outcome: None)
    play.pump()
    play.frames.clear()
    for _ in range(12):
        play.put()
    assert not play.frames
    play.put()
    assert len(play.writes()[1].commands.writes) == 13


def test_a_batch_is_bounded_in_requests_and_bytes() -> None:
    play = open_play(limits=Limits(max_batch_requests=4, max_batch_bytes=4096, max_calls_in_flight=100))
    for i in range(6):
        size = None if i != 2 else 4096
        play.core.submit(Put(b"k", b"v"), now=0.0, timeout=10.0, done=lambda outcome: None, size=size)
    play.pump()
    sizes = [len(play.writes()[1].commands.writes) for _ in play.frames[:]]
    assert sizes == [2, 1, 3]


def test_after_a_failure_one_small_batch_probes_and_then_all_go() -> None:
    play = open_play()
    for _ in range(4):
        play.put()
    for _ in range(200):
        play.core.submit(Put(b"k", b"v"), now=play.now, timeout=10.0, done=lambda outcome: None)
    play.frames.clear()
    play.wait(0.55)
    frame, probe = play.writes()
    assert len(probe.commands.writes) <= 16
    assert not play.frames
    play.reply(frame, Written(tuple(PutAnswer(3) for _ in probe.commands.writes)))
    assert sum(len(play.writes()[1].commands.writes) for _ in play.frames[:]) == 204 - len(probe.commands.writes)


def test_too_many_waiting_requests_are_refused_at_once() -> None:
    play = open_play(limits=Limits(max_pending_requests=3))
    for _ in range(3):
        assert play.put() == []
    assert applied(play.put()) == (Unavailable, False)


def test_one_bad_request_does_not_spoil_the_others() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=1))
    play.put(b"first")
    outcomes = {key: play.put(key) for key in (b"a", b"b", b"bad", b"c", b"d")}
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(3),)))
    for _ in range(20):
        if not play.frames:
            break
        frame, request = play.writes()
        keys = [write.operation.key for write in request.commands.writes if isinstance(write.operation, Put)]
        bad = b"bad" in keys
        play.reply(frame, Refused(Refusal.INVALID, message="no") if bad else Written(tuple(PutAnswer(4) for _ in keys)))
    assert applied(outcomes.pop(b"bad")) == (InvalidArgument, False)
    assert all(each == [PutAnswer(4)] for each in outcomes.values())


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failed", "kind", "known"),
    [
        (Failed(Reason.COMPACTED, 7), CompactedError, False),
        (Failed(Reason.FUTURE_REVISION, 7), FutureRevisionError, False),
        (Failed(Reason.LEASE_NOT_FOUND), LeaseNotFound, False),
        (Failed(Reason.LEASE_EXISTS), InvalidArgument, False),
        (Failed(Reason.KEY_NOT_FOUND), InvalidArgument, False),
        (Failed(Reason.SESSION_EXPIRED), SessionExpired, None),
        (Failed(Reason.BELOW_MARK), RequestTimeout, None),
        (Failed(Reason.TOO_LARGE), RequestTooLarge, False),
        (Failed(Reason.FULL), Unavailable, False),
        (Failed(Reason.INVALID), InvalidArgument, False),
        (Failed(Reason.NO_SPACE), NoSpace, False),
    ],
)
def test_each_reason_has_its_error(failed: Failed, kind: type[KeeperError], known: bool | None) -> None:
    play = open_play()
    outcomes = play.put()
    frame, _ = play.writes()
    play.reply(frame, Written((failed,)))
    assert applied(outcomes) == (kind, known)


def test_every_reason_is_covered() -> None:
    from raykeeper.actors.client.outcome import failure

    for reason in Reason:
        assert isinstance(failure(Failed(reason), doubtful=False), KeeperError)


def test_a_full_table_proves_nothing_about_an_earlier_copy() -> None:
    play = open_play()
    outcomes = play.put()
    play.next()
    play.wait(0.55)
    frame, _ = play.writes()
    play.reply(frame, Written((Failed(Reason.FULL),)))
    assert applied(outcomes) == (Unavailable, None)


def test_a_timeout_of_zero_sends_nothing() -> None:
    play = open_play()
    assert applied(play.put(timeout=0)) == (RequestTimeout, False)
    assert applied(play.read(timeout=0)) == (RequestTimeout, False)
    assert not play.frames


def test_a_write_that_was_never_sent_is_known_not_to_be_applied() -> None:
    play = open_play(limits=Limits(max_calls_in_flight=1))
    play.put()
    outcomes = play.put(timeout=0.3)
    play.wait(0.4)
    assert applied(outcomes) == (RequestTimeout, False)


def test_a_write_that_was_sent_may_have_been_applied() -> None:
    play = open_play()
    outcomes = play.put(timeout=0.3)
    play.wait(0.4)
    assert applied(outcomes) == (RequestTimeout, None)


def test_a_read_that_times_out_had_no_effect() -> None:
    play = Play()
    outcomes = play.read(timeout=0.3)
    play.wait(0.4)
    assert applied(outcomes) == (RequestTimeout, False)


def test_no_quorum_is_unavailable() -> None:
    play = open_play()
    sent, read = play.put(timeout=2.0), play.read(timeout=2.0)
    play.wait(2.1)
    assert applied(sent) == (Unavailable, None)
    assert applied(read) == (Unavailable, False)
    assert "member" in str(sent[0])


def test_without_a_session_a_write_was_never_sent() -> None:
    play = Play()
    outcomes = play.put(timeout=2.0)
    play.wait(2.1)
    assert applied(outcomes) == (Unavailable, False)


def test_members_of_another_cluster() -> None:
    play = open_play()
    outcomes = play.put()
    for _ in range(3):
        frame, _ = play.next()
        play.reply(frame, Refused(Refusal.WRONG_CLUSTER))
        play.wait(0.2)
    assert applied(outcomes) == (ClusterMismatch, False)


@pytest.mark.parametrize("garbage", [b"", b"\xff", msgspec.msgpack.encode([1, []])])
def test_an_answer_that_makes_no_sense_is_a_failure_of_the_member(garbage: bytes) -> None:
    play = open_play()
    outcomes = play.put()
    frame, _ = play.writes()
    play.core.on_reply(frame.call, garbage, play.now)
    play.pump()
    frame, _ = play.writes()
    assert frame.member != 1
    play.reply(frame, Written((PutAnswer(3),)))
    assert outcomes == [PutAnswer(3)]


def test_an_oversized_request_is_refused_before_it_is_sent() -> None:
    play = open_play()
    assert applied(play.put(b"k" * 20_000)) == (RequestTooLarge, False)
    assert not play.frames


def test_a_callback_that_fails_harms_nobody_else() -> None:
    play = open_play()

    def broken(outcome: Answer | KeeperError) -> None:
        raise RuntimeError("not your fault")

    play.core.submit(Put(b"a", b""), now=0.0, timeout=10.0, done=broken)
    play.core.submit(Put(b"b", b""), now=0.0, timeout=10.0, done=(outcomes := []).append)
    play.pump()
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(3), PutAnswer(4))))
    assert outcomes == [PutAnswer(4)]


def test_an_idle_core_without_a_session_wants_no_wakeup() -> None:
    play = Play()
    play.read()
    frame, _ = play.next()
    play.reply(frame, ReadReply((RangeAnswer(5, (), 0),)))
    assert play.core.next_wakeup() is None


def test_a_cluster_that_is_gone_is_forgotten_after_a_while() -> None:
    """Without any call open, the hub keeps a lost session alive only as long as it may still be there."""
    world = ModelWorld(1, Trouble())
    world.put(b"k")
    world.run(1.0)
    world.mute = {1, 2, 3}
    world.run(30.0)
    assert world.core.next_wakeup() is None
