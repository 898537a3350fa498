"""A lone linearizable read: the leader's answer counts only with the word of a voter on its term."""

from __future__ import annotations

import itertools

import pytest

from lab.client.dispatch_play import Play, open_play
from raykeeper.actors.client.core.in_flight import OutgoingFrame
from raykeeper.errors import InvalidArgument
from raykeeper.limits import (
    CLIENT_ANSWERED_OTHERWISE,
    CLIENT_MAX_TERM_PAUSE_S,
    CLIENT_SLOW_VOTER_S,
    CLIENT_TERM_LOST_S,
    CLIENT_TERM_PAUSE_S,
    CLIENT_TERM_WAIT_S,
)
from raykeeper.schema.answers import PutAnswer, RangeAnswer
from raykeeper.schema.frames import (
    AskTerm,
    CurrentTerm,
    LoneRead,
    Read,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    UnconfirmedRead,
    Written,
)
from raykeeper.schema.operations import KeyRange, Range

ANSWER = RangeAnswer(5, (), 0)
OTHER = RangeAnswer(6, (), 0)


def ask(play: Play) -> tuple[list[object], OutgoingFrame, OutgoingFrame]:
    """A lone read, and its two frames."""
    outcomes = play.read()
    leader, request = play.next()
    assert isinstance(request, LoneRead)
    voter, question = play.next()
    assert isinstance(question, AskTerm)
    assert leader.member != voter.member
    assert not play.frames
    return outcomes, leader, voter  # type: ignore[return-value]


def unconfirmed(term: int, *voters: int) -> UnconfirmedRead:
    return UnconfirmedRead(ANSWER, term, voters)


def then_ordinary(play: Play, outcomes: list[object]) -> None:
    """The read is sent once more, as an ordinary one, and that is answered."""
    assert outcomes == []
    frame, request = play.next()
    assert isinstance(request, Reads)
    assert not play.frames
    play.reply(frame, ReadReply((OTHER,)))
    assert outcomes == [OTHER]


@pytest.mark.parametrize("leader_first", [True, False])
def test_it_counts_once_both_have_answered_in_any_order(leader_first: bool) -> None:
    play = Play()
    outcomes, leader, voter = ask(play)
    word = CurrentTerm(voter.member, 7)
    both = [(leader, unconfirmed(7, 2, 3)), (voter, word)]
    for frame, reply in both if leader_first else both[::-1]:
        assert outcomes == []
        play.reply(frame, reply)  # type: ignore[arg-type]
    assert outcomes == [ANSWER]
    assert play.core.confirmed_reads.confirmed == 1
    assert play.core._router.term == 7
    assert play.core.pending == 0
    ask(play)  # and the next one is of this kind again


@pytest.mark.parametrize("term", [6, 8, 0])
@pytest.mark.parametrize("leader_first", [True, False])
def test_a_voter_in_another_term_confirms_nothing(term: int, leader_first: bool) -> None:
    play = Play()
    outcomes, leader, voter = ask(play)
    both = [(leader, unconfirmed(7, 2, 3)), (voter, CurrentTerm(voter.member, term))]
    for frame, reply in both if leader_first else both[::-1]:
        play.reply(frame, reply)  # type: ignore[arg-type]
    then_ordinary(play, outcomes)
    assert play.core.confirmed_reads.unconfirmed == 1


def test_who_is_no_voter_of_the_leader_confirms_nothing() -> None:
    play = Play(members=(1, 2))
    outcomes, leader, voter = ask(play)
    play.reply(voter, CurrentTerm(2, 7))
    play.reply(leader, unconfirmed(7, 3, 4))
    then_ordinary(play, outcomes)


def test_the_word_of_another_member_than_the_one_asked_confirms_nothing() -> None:
    play = Play()
    outcomes, leader, voter = ask(play)
    play.reply(voter, CurrentTerm(5 - voter.member, 7))
    play.reply(leader, unconfirmed(7, 2, 3))
    then_ordinary(play, outcomes)


def test_a_word_from_before_the_read_confirms_nothing() -> None:
    play = Play()
    first, leader, old = ask(play)
    play.reply(leader, ReadReply((OTHER,)))  # the leader needs nobody
    assert first == [OTHER]
    play.now += CLIENT_TERM_PAUSE_S
    outcomes, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))
    play.reply(old, CurrentTerm(old.member, 7))
    assert outcomes == []
    play.reply(voter, CurrentTerm(voter.member, 7))
    assert outcomes == [ANSWER]


