"""Messages between members as Ray actor method calls, and, where there is one, by lane.

A call is one-way in spirit: it brings messages. But an actor call has an answer anyway, so the receiver's loop puts
into it whatever the turn that took the messages has to say to their sender, which for AppendEntries is nearly always
the response; only what comes up later makes a call of its own. Calls may overtake each other (members are threaded
actors), so frames are numbered, and those of one turn put in order again.

One thread per peer makes the calls, because Ray may block (an actor's name is looked up in its control store, a large
argument goes through its object store), and the loop must not. A peer has a few calls in flight; while it has no room,
messages gather, and travel together. A call without an answer for long is given up: it no longer counts against the
window, but it may still arrive, so the number of those is bounded too, and beyond it messages are dropped. Raft
recovers.

A call costs both sides a millisecond of their processors. So one that would bring nothing but the news that entries
are committed waits for a moment: as a rule the next entries, or a heartbeat, say so too.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ...limits import (
    COMMIT_NOTICE_PAUSE,
    MAX_GIVEN_UP_CALLS,
    MAX_PEER_CALLS,
    MAX_PEER_PENDING_BYTES,
    MAX_PEER_PENDING_MESSAGES,
    PEER_LOOKUP_PAUSE,
    TURN_BYTES,
)
from ..raft.messages import (
    AppendEntries,
    Heartbeat,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from .peer_lanes import PeerLanes
from .seam import Frame, Received, Slot, decode_frame, encode_frame

_OVERHEAD = 64
"""Bytes that a message without data is counted as."""


def size_of(message: Message) -> int:
    """Bytes of a message, roughly."""
    if isinstance(message, AppendEntries):
        return _OVERHEAD + sum(len(entry.data) + 16 for entry in message.entries)
    if isinstance(message, InstallSnapshot):
        return _OVERHEAD + len(message.data)
    return _OVERHEAD


def method_for(messages: Sequence[Message]) -> str:
    """The actor method, named after the paper's RPCs, that a frame goes by: that of its weightiest message."""
    if any(isinstance(message, InstallSnapshot | InstallSnapshotResponse) for message in messages):
        return "install_snapshot"
    if any(isinstance(message, RequestVote | RequestVoteResponse | TimeoutNow) for message in messages):
        return "request_vote"
    return "append_entries"


