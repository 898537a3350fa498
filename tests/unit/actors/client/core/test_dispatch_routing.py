"""Which member the dispatch core asks: hints, silence, failures, answers that come late."""

from __future__ import annotations

from lab.client.dispatch_play import Play, applied, open_play
from raykeeper.errors import (
    Unavailable,
)
from raykeeper.limits import Limits
from raykeeper.schema.answers import PutAnswer, RangeAnswer
from raykeeper.schema.frames import (
    AskTerm,
    LoneRead,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Written,
)


def test_a_hint_is_followed_at_once() -> None:
    play = open_play()
    play.put()
    frame, _ = play.writes()
    play.reply(frame, Refused(Refusal.NOT_LEADER, 3))
    frame, writes = play.writes()
    assert (frame.member, writes.commands.writes[0].sequence) == (3, 2)
    play.reply(frame, Written((PutAnswer(3),)))
    assert play.core._router.leader == 3


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
    assert isinstance(request, LoneRead)
    frame, request = play.next()
    assert frame.member in (1, 3)
    assert isinstance(request, AskTerm)
    play.wait(0.55)
    frame, request = play.next()
    assert frame.member != 2
    assert isinstance(request, Reads)
    assert not request.serializable
    play.reply(frame, ReadReply((RangeAnswer(5, (), 0),)))
    assert outcomes == [RangeAnswer(5, (), 0)]


def test_reads_that_did_not_fit_into_a_reply_are_asked_again() -> None:
    play = Play(limits=Limits(max_calls_in_flight=1))
    first = play.read()
    frame, _ = play.next()
    play.frames.clear()
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
    assert play.core._router.wants_members
    play.core._router.set_members((2, 3, 4))
    assert not play.core._router.wants_members
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
