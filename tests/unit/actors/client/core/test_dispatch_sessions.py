"""The dispatch core and its session: opened by a write, kept alive, given up; what that means for open writes."""

from __future__ import annotations

import pytest

from lab.client.dispatch_play import Play, applied, open_play
from raykeeper.errors import (
    InvalidArgument,
    RequestTimeout,
    SessionExpired,
    Unavailable,
)
from raykeeper.limits import Limits
from raykeeper.schema.answers import Done, Failed, PutAnswer, Reason
from raykeeper.schema.frames import (
    Close,
    KeepAlive,
    Open,
    Opened,
    Reads,
    Refusal,
    Refused,
    Written,
)


def test_a_session_is_opened_by_the_first_write_and_not_before() -> None:
    play = Play()
    play.read(serializable=True)
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