class Calls:
    """The transport of one member by actor calls.

    Args:
        cluster: cluster id; frames of another are dropped.
        member: this member's id.
        lookup: the actor handle of a member, looked up anew; raises ``ValueError`` if there is none. May block.
        deliver: puts a frame into the loop's inbox; False if it is full.
        unreachable: told that messages to a member did not arrive.
        give_up_after: seconds after which a call without an answer is given up.
        clock: seconds on the member's clock.
    """

    def __init__(
        self,
        *,
        cluster: int,
        member: int,
        lookup: Callable[[int], Any],
        deliver: Callable[[Received], bool],
        unreachable: Callable[[int], None],
        give_up_after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._member = member
        self._lookup = lookup
        self._deliver = deliver
        self._unreachable = unreachable
        self._give_up_after = give_up_after
        self._clock = clock
        self._epoch = time.time_ns()  # orders frames of one turn, no more: nothing rests on it
        self._peers: dict[int, _Peer] = {}
        self._slots: dict[int, list[Slot]] = {}
        self._held: dict[int, list[Message]] = {}
        self._notices: dict[int, AppendEntries] = {}
        """By peer: what it is to be told of the commit index, unless something else does first."""
        self.due = math.inf
        """When to call :meth:`tell`."""
        self._counters: Counter[str] = Counter()
        self._closed = False
        self.lanes: PeerLanes | None = None
        """Lanes to peers, which go before calls; set before the loop runs, if there are any."""

    # -- arriving -----------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> bytes:
        """See :class:`Transport`. Waits for the loop, but no longer than the sender would."""
        slot = Slot()
        if not self._take_in(frame, slot):
            return b""
        return slot.wait(self._give_up_after)

    def take_in(self, data: bytes) -> bool:
        """Take a frame that came by lane; False if it was dropped. For the loop."""
        return self._take_in(data, None)

    def _take_in(self, data: bytes, slot: Slot | None) -> bool:
        frame = decode_frame(data)
        if frame is None:
            self._counters["dropped: undecodable"] += 1
        elif frame.cluster != self._cluster:
            self._counters["dropped: another cluster's"] += 1
        elif frame.to != self._member:
            self._counters["dropped: another member's"] += 1
        elif not self._deliver(Received(frame, len(data), slot)):
            self._counters["dropped: inbox full"] += 1
        else:
            self._counters["received"] += 1
            return True
        return False

    def begin(self, received: Sequence[Received]) -> list[Message]:
        """See :class:`Transport`."""
        if len(received) > 1:
            received = sorted(received, key=lambda r: (r.frame.sender, r.frame.epoch, r.frame.sequence))
        messages: list[Message] = []
        for each in received:
            messages += each.frame.messages
            if each.slot is not None:
                self._slots.setdefault(each.frame.sender, []).append(each.slot)
        return messages

    # -- leaving ------------------------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """See :class:`Transport`. What carries data goes at once (the loop may be about to wait for its disk); what
        answers a frame of this turn rides on the answer to it."""
        if self.lanes is not None:
            messages = self._by_lane(self.lanes, messages)
        for message in messages:
            if isinstance(message, AppendEntries) and message.quiet:
                self._notices[message.to] = message
                self.due = min(self.due, self._clock() + COMMIT_NOTICE_PAUSE)
            elif message.to in self._slots and not isinstance(message, AppendEntries | InstallSnapshot):
                self._held.setdefault(message.to, []).append(message)
            else:
                if isinstance(message, AppendEntries | Heartbeat):
                    self._no_notice(message)
                self._peer(message.to).put(message)

    def tell(self) -> None:
        """See :class:`Transport`."""
        notices, self._notices = self._notices, {}
        self.due = math.inf
        for to, notice in notices.items():
            self._peer(to).put(notice)

    def _no_notice(self, message: AppendEntries | Heartbeat) -> None:
        """What is about to leave for a peer may tell it of the commit index."""
        notice = self._notices.get(message.to)
        if notice is not None and notice.term <= message.term and notice.leader_commit <= message.leader_commit:
            del self._notices[message.to]
            if not self._notices:
                self.due = math.inf

    def _by_lane(self, lanes: PeerLanes, messages: Sequence[Message]) -> list[Message]:
        """Send what can go by lane; what is left."""
        left: list[Message] = []
        groups: dict[int, list[Message]] = {}
        for message in messages:
            groups.setdefault(message.to, []).append(message)
        for to, group in groups.items():
            while group and lanes.is_open(to):
                count, size = 0, 0
                while count < len(group) and (not count or size < TURN_BYTES):
                    size += size_of(group[count])
                    count += 1
                peer = self._peer(to)
                if not lanes.carry(to, self._frame(peer, peer.next_sequence(), group[:count])):
                    break
                self._counters["sent by lane"] += 1
                del group[:count]
            left += group
        return left

    def end(self) -> None:
        """See :class:`Transport`."""
        for sender, slots in self._slots.items():
            held = self._held.get(sender)
            for slot in slots:
                peer = self._peer(sender)
                if held and slot.fill(self._frame(peer, peer.next_sequence(), held)):
                    held = None
                else:
                    slot.fill(b"")
            for message in held or ():
                self._peer(sender).put(message)
        self._slots.clear()
        self._held.clear()

    def counters(self) -> dict[str, int]:
        """See :class:`Transport`."""
        return dict(self._counters)

    def close(self) -> None:
        """See :class:`Transport`."""
        self._closed = True
        for peer in list(self._peers.values()):
            peer.close()

    def _peer(self, member: int) -> _Peer:
        peer = self._peers.get(member)
        if peer is None:
            peer = self._peers[member] = _Peer(self, member)
        return peer

    def _frame(self, peer: _Peer, sequence: int, messages: Sequence[Message]) -> bytes:
        self._counters["sent"] += 1
        return encode_frame(Frame(self._cluster, self._member, peer.member, self._epoch, sequence, tuple(messages)))


class _Peer:
    """The way to one peer: what waits for it, what is under way, and the thread that makes the calls."""

    def __init__(self, calls: Calls, member: int) -> None:
        self.member = member
        self._calls = calls
        self._changed = threading.Condition(threading.Lock())
        self._sequence = 0
        self._pending: deque[Message] = deque()
        self._pending_bytes = 0
        self._under_way: dict[int, float] = {}
        """Calls in the window, by number: when they are to be given up."""
        self._given_up: set[int] = set()
        self._handle: Any = None
        self._closed = False
        threading.Thread(target=self._run, name=f"to member {member}", daemon=True).start()

    def next_sequence(self) -> int:
        with self._changed:
            self._sequence += 1
            return self._sequence

    def put(self, message: Message) -> None:
        size = size_of(message)
        with self._changed:
            if len(self._given_up) >= MAX_GIVEN_UP_CALLS:
                self._drop(1, "dropped: peer does not answer")
                return
            while self._pending and (
                len(self._pending) >= MAX_PEER_PENDING_MESSAGES or self._pending_bytes + size > MAX_PEER_PENDING_BYTES
            ):
                self._pending_bytes -= size_of(self._pending.popleft())
                self._drop(1, "dropped: peer too slow")
            self._pending.append(message)
            self._pending_bytes += size
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _drop(self, count: int, why: str) -> None:
        self._calls._counters[why] += count

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            messages = self._next()
            if messages is None:
                return
            handle = self._handle or self._find()
            if handle is None:
                self._lost("dropped: peer not found", len(messages))
                with self._changed:
                    self._clear("dropped: peer not found")
                    self._changed.wait_for(lambda: self._closed, PEER_LOOKUP_PAUSE)
                continue
            self._call(handle, messages)

    def _next(self) -> list[Message] | None:
        """Wait until messages may go; ``None`` once closed."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                now = self._calls._clock()
                late = [number for number, until in self._under_way.items() if until <= now]
                for number in late:
                    del self._under_way[number]
                    self._given_up.add(number)
                if late:
                    # What gathered meanwhile is as old as the silence.
                    self._clear("dropped: peer does not answer")
                    self._calls._unreachable(self.member)
                if self._pending and len(self._under_way) < MAX_PEER_CALLS:
                    break
                self._changed.wait(min(self._under_way.values()) - now if self._under_way else None)
            messages: list[Message] = []
            size = 0
            while self._pending and (not messages or size < TURN_BYTES):
                message = self._pending.popleft()
                size += size_of(message)
                messages.append(message)
            self._pending_bytes -= size
            return messages

    def _clear(self, why: str) -> None:
        self._drop(len(self._pending), why)
        self._pending.clear()
        self._pending_bytes = 0

    def _find(self) -> Any:
        try:
            self._handle = self._calls._lookup(self.member)
        except Exception:  # no such name, or Ray's control store does not answer: both mean not now
            return None
        return self._handle

    def _call(self, handle: Any, messages: list[Message]) -> None:
        number = self.next_sequence()
        frame = self._calls._frame(self, number, messages)
        with self._changed:
            self._under_way[number] = self._calls._clock() + self._calls._give_up_after
        try:
            future = self._bring(handle, method_for(messages), frame)
        except Exception:
            self._answered(number, handle, None)
            return
        future.add_done_callback(lambda done: self._answered(number, handle, done))

    def _bring(self, handle: Any, method: str, frame: bytes) -> Future[bytes]:
        """Have the peer take a frame; the answer is a frame, or nothing. All that leaves for a peer leaves here."""
        future: Future[bytes] = getattr(handle, method).remote(frame).future()
        return future

    def _answered(self, number: int, handle: Any, future: Any) -> None:
        """On a thread of Ray's: note that a call has ended, and pass its answer on. Must not call Ray."""
        try:
            answer = future.result() if future is not None else None
        except Exception:
            answer = None
        with self._changed:
            self._under_way.pop(number, None)
            self._given_up.discard(number)
            if answer is None and self._handle is handle:
                # Restarted in place, the handle would do; killed and created anew, it would not. Look it up.
                self._handle = None
            self._changed.notify()
        if answer is None:
            self._lost("failed calls", 1)
        elif answer:
            self._calls._take_in(answer, None)

    def _lost(self, why: str, count: int) -> None:
        self._drop(count, why)
        if not self._closed:
            self._calls._unreachable(self.member)
