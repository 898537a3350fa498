"""Messages between members, by Ray actor calls or, where there is one, by lane.

The loop passes in the frames that arrived and gets their messages, passes messages to send, and says when a turn is
over. It does not know by which route a message travels. The transport may lose, repeat and reorder messages, as a
network may, but it never blocks the loop and never invents one.

A call delivers messages. Since every actor call has a result, the receiver's loop puts into it what that turn has to
send to the caller, which for AppendEntries is nearly always the response; only what comes up later needs a call of its
own. Calls may overtake each other (members are threaded actors), so frames are numbered, and those of one turn are
sorted.

One thread per peer makes the calls, because Ray may block (it looks up an actor's name in its control store, and passes
a large argument through its object store), and the loop must not. It starts with the first message for a call; if the
system has no thread left, messages gather until a later one finds one. A peer has a few calls in flight; while there is
no room for more, messages gather, and travel together. A call that has had no answer for a long time is given up: it no
longer counts against the window. It may still arrive, so the number of those is bounded too, and beyond that messages
are dropped, as Raft allows.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ...limits import (
    CLOCK_TOLD_FRAMES,
    MAX_GIVEN_UP_CALLS,
    MAX_PEER_CALLS,
    MAX_PEER_PENDING_BYTES,
    MAX_PEER_PENDING_MESSAGES,
    MAX_TRACED_ENTRIES,
    PEER_LOOKUP_PAUSE_S,
    TURN_BYTES,
)
from ...raft.messages import (
    AppendEntries,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from ..logs import MemberLog
from ..naming import member_name
from ..one_thread import OneThread
from .peer_clocks import PeerClocks
from .peer_frames import BarePeerFrame, EntryTrace, PeerFrame, ReceivedFrame, ReplySlot, decode_frame, encode_frame
from .peer_lanes import LaneLinks

_OVERHEAD = 64
"""Size in bytes that a message without data counts as."""


def size_of(message: Message) -> int:
    """Approximate size of a message in bytes."""
    if isinstance(message, AppendEntries):
        return _OVERHEAD + sum(len(entry.data) + 16 for entry in message.entries)
    if isinstance(message, InstallSnapshot):
        return _OVERHEAD + len(message.data)
    return _OVERHEAD


def method_for(messages: Sequence[Message]) -> str:
    """The actor method that carries a frame, named after one of the paper's RPCs: that of its largest kind of
    message."""
    if any(isinstance(message, InstallSnapshot | InstallSnapshotResponse) for message in messages):
        return "install_snapshot"
    if any(isinstance(message, RequestVote | RequestVoteResponse | TimeoutNow) for message in messages):
        return "request_vote"
    return "append_entries"


class PeerTransport:
    """The transport of one member: for its loop's thread, except where it says so.

    Args:
        cluster: cluster id; frames of another are dropped.
        member: this member's id.
        lookup: looks up the actor handle of a member; raises ``ValueError`` if there is none. May block.
        deliver: puts a frame into the loop's inbox; False if that is full.
        unreachable: called when messages to a member were not delivered.
        give_up_after: seconds after which a call without an answer is given up.
        clock: seconds on the member's clock.
        lanes: lanes to peers, preferred to calls; ``None`` for calls only.
        log: the transport's lines.
        clocks: compares the clocks of hosts.
        traced: by index, the traceparents of sampled entries; changed by its owner.
        trace_arrived: told which entries of a frame are sampled, before these are taken in.
    """

    def __init__(
        self,
        *,
        cluster: int,
        member: int,
        lookup: Callable[[int], Any],
        deliver: Callable[[ReceivedFrame], bool],
        unreachable: Callable[[int], None],
        give_up_after: float,
        clock: Callable[[], float] = time.monotonic,
        lanes: LaneLinks | None = None,
        log: MemberLog | None = None,
        clocks: PeerClocks | None = None,
        traced: Mapping[int, str] | None = None,
        trace_arrived: Callable[[Sequence[EntryTrace]], None] = lambda traces: None,
    ) -> None:
        self.log = log or MemberLog("transport", f"{cluster:x}", member_name(member))
        self._cluster = cluster
        self._member = member
        self._lookup = lookup
        self._deliver = deliver
        self._unreachable = unreachable
        self._give_up_after = give_up_after
        self._clock = clock
        self._epoch = time.time_ns()  # only orders frames of one turn: nothing else depends on it
        self._peers: dict[int, ActorLink] = {}
        self._slots: dict[int, list[ReplySlot]] = {}
        self._held: dict[int, list[Message]] = {}
        self._counters: Counter[str] = Counter()
        self.sent_bytes: Counter[int] = Counter()
        """Of frames, by peer..."""
        self.received_bytes: Counter[int] = Counter()
        """... and of those which came from it."""
        self.failures: Counter[int] = Counter()
        """Messages and calls to a peer that came to nothing, by peer."""
        self._closed = False
        self._lanes = lanes
        self._traced = {} if traced is None else traced
        self._trace_arrived = trace_arrived
        self.clocks = clocks or PeerClocks(self.log)
        """How far the clocks of other members' hosts are off."""

    # -- arriving -----------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> bytes:
        """Accept a frame from a peer's actor call, and return the frame that answers it, or nothing. Any thread.

        Waits for the loop, but no longer than the sender does.
        """
        slot = ReplySlot()
        if not self._receive(frame, slot):
            return b""
        return slot.wait(self._give_up_after)

    def receive_from_lane(self, data: bytes) -> bool:
        """Accept a frame that arrived by lane; False if it was dropped. Any thread."""
        return self._receive(data, None)

    def _receive(self, data: bytes, slot: ReplySlot | None) -> bool:
        """Decode a frame and put it into the inbox, unless it is not for this member of this cluster: an actor name or
        an address may have passed to another."""
        frame = decode_frame(data)
        if frame is None:
            self._counters["dropped: undecodable"] += 1
        elif frame.cluster != self._cluster:
            self._counters["dropped: another cluster's"] += 1
        elif frame.to != self._member:
            self._counters["dropped: another member's"] += 1
        elif not self._deliver(ReceivedFrame(frame, len(data), slot)):
            self._counters["dropped: inbox full"] += 1
        else:
            self._counters["received"] += 1
            self.received_bytes[frame.sender] += len(data)
            if frame.wall:
                self.clocks.heard(frame.sender, frame.wall)
            if frame.traces:
                self._trace_arrived(frame.traces)
            return True
        return False

    def begin_turn(self, received: Sequence[ReceivedFrame]) -> list[Message]:
        """Begin a turn: the messages of these frames, each sender's in the order it sent them."""
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
        """Send soon. Messages to one peer stay in order as long as they take the same route.

        What carries data is sent at once, because the loop may be about to wait for its disk; what answers a frame of
        this turn waits for :meth:`end_turn`, and goes into the result of its call.
        """
        if self._lanes is not None:
            messages = self._by_lane(self._lanes, messages)
        for message in messages:
            if message.to in self._slots and not isinstance(message, AppendEntries | InstallSnapshot):
                self._held.setdefault(message.to, []).append(message)
            else:
                self._peer(message.to).enqueue(message)

    def _by_lane(self, lanes: LaneLinks, messages: Sequence[Message]) -> list[Message]:
        """Send what can go by lane; returns what cannot. Messages to one peer stay in order: after one that cannot,
        none goes by lane."""
        left: list[Message] = []
        groups: dict[int, list[Message]] = {}
        for message in messages:
            groups.setdefault(message.to, []).append(message)
        for to, group in groups.items():
            peer = self._peer(to)
            while group and lanes.is_open(to):
                count, size = 1, 0
                while count < len(group) and size < TURN_BYTES:
                    size += size_of(group[count - 1])
                    count += 1
                if not lanes.send_by_lane(to, self._frame(peer, peer.next_sequence(), group[:count])):
                    break
                self._counters["sent by lane"] += 1
                del group[:count]
            left += group
        return left

    def end_turn(self) -> None:
        """End the turn: actor calls that wait for an answer to a frame of this turn get it now."""
        if not self._slots:
            return
        for sender, slots in self._slots.items():
            held = self._held.get(sender)
            for slot in slots:
                peer = self._peer(sender)
                if held and slot.fill(self._frame(peer, peer.next_sequence(), held)):
                    held = None
                else:
                    slot.fill(b"")
            for message in held or ():
                self._peer(sender).enqueue(message)
        self._slots.clear()
        self._held.clear()

    def with_lane(self) -> list[int]:
        """The peers to which a lane is open. Any thread."""
        return [] if self._lanes is None else self._lanes.open_to()

    def without_lane(self) -> dict[int, str]:
        """The peers to whose address no lane can be opened, and why. Any thread."""
        return {} if self._lanes is None else self._lanes.unreachable()

    def counters(self) -> dict[str, int]:
        """How many frames were sent, received, and dropped for which reason. Any thread."""
        return dict(self._counters)

    def close(self) -> None:
        """Send nothing more. Any thread."""
        self._closed = True
        for peer in list(self._peers.values()):
            peer.close()

    def _peer(self, member: int) -> ActorLink:
        peer = self._peers.get(member)
        if peer is None:
            peer = self._peers[member] = ActorLink(self, member)
        return peer

    def _frame(self, peer: ActorLink, sequence: int, messages: Sequence[Message]) -> bytes:
        self._counters["sent"] += 1
        for message in messages:  # as decode_frame demands
            if message.to != peer.member or message.sender != self._member:
                raise ValueError(f"{message} is not from m{self._member} to m{peer.member}")
        member = peer.member
        parts = self._cluster, self._member, member, self._epoch, sequence, tuple(messages)
        wall = 0.0 if sequence % CLOCK_TOLD_FRAMES else self.clocks.now()
        traces = self._traces_of(messages) if self._traced else ()
        data = encode_frame(PeerFrame(*parts, wall, traces) if wall or traces else BarePeerFrame(*parts))
        self.sent_bytes[member] += len(data)
        return data

    def _traces_of(self, messages: Sequence[Message]) -> tuple[EntryTrace, ...]:
        """The sampled entries among those that the messages carry."""
        carried = [
            entry.index for message in messages if isinstance(message, AppendEntries) for entry in message.entries
        ]
        found = [EntryTrace(index, span) for index in carried if (span := self._traced.get(index, ""))]
        return tuple(found[:MAX_TRACED_ENTRIES])