@pytest.mark.parametrize("trouble", ["silent", "broken", "refused", "unreadable", "of another kind"])
def test_without_a_word_the_read_goes_the_ordinary_way_in_time(trouble: str) -> None:
    play = Play()
    outcomes, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))
    if trouble == "silent":
        play.wait(CLIENT_TERM_WAIT_S - 0.001)
        assert not play.frames
        play.wait(0.002)
    elif trouble == "broken":
        play.fail(voter)
    elif trouble == "refused":
        play.reply(voter, Refused(Refusal.WRONG_CLUSTER))
    elif trouble == "of another kind":
        play.reply(voter, Written((PutAnswer(3),)))
    else:
        play.core.on_reply(voter.number, b"?", play.now)
        play.pump()
    then_ordinary(play, outcomes)
    assert play.core._router.leader == 1  # it has answered


def test_after_a_voter_has_failed_the_next_one_is_asked_after_pauses_that_grow() -> None:
    play = Play()
    pause, asked = CLIENT_TERM_PAUSE_S, []
    for _ in range(8):
        outcomes, leader, voter = ask(play)
        asked.append(voter.member)
        play.reply(leader, unconfirmed(7, 2, 3))
        play.fail(voter)
        then_ordinary(play, outcomes)
        play.now += pause - 0.01
        play.read()
        frame, request = play.next()
        assert isinstance(request, Reads)
        play.reply(frame, ReadReply((ANSWER,)))
        play.now += 0.01
        pause = min(2 * pause, CLIENT_MAX_TERM_PAUSE_S)
    assert asked == [asked[0], 5 - asked[0]] * 4
    _, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))
    play.reply(voter, CurrentTerm(voter.member, 7))
    _, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))
    play.fail(voter)
    play.next()
    play.now += CLIENT_TERM_PAUSE_S
    assert play.core.confirmed_reads.voter(1, play.now)


def answered_alone(play: Play) -> None:
    """A lone read that the leader answers as an ordinary one."""
    outcomes, leader, voter = ask(play)
    play.reply(leader, ReadReply((ANSWER,)))
    assert outcomes == [ANSWER]
    play.reply(voter, CurrentTerm(voter.member, 7))


def test_a_leader_that_answers_alone_each_time_is_not_asked_this_way_for_a_while() -> None:
    play = Play()
    for _ in range(CLIENT_ANSWERED_OTHERWISE):
        answered_alone(play)
    for pause in (CLIENT_TERM_PAUSE_S, 2 * CLIENT_TERM_PAUSE_S):
        play.now += pause - 0.01
        play.read()
        frame, request = play.next()
        assert isinstance(request, Reads)
        play.reply(frame, ReadReply((ANSWER,)))
        assert not play.frames
        play.now += 0.01
        answered_alone(play)


def test_a_leader_that_answers_alone_now_and_then_is_asked_this_way_all_the_time() -> None:
    """A pause of a second for each would leave hardly any read to this way."""
    play = Play()
    for _ in range(3):
        for _ in range(CLIENT_ANSWERED_OTHERWISE - 1):
            answered_alone(play)
        outcomes, leader, voter = ask(play)
        play.reply(leader, unconfirmed(7, 2, 3))
        play.reply(voter, CurrentTerm(voter.member, 7))
        assert outcomes == [ANSWER]


def test_only_ordinary_answers_in_a_row_and_of_one_leader_count() -> None:
    play = Play()
    for _ in range(CLIENT_ANSWERED_OTHERWISE - 1):
        answered_alone(play)
    outcomes, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))  # it has use for a voter, if not for this one
    play.reply(voter, CurrentTerm(voter.member, 8))
    then_ordinary(play, outcomes)
    play.now += CLIENT_TERM_PAUSE_S
    for _ in range(CLIENT_ANSWERED_OTHERWISE):
        answered_alone(play)
    play.now += 2 * CLIENT_TERM_PAUSE_S
    play.core._router.note_leader(2)
    for _ in range(CLIENT_ANSWERED_OTHERWISE - 1):
        answered_alone(play)
    ask(play)  # one that has just begun to lead may need a moment


def test_an_older_leader_that_takes_the_frame_for_none_harms_nobody() -> None:
    play = Play()
    outcomes, leader, _ = ask(play)
    play.reply(leader, Refused(Refusal.INVALID, message="Invalid value 30"))
    then_ordinary(play, outcomes)
    play.read()
    assert isinstance(play.next()[1], Reads), "not for a while"


