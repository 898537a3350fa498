"""Messages as actor calls: what rides on answers, what is bounded, what is dropped. Peers are played, without Ray."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.patience import PATIENCE, until
from raykeeper.actors.transport.peer_frames import PeerFrame, ReceivedFrame, decode_frame, encode_frame
from raykeeper.actors.transport.peer_transport import PeerTransport, method_for
from raykeeper.limits import MAX_GIVEN_UP_CALLS, MAX_PEER_CALLS
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    Message,
    RequestVote,
)

CLUSTER = 77


def heartbeat(context: int = 0, *, sender: int = 1, to: int = 2) -> Heartbeat:
    return Heartbeat(sender, to, 1, 0, context)


def response(context: int = 0, *, sender: int = 2, to: int = 1) -> HeartbeatResponse:
    return HeartbeatResponse(sender, to, 1, context)


def append(n: int) -> AppendEntries:
    return AppendEntries(1, 2, 1, n, 1, 0, (Entry(n + 1, 1, EntryKind.NORMAL, b"x" * 100),))


class PlayedPeer:
    """Stands where an actor handle would: notes calls and leaves their answers open."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, PeerFrame, Future[bytes]]] = []
        self._changed = threading.Condition()

    def __getattr__(self, method: str) -> Any:
        peer = self

        class Method:
            def remote(self, frame: bytes) -> Any:
                decoded = decode_frame(frame)
                assert decoded is not None
                future: Future[bytes] = Future()
                with peer._changed:
                    peer.calls.append((method, decoded, future))
                    peer._changed.notify_all()

                class Reference:
                    def future(self) -> Future[bytes]:
                        return future

                return Reference()

        return Method()

    def wait(self, calls: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= calls, PATIENCE), self.calls


class Side:
    """A transport with everything around it played."""

    def __init__(self, member: int = 1, give_up_after: float = 30.0, room: bool = True) -> None:
        self.peer = PlayedPeer()
        self.lookups = 0
        self.inbox: list[ReceivedFrame] = []
        self.lost: list[int] = []
        self.room = room
        self.found = True
        self.calls = PeerTransport(
            cluster=CLUSTER,
            member=member,
            lookup=self._lookup,
            deliver=self._deliver,
            unreachable=self.lost.append,
            give_up_after=give_up_after,
        )

    def _lookup(self, member: int) -> Any:
        self.lookups += 1
        if not self.found:
            raise ValueError("no such actor")
        return self.peer

    def _deliver(self, received: ReceivedFrame) -> bool:
        if self.room:
            self.inbox.append(received)
        return self.room

    def dropped(self, why: str) -> int:
        return self.calls.counters().get(f"dropped: {why}", 0)


@pytest.fixture
def make() -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def new(*arguments: Any, **named: Any) -> Side:
        made.append(Side(*arguments, **named))
        return made[-1]

    yield new
    for side in made:
        side.calls.close()


def frame(
    sequence: int, *messages: Message, sender: int = 2, to: int = 1, cluster: int = CLUSTER, epoch: int = 1
) -> bytes:
    return encode_frame(PeerFrame(cluster, sender, to, epoch, sequence, messages))


def test_a_frame_goes_by_the_method_of_its_weightiest_message() -> None:
    assert method_for([heartbeat(), append(1)]) == "append_entries"
    assert method_for([heartbeat(), RequestVote(1, 2, 1, 0, 0)]) == "request_vote"


def test_messages_that_gather_travel_together(make: Callable[..., Side]) -> None:
    side = make()
    for n in range(MAX_PEER_CALLS):
        side.calls.send([append(n)])
        side.peer.wait(n + 1)
    side.calls.send([append(10), append(11)])
    side.calls.send([append(12)])
    assert len(side.peer.calls) == MAX_PEER_CALLS, "the window is full"
    side.peer.calls[0][2].set_result(b"")
    side.peer.wait(MAX_PEER_CALLS + 1)
    _, gathered, _ = side.peer.calls[-1]
    assert gathered.messages == (append(10), append(11), append(12))
    assert [call[1].sequence for call in side.peer.calls] == sorted(call[1].sequence for call in side.peer.calls)


def test_an_answer_to_a_call_is_delivered_like_a_frame(make: Callable[..., Side]) -> None:
    side = make()
    side.calls.send([heartbeat(5)])
    side.peer.wait(1)
    side.peer.calls[0][2].set_result(frame(1, response(5)))
    until(lambda: len(side.inbox) == 1)
    assert side.calls.begin_turn(side.inbox) == [response(5)]


def test_what_a_turn_says_to_a_caller_rides_on_the_answer(make: Callable[..., Side]) -> None:
    side = make(member=2)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(side.calls.receive, frame(1, heartbeat(1), sender=1, to=2))
        until(lambda: len(side.inbox) == 1)
        second = threads.submit(side.calls.receive, frame(2, heartbeat(2), sender=1, to=2))
        until(lambda: len(side.inbox) == 2)
        assert side.calls.begin_turn(side.inbox) == [heartbeat(1), heartbeat(2)]
        side.calls.send([response(1)])
        side.calls.send([response(2)])
        side.calls.end_turn()
        answers = [decode_frame(first.result(PATIENCE)), second.result(PATIENCE)]
    assert answers[0] is not None
    assert answers[0].messages == (response(1), response(2))  # type: ignore[union-attr]
    assert answers[1] == b""
    assert side.peer.calls == [], "no call of its own was made"