class ActorLink:
    """Actor calls to one peer: the queue, the calls in flight, and the thread that makes them."""

    def __init__(self, transport: PeerTransport, member: int) -> None:
        self.member = member
        self._transport = transport
        self._changed = threading.Condition(threading.Lock())
        self._sequence = itertools.count(1)
        self._pending: deque[Message] = deque()
        self._pending_bytes = 0
        self._in_flight: dict[int, float] = {}
        """Calls in the window, by number: when each is given up."""
        self._given_up: set[int] = set()
        self._handle: Any = None
        self._closed = False
        self._thread = OneThread()

    def next_sequence(self) -> int:
        """The number of the next frame. Any thread: a step of a counter is not interrupted."""
        return next(self._sequence)

    def enqueue(self, message: Message) -> None:
        """Queue a message. If there is no room, the oldest are dropped, as Raft allows: newer ones are more useful."""
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
            if not self._closed:
                self._thread.start(self._run, f"to member {self.member}")
            self._changed.notify()

    def close(self) -> None:
        """End the thread; queued messages are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _drop(self, count: int, why: str) -> None:
        self._transport._counters[why] += count
        self._transport.failures[self.member] += count

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Send what is queued, one frame after another. If the peer has no actor, the queue is dropped: by the time
        there is one, Raft has newer messages."""
        while True:
            messages = self._next()
            if messages is None:
                return
            handle = self._handle or self._look_up()
            if handle is None:
                self._report_lost("dropped: peer not found", len(messages))
                with self._changed:
                    self._clear("dropped: peer not found")
                    self._changed.wait_for(lambda: self._closed, PEER_LOOKUP_PAUSE_S)
                continue
            self._call(handle, messages)

    def _next(self) -> list[Message] | None:
        """Wait until messages can be sent; ``None`` once closed. Gives up calls whose time is over on the way."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                now = self._transport._clock()
                late = [number for number, until in self._in_flight.items() if until <= now]
                for number in late:
                    del self._in_flight[number]
                    self._given_up.add(number)
                if late:
                    seconds = self._transport._give_up_after
                    self._transport.log.info("%s has not answered a call for %.1f s", member_name(self.member), seconds)
                    # The queue is as old as the silence.
                    self._clear("dropped: peer does not answer")
                    self._transport._unreachable(self.member)
                if self._pending and len(self._in_flight) < MAX_PEER_CALLS:
                    break
                self._changed.wait(min(self._in_flight.values()) - now if self._in_flight else None)
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

    def _look_up(self) -> Any:
        try:
            self._handle = self._transport._lookup(self.member)
        except Exception:  # no such name, or Ray's control store does not answer: try again later
            return None
        return self._handle

    def _call(self, handle: Any, messages: list[Message]) -> None:
        number = self.next_sequence()
        frame = self._transport._frame(self, number, messages)
        with self._changed:
            self._in_flight[number] = self._transport._clock() + self._transport._give_up_after
        try:
            future = self._send_call(handle, method_for(messages), frame)
        except Exception:
            self._answered(number, handle, None)
            return
        future.add_done_callback(lambda done: self._answered(number, handle, done))

    def _send_call(self, handle: Any, method: str, frame: bytes) -> Future[bytes]:
        """Call the peer with a frame; the result is a frame, or empty. Every call to a peer goes through here."""
        future: Future[bytes] = getattr(handle, method).remote(frame).future()
        return future

    def _answered(self, number: int, handle: Any, future: Any) -> None:
        """On a thread of Ray's, so it must not call Ray: note that a call has ended, and pass its answer on."""
        try:
            answer = future.result() if future is not None else None
        except Exception:
            answer = None
        with self._changed:
            self._in_flight.pop(number, None)
            self._given_up.discard(number)
            if answer is None and self._handle is handle:
                # If the actor was replaced, and not only restarted, its handle is void: look it up again.
                self._handle = None
            self._changed.notify()
        if answer is None:
            self._report_lost("failed calls", 1)
        elif answer:
            self._transport._receive(answer, None)

    def _report_lost(self, why: str, count: int) -> None:
        self._drop(count, why)
        if not self._closed:
            self._transport.log.debug("messages to %s are lost: %s", member_name(self.member), why)
            self._transport._unreachable(self.member)