def test_what_an_ordinary_read_is_refused_for_ends_it() -> None:
    play = Play()
    outcomes, leader, _ = ask(play)
    play.reply(leader, Refused(Refusal.INVALID, message="a key is too long"))
    frame, _ = play.next()
    play.reply(frame, Refused(Refusal.INVALID, message="a key is too long"))
    assert isinstance(outcomes[0], InvalidArgument)


def test_a_slow_voter_is_not_asked_again_if_there_is_another() -> None:
    play = Play()
    _, leader, slow = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))
    play.now += 2 * CLIENT_SLOW_VOTER_S
    play.reply(slow, CurrentTerm(slow.member, 7))
    _, leader, other = ask(play)
    assert other.member == 5 - slow.member
    play.now += 0.05  # both take their time: the voter is not to blame
    play.reply(leader, unconfirmed(7, 2, 3))
    play.now += 0.05
    play.reply(other, CurrentTerm(other.member, 7))
    assert ask(play)[2].member == other.member


@pytest.mark.parametrize("answers", ["never", "late"])
def test_a_voter_that_is_silent_costs_ever_less_while_another_is_slow_now_and_then(answers: str) -> None:
    """What another voter confirms says nothing of the silent one."""
    play, reads, stalls = Play(), 0, []
    while play.now < 600:
        play.now += 0.05
        play.read()
        leader, request = play.next()
        if isinstance(request, Reads):
            play.reply(leader, ReadReply((ANSWER,)))
            continue
        voter, _ = play.next()
        play.reply(leader, unconfirmed(7, 2, 3))
        if voter.member == 3:
            reads += 1
            if reads % 20 == 0:
                play.now += 2 * CLIENT_SLOW_VOTER_S
            play.reply(voter, CurrentTerm(3, 7))
            continue
        stalls.append(play.now)
        play.wait(CLIENT_TERM_WAIT_S + 0.001)
        play.reply(play.next()[0], ReadReply((ANSWER,)))
        if answers == "late":
            play.reply(voter, CurrentTerm(2, 7))
    assert reads > 5000
    assert len(stalls) > 1, "it is tried again"
    for times, (one, next_one) in enumerate(itertools.pairwise(stalls)):
        pause = min(CLIENT_MAX_TERM_PAUSE_S, CLIENT_TERM_PAUSE_S * 2**times)
        assert next_one - one >= (pause if answers == "late" else CLIENT_TERM_LOST_S)


@pytest.mark.parametrize("otherwise", [True, False])
@pytest.mark.parametrize("heard", ["a word", "a failure"])
def test_a_voter_never_has_two_questions_to_answer(heard: str, otherwise: bool) -> None:
    """By actor call both would wait until there is an actor again."""
    play = Play(members=(1, 2))

    def unanswered() -> OutgoingFrame:
        _, leader, voter = ask(play)
        if otherwise:
            play.reply(leader, ReadReply((ANSWER,)))
        else:
            play.reply(leader, unconfirmed(7, 2))
            play.wait(CLIENT_TERM_WAIT_S + 0.001)
            play.reply(play.next()[0], ReadReply((ANSWER,)))
        return voter

    def asks_nobody() -> None:
        play.read()
        frame, request = play.next()
        assert isinstance(request, Reads)
        assert not play.frames
        play.reply(frame, ReadReply((ANSWER,)))

    first = unanswered()
    play.now += CLIENT_MAX_TERM_PAUSE_S
    asks_nobody()
    if heard == "a word":
        play.reply(first, CurrentTerm(2, 7))
    else:
        play.fail(first)
    asked_at, second = play.now, unanswered()
    play.now = asked_at + CLIENT_TERM_LOST_S - 0.001
    play.reply(first, CurrentTerm(2, 7))  # once more
    asks_nobody()
    play.now += 0.002
    _, leader, voter = ask(play)
    play.reply(second, CurrentTerm(2, 7))
    play.reply(leader, unconfirmed(7, 2))
    play.reply(voter, CurrentTerm(2, 7))
    ask(play)


def test_a_read_that_became_late_leaves_its_voter_with_a_question() -> None:
    play = Play(members=(1, 2))
    _, leader, voter = ask(play)
    play.wait(0.55)
    play.reply(play.next()[0], ReadReply((ANSWER,)))
    play.now += CLIENT_MAX_TERM_PAUSE_S
    play.core._router.leader = leader.member
    play.read()
    frame, request = play.next()
    assert isinstance(request, Reads)
    assert not play.frames
    play.reply(frame, ReadReply((ANSWER,)))
    play.reply(voter, CurrentTerm(voter.member, 7))
    play.core._router.leader = leader.member
    ask(play)


