"""The dispatch core: how requests gather in batches, and which outcome each gets."""

from __future__ import annotations

import msgspec
import pytest

from lab.client.dispatch_play import Play, applied, open_play
from lab.client.model import ModelWorld, Trouble
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
from raykeeper.limits import Limits
from raykeeper.schema.answers import Answer, Failed, PutAnswer, RangeAnswer, Reason
from raykeeper.schema.frames import (
    ReadReply,
    Refusal,
    Refused,
    Written,
)
from raykeeper.schema.operations import Put

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
    from raykeeper.actors.client.core.failures import failure

    for reason in Reason:
        assert isinstance(failure(Failed(reason), maybe_applied=False), KeeperError)


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
    assert "m3" in str(sent[0]), "it names the member that was asked last"


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
    play.core.on_reply(frame.number, garbage, play.now)
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


def test_a_call_whose_end_was_interrupted_ends_again() -> None:
    """Another thread waits for it: it is told twice rather than never, and takes what it is told first."""

    class Interrupt(BaseException):
        pass

    play = open_play()
    told: list[Answer | KeeperError] = []

    def done(outcome: Answer | KeeperError) -> None:
        told.append(outcome)
        if len(told) == 1:
            raise Interrupt

    play.core.submit(Put(b"k", b"v"), now=play.now, timeout=10.0, done=done)
    play.pump()
    with pytest.raises(Interrupt):
        play.reply(play.writes()[0], Written((PutAnswer(3),)))
    play.core.resume(play.now)
    assert told[0] == PutAnswer(3)
    assert len(told) == 2
    assert play.core.pending == 0
