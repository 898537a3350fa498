"""All watches of one process, without I/O: one stream of long polls to one member, and from there to the consumers.

Nothing here sends, sleeps, locks or reads a clock; the owner passes the time in, and the simulator runs the same code.
The rules that make every watch ordered, unique, complete and resumable (etcd: watch API guarantees):

- a watch knows its *position*: every event up to that revision has been buffered for its consumer, and none beyond;
- answers of a stream are numbered, and count in that order; one that comes early is held back;
- whatever goes wrong with a stream (an error, silence, a gap in the numbers, a member that is cut off from the leader,
  restarted, or behind a revision that this process knows), it is given up as a whole, and its watches are created anew
  at another member, each from the revision behind its position;
- a watch that begins "now" is created as "now" until a member has confirmed where that is; from then on its start is
  fixed.

A stream stays where it is while its member answers; which member that is, chance decides. A consumer that is slow has
its watch cancelled at the member when its buffer is full, and created again when it was drained: so it holds back
nobody, and costs no more memory than the buffer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence, Set
from typing import NamedTuple

import msgspec

from ...errors import ClusterMismatch, CompactedError, InvalidArgument, KeeperError, Unavailable
from ...limits import (
    MAX_WATCHES_PER_STREAM,
    WATCH_CREATE_BYTES,
    WATCH_CREATE_WAIT,
    WATCH_CREATES_AT_ONCE,
    WATCH_LAG,
    WATCH_LINGER,
    WATCH_POLL,
    WATCH_POLL_GRACE,
    Limits,
)
from ...store.commands import KeyRange
from ..protocol import CreateWatch, Refusal, Refused, Reply, Watched, WatchPoll
from .frames import Outgoing
from .outbox import Outbox
from .subscription import Gate, Phase, Subscription, Taken

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class _Poll(NamedTuple):
    suspect_at: float
    creates: tuple[Subscription, ...]
    sent_at: float


class _Stream:
    """What one member is polled for."""

    def __init__(self, id: bytes, member: int) -> None:
        self.id = id
        self.member = member
        self.begun = False
        """The member has answered."""
        self.revision = 0
        """All live watches that are not behind have seen everything up to here."""
        self.watches: dict[int, Subscription] = {}
        self.behind: set[int] = set()
        self.cancels: list[int] = []
        self.polls: dict[int, _Poll] = {}
        """By call number, those without an answer."""
        self.next_number = 1
        self.early: dict[int, Watched] = {}

    @property
    def creating(self) -> bool:
        """Whether a poll is under way that is answered at once."""
        return any(poll.creates for poll in self.polls.values())

    def position(self, watch: Subscription) -> int:
        """What a watch of this stream has seen."""
        if watch.phase is Phase.LIVE and watch.id not in self.behind:
            return max(watch.position, self.revision)
        return watch.position

    def go_live(self, watch: Subscription) -> None:
        """The member has the watch. Until the end of this answer, what the stream has seen says nothing about it."""
        watch.phase = Phase.LIVE
        watch.alone = False
        self.behind.add(watch.id)

    def settle(self, watch: Subscription) -> None:
        """Write a watch's position down, because it leaves the stream or falls behind."""
        watch.position = self.position(watch)