def test_a_word_that_comes_late_counts_while_the_leader_has_not_answered() -> None:
    """Both are from after the read was made."""
    play = Play()
    outcomes, leader, voter = ask(play)
    play.wait(CLIENT_TERM_WAIT_S + 0.001)
    play.reply(voter, CurrentTerm(voter.member, 7))
    assert outcomes == []
    play.reply(leader, unconfirmed(7, 2, 3))
    assert outcomes == [ANSWER]


def test_a_near_voter_that_is_silent_leaves_its_turn_to_a_far_one() -> None:
    play = Play()
    play.core._router.near = frozenset({3})
    _, leader, voter = ask(play)
    assert voter.member == 3
    play.reply(leader, unconfirmed(7, 2, 3))
    play.fail(voter)
    play.reply(play.next()[0], ReadReply((ANSWER,)))
    play.now += CLIENT_TERM_PAUSE_S
    assert ask(play)[2].member == 2


@pytest.mark.parametrize("members", [(1, 2), (1, 2, 3)])
def test_after_the_leader_has_moved_to_the_only_voter_that_it_named_others_are_asked(members: tuple[int, ...]) -> None:
    play = Play(members=members)
    _, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2))
    play.reply(voter, CurrentTerm(voter.member, 7))
    if voter.member != 2:
        play.reply(play.next()[0], ReadReply((ANSWER,)))
        play.now += CLIENT_TERM_PAUSE_S
    play.core._router.leader = 2
    _, leader, voter = ask(play)
    assert leader.member == 2


def test_a_frame_that_became_late_with_its_answer_is_forgotten() -> None:
    play = Play()
    _, leader, voter = ask(play)
    play.reply(leader, unconfirmed(7, 2, 3))
    play.core._abandon(play.core._reads, leader.member)
    play.pump()
    play.reply(voter, CurrentTerm(voter.member, 7))
    assert leader.number not in play.core._in_flight


def test_only_a_lone_read_of_one_key_goes_this_way() -> None:
    play = open_play()
    play.read(serializable=True)
    assert isinstance(play.next()[1], Reads)
    ask(play)
    play.read()
    assert isinstance(play.next()[1], Reads)  # another is under way
    play = Play()
    play._submit(Read(Range(KeyRange(b"a", b"b"))))
    assert isinstance(play.next()[1], Reads)
    play = Play()
    for _ in range(2):
        play.core.submit(Read(Range(KeyRange(b"a"))), now=0.0, timeout=5.0, done=lambda outcome: None)
    play.pump()
    _, request = play.next()
    assert isinstance(request, Reads)
    assert len(request.reads) == 2
    assert not play.frames
    play = Play(leader=0)
    play.read()
    assert isinstance(play.next()[1], Reads)
    play = Play(members=(1,))
    play.read()
    assert isinstance(play.next()[1], Reads)


def test_the_leaders_refusal_leaves_nothing_behind() -> None:
    play = Play()
    outcomes, leader, voter = ask(play)
    play.reply(leader, Refused(Refusal.NOT_SERVING))
    play.reply(voter, CurrentTerm(voter.member, 7))
    frame, request = play.next()
    assert isinstance(request, Reads)
    play.reply(leader, unconfirmed(7, 2, 3))  # late, and twice
    assert outcomes == []
    play.reply(frame, ReadReply((OTHER,)))
    assert outcomes == [OTHER]


def test_a_leader_that_is_late_is_not_believed() -> None:
    """The read has gone to another member meanwhile."""
    play = Play()
    outcomes, leader, voter = ask(play)
    play.reply(voter, CurrentTerm(voter.member, 7))
    play.wait(0.55)
    frame, request = play.next()
    assert isinstance(request, Reads)
    play.reply(leader, unconfirmed(7, 2, 3))
    assert outcomes == []
    play.reply(frame, ReadReply((OTHER,)))
    assert outcomes == [OTHER]


def test_a_call_that_was_given_up_and_an_interrupt_leave_nothing_behind() -> None:
    play = Play()
    outcomes, leader, voter = ask(play)
    play.core.give_up(play.number, play.now)
    assert len(outcomes) == 1
    play.reply(voter, CurrentTerm(voter.member, 7))
    play.reply(leader, unconfirmed(7, 2, 3))
    assert len(outcomes) == 1
    outcomes, leader, voter = ask(play)
    play.core.resume(play.now)
    play.pump()
    then_ordinary(play, outcomes)
    play.reply(leader, unconfirmed(7, 2, 3))
    play.reply(voter, CurrentTerm(voter.member, 7))
    assert outcomes == [OTHER]