def test_what_carries_data_does_not_wait_for_the_end_of_the_turn(make: Callable[..., Side]) -> None:
    side = make(member=1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(side.calls.receive, frame(1, response()))
        until(lambda: len(side.inbox) == 1)
        side.calls.begin_turn(side.inbox)
        side.calls.send([append(1)])
        side.peer.wait(1)
        side.calls.end_turn()
        assert waiting.result(PATIENCE) == b""


def test_what_comes_up_later_makes_a_call_of_its_own(make: Callable[..., Side]) -> None:
    side = make(member=2)
    side.calls.send([AppendEntriesResponse(2, 1, 1, True, 3)])
    side.peer.wait(1)


def test_an_answer_that_nobody_waits_for_any_more_goes_by_call(make: Callable[..., Side]) -> None:
    side = make(member=2, give_up_after=0.01)
    assert side.calls.receive(frame(1, heartbeat(1), sender=1, to=2)) == b""
    side.calls.begin_turn(side.inbox)
    side.calls.send([response(1)])
    side.calls.end_turn()
    side.peer.wait(1)
    assert side.peer.calls[0][1].messages == (response(1),)


def test_frames_of_one_turn_are_put_in_the_order_they_were_sent(make: Callable[..., Side]) -> None:
    side = make(member=1)
    received = [
        ReceivedFrame(
            PeerFrame(CLUSTER, sender, 1, epoch, sequence, (response(10 * epoch + sequence, sender=sender),)), 10
        )
        for sender, epoch, sequence in [(3, 1, 1), (2, 2, 1), (2, 1, 9), (2, 1, 8)]
    ]
    contexts = [(m.sender, m.context) for m in side.calls.begin_turn(received) if isinstance(m, HeartbeatResponse)]
    assert contexts == [(2, 18), (2, 19), (2, 21), (3, 11)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xc1 no frame", "undecodable"),
        (b"", "undecodable"),
        (frame(1, response(), cluster=CLUSTER + 1), "another cluster's"),
        (frame(1, response(to=3), to=3), "another member's"),
        (frame(1, response(sender=3)), "undecodable"),
    ],
    ids=["noise", "nothing", "foreign cluster", "not to us", "a sender that is not the frame's"],
)
def test_what_is_not_for_this_member_is_dropped_and_counted(make: Callable[..., Side], data: bytes, why: str) -> None:
    side = make()
    assert side.calls.receive(data) == b""
    assert side.inbox == []
    assert side.dropped(why) == 1


def test_a_full_inbox_drops(make: Callable[..., Side]) -> None:
    side = make(room=False)
    assert side.calls.receive(frame(1, response())) == b""
    assert side.dropped("inbox full") == 1


def test_a_failed_call_is_reported_and_the_actor_looked_up_anew(make: Callable[..., Side]) -> None:
    side = make()
    side.calls.send([heartbeat(1)])
    side.peer.wait(1)
    side.peer.calls[0][2].set_exception(RuntimeError("the actor died"))
    until(lambda: side.lost == [2])
    side.calls.send([heartbeat(2)])
    side.peer.wait(2)
    assert side.lookups == 2


def test_a_peer_without_an_actor_is_reported_and_tried_again(make: Callable[..., Side]) -> None:
    side = make()
    side.found = False
    side.calls.send([heartbeat(1)])
    until(lambda: side.lost == [2])
    side.found = True

    def sent() -> bool:
        side.calls.send([heartbeat(2)])
        return bool(side.peer.calls)

    until(sent)


def test_calls_without_an_answer_are_given_up_and_bounded(make: Callable[..., Side]) -> None:
    side = make(give_up_after=0.005)

    def stuck() -> bool:
        side.calls.send([heartbeat()])
        return side.dropped("peer does not answer") > 0 and len(side.peer.calls) >= MAX_GIVEN_UP_CALLS

    until(stuck)
    until(lambda: side.lost.count(2) > 0)
    threading.Event().wait(0.05)
    made = len(side.peer.calls)
    assert made <= MAX_GIVEN_UP_CALLS + MAX_PEER_CALLS
    for _ in range(20):
        side.calls.send([heartbeat()])
    threading.Event().wait(0.02)
    assert len(side.peer.calls) == made, "a peer that never answers is called no more..."
    for _, _, future in list(side.peer.calls):
        future.set_result(b"")

    def again() -> bool:
        side.calls.send([heartbeat()])
        return len(side.peer.calls) > made

    until(again)  # ... until it answers


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_frame_is_no_frame(data: st.DataObject) -> None:
    whole = encode_frame(PeerFrame(CLUSTER, 1, 2, 3, 4, (append(5), heartbeat(6))))
    assert decode_frame(whole) is not None
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert decode_frame(whole[:cut]) is None
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    garbled = bytearray(whole)
    garbled[bit // 8] ^= 1 << bit % 8
    assert decode_frame(bytes(garbled)) is None
    assert decode_frame(data.draw(st.binary(max_size=100))) is None


def test_a_frame_of_a_newer_version_is_dropped(make: Callable[..., Side]) -> None:
    """One with a message that this version does not know: nothing of it is taken in, and the member lives on."""

    class Novelty(msgspec.Struct, frozen=True, array_like=True, tag=99):
        sender: int
        to: int

    side = make(2)
    body = msgspec.msgpack.encode((CLUSTER, 1, 2, 3, 4, (heartbeat(1), Novelty(1, 2))))
    assert side.calls.receive(zlib.crc32(body).to_bytes(4, "big") + body) == b""
    assert side.inbox == []
    assert side.dropped("undecodable") == 1