class WatchCore:
    """All watches of one process at one cluster. The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        members: ids of those that can be asked.
        rng: for the choice of the member, stream ids, and the jitter of pauses.
        leader: who leads, if known: it hears of a change first, so it is asked if it is near.
        near: members on this process's own node (see ``Outbox``).
    """

    def __init__(
        self,
        cluster: int,
        members: Sequence[int],
        limits: Limits,
        rng: random.Random,
        *,
        leader: int = 0,
        near: Set[int] = frozenset(),
    ) -> None:
        self._cluster = cluster
        self._members = tuple(sorted(members))
        self._rng = rng
        self._outbox = Outbox("watch", limits, rng, to_leader=False, near=near)
        self._leader = leader
        self._watches: dict[Subscription, None] = {}
        """All that are not over."""
        self._waiting: dict[Subscription, None] = {}
        """Those to be created, in this order."""
        self._stream: _Stream | None = None
        self._number = 0
        self._last_id = 0
        self._known = 0
        """The newest revision that this process knows of."""
        self._probe: tuple[int, float] | None = None
        """A revision that the stream's member has yet to reach, and since when it is waited for."""
        self._probe_sent = False
        self._foreign: set[int] = set()
        self._idle_since = -math.inf
        self._closed = False
        self.wants_members = False
        """The list of members may be out of date: somebody should call :meth:`set_members`."""

    # -- what consumers do --------------------------------------------------------------------------------------------

    def create(
        self, keys: KeyRange, *, start_revision: int = 0, prev: bool = False, puts: bool, deletes: bool, gate: Gate
    ) -> Subscription:
        """Begin a watch; ``gate`` is woken when its start is fixed, when there is something to take, and at its end.

        Args:
            start_revision: the first revision to see, 0 for whatever comes next.

        Raises:
            InvalidArgument: the hub is closed.
            Unavailable: the process has as many watches as it may.
        """
        if self._closed:
            raise InvalidArgument("the hub is closed")
        if len(self._watches) >= MAX_WATCHES_PER_STREAM:
            raise Unavailable(f"this process has {len(self._watches)} watches already")
        watch = Subscription(keys, start_revision, prev, puts, deletes, gate)
        self._watches[watch] = None
        self._waiting[watch] = None
        return watch

    def cancel(self, watch: Subscription, now: float) -> None:
        """End a watch; what is buffered is dropped."""
        self._end(watch, None, now)

    def take(self, watch: Subscription) -> Taken:
        """What has come for a consumer since it last asked."""
        events = watch.drain()
        if watch.phase is Phase.PAUSED:
            self._wait_again(watch)
        over = watch.phase is Phase.OVER
        return Taken(events, self._position(watch), over, watch.error if over else None)

    def position(self, watch: Subscription) -> int | None:
        """Everything up to this revision was taken; ``None`` if something waits to be taken."""
        return self._position(watch) if watch.empty else None

    def learn(self, revision: int, now: float) -> None:
        """The process knows that there is this revision."""
        if revision > self._known:
            self._known = revision
            self._look_for_lag(now)

    def learn_leader(self, leader: int) -> None:
        """Somebody else has found out who leads; the next stream goes by that."""
        self._leader = leader

    @property
    def problem(self) -> str:
        """Why nobody answers, if nobody does."""
        return self._outbox.problem if self._outbox.failures else ""

    @property
    def failing(self) -> bool:
        """Whether nobody has answered since something failed."""
        return self._outbox.failures > 0

    @property
    def member(self) -> int:
        """The member that is being polled, 0 for none."""
        return self._stream.member if self._stream is not None else 0

    @property
    def pending(self) -> int:
        """How many watches wait for a member's word."""
        return len(self._watches)

    def __len__(self) -> int:
        return len(self._watches)

    # -- what the owner does ------------------------------------------------------------------------------------------

    def set_members(self, members: Sequence[int]) -> None:
        """These members can be asked from now on."""
        self.wants_members = not members
        self._members = tuple(sorted(members))
        self._foreign.intersection_update(self._members)

    def close(self, now: float) -> None:
        """End all watches and take no more."""
        self._closed = True
        for watch in list(self._watches):
            self._end(watch, None, now)
        self._stream = None

    def outgoing(self, now: float) -> list[Outgoing]:
        """The poll that is to be sent now, if one is. Empty again until something else happens."""
        stream = self._stream
        if stream is None:
            if not self._waiting or not self._members or now < self._outbox.not_before:
                return []
            stream = _Stream(self._rng.randbytes(16), self._outbox.target(self._members, self._leader, now))
            self._stream = stream
            self._probe, self._probe_sent = None, False
        elif stream.polls and (stream.creating or not stream.begun):
            return []  # it is answered soon
        creates = self._next_creates()
        probing = self._probe_is_due(now) and not self._probe_sent
        if stream.polls and not creates and not probing:
            return []  # one hangs
        if not self._watches and not stream.polls and now - self._idle_since >= WATCH_LINGER:
            self._stream = None
            return []
        return [self._send(stream, creates, probing, now)]

    def on_reply(self, call: int, reply: bytes, now: float) -> None:
        """A poll was answered, maybe late, or for the second time."""
        stream = self._stream
        poll = stream.polls.pop(call, None) if stream is not None else None
        if stream is None or poll is None:
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError as error:
            self._abandon(stream, f"member {stream.member} answers what cannot be read: {error}", now)
            return
        if isinstance(answer, Refused):
            self._refused(stream, poll, answer, now)
        elif not isinstance(answer, Watched):
            self._abandon(stream, f"member {stream.member} answers something else", now)
        else:
            self._answered(stream, poll, answer, now)

    def on_failure(self, call: int, now: float, problem: str = "") -> None:
        """The transport gave a poll up: its answer may be lost, so the stream is."""
        stream = self._stream
        if stream is not None and call in stream.polls:
            who = f"member {stream.member} cannot be reached"
            self._abandon(stream, f"{who}: {problem}" if problem else who, now)

    def resume(self, now: float) -> None:
        """Whoever was at work here was interrupted anywhere in the middle: the poll may not have been sent."""
        if self._stream is not None:
            self._leave(self._stream)
        for watch in self._watches:
            if watch.phase in (Phase.CREATING, Phase.LIVE):
                self._wait_again(watch)

    def on_time(self, now: float) -> None:
        """Look at the clock: give up on a member that does not answer."""
        stream = self._stream
        if stream is None:
            return
        if any(now >= poll.suspect_at for poll in stream.polls.values()):
            self._outbox.silent(stream.member, now)
            self._leave(stream)

    def next_wakeup(self) -> float | None:
        """When :meth:`on_time` and :meth:`outgoing` are next to be called; ``None`` if there is nothing to wait for."""
        stream = self._stream
        if stream is None:
            return self._outbox.not_before if self._waiting and self._members else None
        wakeup = min((poll.suspect_at for poll in stream.polls.values()), default=math.inf)
        if self._probe is not None and not self._probe_sent and stream.begun and not stream.creating:
            wakeup = min(wakeup, self._probe[1] + WATCH_LAG)
        return None if wakeup == math.inf else wakeup

    # -- polls --------------------------------------------------------------------------------------------------------

    def _next_creates(self) -> tuple[Subscription, ...]:
        creates: list[Subscription] = []
        room = WATCH_CREATE_BYTES
        for watch in self._waiting:
            room -= len(watch.keys.key) + len(watch.keys.end or b"") + 32
            if creates and (room < 0 or watch.alone or len(creates) >= WATCH_CREATES_AT_ONCE):
                break
            creates.append(watch)
            if watch.alone:
                break
        return tuple(creates)

    def _send(self, stream: _Stream, creates: tuple[Subscription, ...], probing: bool, now: float) -> Outgoing:
        entries = []
        for watch in creates:
            del self._waiting[watch]
            self._last_id += 1
            watch.id = self._last_id
            watch.phase = Phase.CREATING
            stream.watches[watch.id] = watch
            start = watch.position + 1 if watch.fixed else 0
            entries.append(CreateWatch(watch.id, watch.keys, start, watch.prev, watch.puts, watch.deletes))
        cancels, stream.cancels = tuple(stream.cancels), []
        if creates:
            wait, grace = WATCH_CREATE_WAIT, self._outbox.patience()
        elif probing:
            self._probe_sent = True
            wait, grace = 0.0, max(WATCH_POLL_GRACE, self._outbox.patience())
        else:
            wait, grace = WATCH_POLL, max(WATCH_POLL_GRACE, self._outbox.patience())
        self._number += 1
        first = not stream.begun
        stream.polls[self._number] = _Poll(now + wait + grace, creates, now)
        poll = WatchPoll(self._cluster, wait, stream.id, first, tuple(entries), cancels)
        return Outgoing(self._number, stream.member, _encode(poll))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answered(self, stream: _Stream, poll: _Poll, answer: Watched, now: float) -> None:
        if answer.number < stream.next_number or answer.number in stream.early:
            self._abandon(stream, f"member {stream.member} does not know the stream", now)
            return
        stream.early[answer.number] = answer
        while self._stream is stream and stream.next_number in stream.early:
            answer = stream.early.pop(stream.next_number)
            stream.next_number += 1
            problem = self._take_in(stream, answer, now)
            if problem:
                self._abandon(stream, f"member {stream.member} {problem}", now)
                return
        if stream.early and not stream.polls:
            self._abandon(stream, f"an answer of member {stream.member} was lost", now)
            return
        stream.begun = True
        self._foreign.discard(stream.member)
        self._outbox.answered(stream.member, now - poll.sent_at if poll.creates else None)
        self._look_for_lag(now)

    def _take_in(self, stream: _Stream, answer: Watched, now: float) -> str:
        """Take in the next answer; what is wrong with it, if something is."""
        watches = stream.watches
        behind = set(answer.behind)
        for id in behind - stream.behind:
            if id in watches:
                stream.settle(watches[id])
        stream.behind |= behind
        for id, compact_revision in answer.compacted:
            watch = watches.get(id)
            if watch is not None and watch.fixed:
                if stream.position(watch) + 1 >= compact_revision:
                    # A poll that was carried twice has begun the watch anew where it once began.
                    return "ends a watch that has missed nothing"
                self._end(watch, CompactedError(compact_revision), now)
            elif watch is not None:  # it has no past that could be missed: "now" is later
                self._remove(stream, watch)
                self._wait_again(watch)
        for id, start in answer.created:
            watch = watches.get(id)
            if watch is not None:
                watch.begin(start)
                stream.go_live(watch)
        full = []
        for batch in answer.batches:
            watch = watches.get(batch.id)
            if watch is None:
                continue  # cancelled
            if watch.phase is not Phase.LIVE:
                return "has news of a watch that it has not confirmed"
            # The member's reading must follow on ours, or something would be lost, or seen twice.
            if batch.events and batch.events[0].item.mod_revision <= stream.position(watch):
                return "repeats events"
            watch.add(batch)
            if watch.full:
                full.append(watch)
        stream.revision = max(stream.revision, answer.revision)
        stream.behind = behind
        self._known = max(self._known, answer.revision)
        for watch in full:
            if watch.phase is Phase.LIVE:
                self._pause(stream, watch)
        if answer.stale:
            return "is cut off from the leader"
        if self._is_lagging(stream, now):
            return f"is behind: it has not reached revision {self._known}"
        return ""

    def _refused(self, stream: _Stream, poll: _Poll, refused: Refused, now: float) -> None:
        member = stream.member
        if refused.refusal is Refusal.INVALID and poll.creates:
            if len(poll.creates) == 1:
                self._end(poll.creates[0], InvalidArgument(f"refused: {refused.message}"), now)
            for watch in poll.creates:
                watch.alone = True
            self._leave(stream)
            return
        why = refused.message or refused.refusal.name.lower().replace("_", " ")
        self._abandon(stream, f"member {member}: {why}", now)
        if refused.refusal is Refusal.WRONG_CLUSTER:
            self._foreign.add(member)
            if self._foreign.issuperset(self._members):
                for watch in list(self._watches):
                    self._end(watch, ClusterMismatch("the members of that name belong to another cluster"), now)

    # -- a member that is behind --------------------------------------------------------------------------------------

    def _look_for_lag(self, now: float) -> None:
        """Wait for the member to reach what this process knows, if it has not."""
        stream = self._stream
        if stream is None or not stream.begun or stream.revision >= self._known:
            self._probe, self._probe_sent = None, False
        elif self._probe is None or stream.revision >= self._probe[0]:
            self._probe, self._probe_sent = (self._known, now), False

    def _probe_is_due(self, now: float) -> bool:
        return self._probe is not None and now >= self._probe[1] + WATCH_LAG

    def _is_lagging(self, stream: _Stream, now: float) -> bool:
        return self._probe is not None and self._probe_is_due(now) and stream.revision < self._probe[0]

    # -- moving -------------------------------------------------------------------------------------------------------

    def _abandon(self, stream: _Stream, problem: str, now: float) -> None:
        """The stream's member failed: go to another one."""
        self._outbox.failed(stream.member, now, problem)
        self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        """Give the stream up: all its watches are to be created anew, each from where it stands."""
        if self._outbox.failures > len(self._members):
            self.wants_members = True
        self._stream = None
        self._probe, self._probe_sent = None, False
        for watch in stream.watches.values():
            stream.settle(watch)
            self._wait_again(watch)

    def _wait_again(self, watch: Subscription) -> None:
        watch.phase = Phase.WAITING
        watch.id = 0
        self._waiting[watch] = None

    def _pause(self, stream: _Stream, watch: Subscription) -> None:
        """The consumer is too slow: the member need not read for it until it has caught up."""
        stream.settle(watch)
        self._remove(stream, watch)
        watch.phase = Phase.PAUSED

    def _remove(self, stream: _Stream, watch: Subscription) -> None:
        del stream.watches[watch.id]
        stream.cancels.append(watch.id)
        watch.id = 0

    def _position(self, watch: Subscription) -> int:
        stream = self._stream
        return stream.position(watch) if stream is not None and watch.id else watch.position

    def _end(self, watch: Subscription, error: KeeperError | None, now: float) -> None:
        if watch not in self._watches:
            return
        stream = self._stream
        if stream is not None and watch.id:
            stream.settle(watch)
            self._remove(stream, watch)
        self._waiting.pop(watch, None)
        del self._watches[watch]
        watch.end(error)
        if not self._watches:
            self._idle_since = now
