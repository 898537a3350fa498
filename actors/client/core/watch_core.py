"""All watches of one process, without I/O: one stream of long polls to one member, and from there to the consumers.

Nothing here sends, sleeps, locks or reads a clock; the owner passes the time in, and the simulator runs the same code.
The rules that make every watch ordered, unique, complete and resumable (etcd: watch API guarantees):

- A watch knows its *position*: every event up to that revision was buffered for its consumer, and none after it.
- The answers of a stream are numbered and taken in by number; one that arrives early is held back.
- Whatever goes wrong with a stream ends the whole stream: an error, silence, a gap in the numbers, a member that is cut
  off from the leader, was restarted, or lags a revision that this process knows. Its watches are then created again at
  another member, each from the revision after its position.
- A watch that starts "now" is created as "now" until a member has confirmed which revision that is; from then on its
  start is fixed.

A stream stays at its member while that answers; the member is chosen at random, or is the leader if that is near. A
watch whose consumer is slow is cancelled at the member when its buffer is full, and created again once the buffer is
drained, so it delays no other watch and takes no more memory than its buffer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Set
from typing import NamedTuple

import msgspec

from ....errors import ClusterMismatch, CompactedError, InvalidArgument, KeeperError, PermissionDenied, Unavailable
from ....limits import (
    MAX_WATCHES_PER_STREAM,
    WATCH_CREATE_BYTES,
    WATCH_CREATE_WAIT_S,
    WATCH_CREATES_AT_ONCE,
    WATCH_LAG_S,
    WATCH_LINGER_S,
    WATCH_POLL_GRACE_S,
    WATCH_POLL_S,
    Limits,
)
from ....schema.frames import CreateWatch, Refusal, Refused, Reply, Watched, WatchPoll
from ....schema.operations import KeyRange
from .failures import denial
from .in_flight import OutgoingFrame
from .outbox import Outbox
from .router import Prefer, Router
from .subscription import Delivery, NewsSignal, Phase, Subscription

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class _PollInFlight(NamedTuple):
    """A poll without an answer."""

    suspect_at: float
    """When its silence counts as a failure."""
    creates: tuple[Subscription, ...]
    """The watches that it creates; a poll that creates some is answered at once."""
    sent_at: float


class _PolledStream:
    """One stream: the watches that one member is polled for.

    Most answers bring no events, only a revision up to which the member has read for all live watches that do not lag.
    So that revision is kept once, here, and a watch's own ``position`` is brought up to date only when it leaves the
    stream or begins to lag (``save_position``).
    """

    def __init__(self, id: bytes, member: int) -> None:
        self.id = id
        self.member = member
        self.answered = False
        """Whether the member has answered a poll of this stream."""
        self.revision = 0
        """Everything up to here was buffered for all live watches that do not lag."""
        self.watches: dict[int, Subscription] = {}
        """By id, those that the member has, or is being asked to create."""
        self.lagging: set[int] = set()
        """Ids of the watches for which the member has more to read."""
        self.cancels: list[int] = []
        self.polls: dict[int, _PollInFlight] = {}
        """By frame number, those without an answer."""
        self.next_number = 1
        """Number of the answer to take in next."""
        self.early: dict[int, Watched] = {}
        """By number, answers that arrived before their turn."""

    @property
    def creating(self) -> bool:
        """Whether a poll is in flight that creates watches; such a poll is answered at once."""
        return any(poll.creates for poll in self.polls.values())

    def position(self, watch: Subscription) -> int:
        """The position of a watch of this stream."""
        if watch.phase is Phase.LIVE and watch.id not in self.lagging:
            return max(watch.position, self.revision)
        return watch.position

    def go_live(self, watch: Subscription) -> None:
        """The member has the watch. Until this answer is taken in, the stream's revision does not count for it."""
        watch.phase = Phase.LIVE
        watch.alone = False
        self.lagging.add(watch.id)

    def save_position(self, watch: Subscription) -> None:
        """Store a watch's position in the watch, because it leaves the stream or begins to lag."""
        watch.position = self.position(watch)


class WatchCore:
    """All watches of one process at one cluster. The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        router: the hub's, shared with its other cores.
        rng: for the choice of the member, stream ids, and the jitter of pauses.
    """

    def __init__(self, cluster: int, router: Router, limits: Limits, rng: random.Random) -> None:
        self._cluster = cluster
        self._router = router
        self._rng = rng
        self._outbox = Outbox("watch", limits, rng, Prefer.LEADER_IF_NEAR)
        self._watches: dict[Subscription, None] = {}
        """All that are not over."""
        self._loops: dict[object | None, int] = {}
        """How many of them each event loop has; ``None`` stands for threads."""
        self._waiting: dict[Subscription, None] = {}
        """Those to create, in this order."""
        self._stream: _PolledStream | None = None
        self._number = 0
        self._last_id = 0
        self._known = 0
        """The newest revision that this process has heard of."""
        self._probe: tuple[int, float] | None = None
        """A revision that the stream's member has not reached yet, and since when that is known."""
        self._probe_sent = False
        """Whether a poll was sent that asks the member for its revision without waiting for events."""
        self._idle_since = -math.inf
        self._closed = False

    # -- for consumers ------------------------------------------------------------------------------------------------

    def create(
        self,
        keys: KeyRange,
        *,
        start_revision: int = 0,
        prev: bool = False,
        puts: bool,
        deletes: bool,
        signal: NewsSignal,
        loop: object | None = None,
    ) -> Subscription:
        """Begin a watch; ``signal`` is woken when its start is fixed, when there is something to take, and at its end.

        Args:
            start_revision: the first revision to see, 0 for whatever comes next.
            loop: names the event loop whose coroutines take the events; ``None`` if a thread takes them.

        Raises:
            InvalidArgument: the hub is closed.
            Unavailable: the process has as many watches as it may.
        """
        if self._closed:
            raise InvalidArgument("the hub is closed")
        if len(self._watches) >= MAX_WATCHES_PER_STREAM:
            raise Unavailable(f"this process has {len(self._watches)} watches already, as many as it may have")
        watch = Subscription(keys, start_revision, prev, puts, deletes, signal, loop)
        self._loops[loop] = self._loops.get(loop, 0) + 1
        self._watches[watch] = None
        self._waiting[watch] = None
        return watch

    def cancel(self, watch: Subscription, now: float) -> None:
        """End a watch; events that were not delivered are dropped."""
        self._end(watch, None, now)

    def deliver(self, watch: Subscription) -> Delivery:
        """Hand a consumer what has arrived since its last call; a paused watch, drained now, is to be created again."""
        events = watch.drain()
        if watch.phase is Phase.PAUSED:
            self._wait_again(watch)
        over = watch.phase is Phase.OVER
        return Delivery(events, self._position(watch), over, watch.error if over else None)

    def position(self, watch: Subscription) -> int | None:
        """The revision up to which everything was delivered; ``None`` while events are buffered."""
        return self._position(watch) if watch.empty else None

    def learn_revision(self, revision: int, now: float) -> None:
        """The process has heard of this revision, so a member that does not reach it lags."""
        if revision > self._known:
            self._known = revision
            self._check_lag(now)

    @property
    def loops(self) -> Set[object | None]:
        """The event loops that have watches, as named when these were made; ``None`` among them if a thread has one."""
        return self._loops.keys()

    @property
    def problem(self) -> str:
        """Why no member answers; empty if one does."""
        return self._outbox.problem if self._outbox.failures else ""

    @property
    def failing(self) -> bool:
        """Whether no member has answered since something failed."""
        return self._outbox.failures > 0

    @property
    def member(self) -> int:
        """The member that is being polled, 0 for none."""
        return self._stream.member if self._stream is not None else 0

    @property
    def pending(self) -> int:
        """How many watches depend on a member's answers."""
        return len(self._watches)

    def __len__(self) -> int:
        return len(self._watches)

    # -- for the owner ------------------------------------------------------------------------------------------------

    def close(self, now: float) -> None:
        """End all watches and accept no more."""
        self._closed = True
        for watch in list(self._watches):
            self._end(watch, None, now)
        self._stream = None

    def outgoing(self, now: float) -> list[OutgoingFrame]:
        """The poll to send now, if there is one. Asked again, it returns none until something else happens.

        One poll always hangs at the member, which answers it as soon as there are events. Another is sent beside it
        only to create watches or to probe for lag, and none while a poll is in flight whose answer comes at once.
        """
        stream = self._stream
        if stream is None:
            if not self._waiting or not self._router.members or now < self._outbox.not_before:
                return []
            stream = _PolledStream(self._rng.randbytes(16), self._outbox.target(self._router, now))
            self._stream = stream
            self._probe, self._probe_sent = None, False
        elif stream.polls and (stream.creating or not stream.answered):
            return []  # an answer comes soon
        creates = self._next_creates()
        probing = self._probe_is_due(now) and not self._probe_sent
        if stream.polls and not creates and not probing:
            return []
        if not self._watches and not stream.polls and now - self._idle_since >= WATCH_LINGER_S:
            self._stream = None
            return []
        return [self._send(stream, creates, probing, now)]

    def on_reply(self, frame_number: int, reply: bytes, now: float) -> None:
        """A reply to a poll has arrived, maybe late, or for the second time; each poll is answered once at most."""
        stream = self._stream
        poll = stream.polls.pop(frame_number, None) if stream is not None else None
        if stream is None or poll is None:
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError as error:
            self._abandon(stream, f"m{stream.member} sent an unreadable reply: {error}", now)
            return
        if isinstance(answer, Refused):
            self._refused(stream, poll, answer, now)
        elif not isinstance(answer, Watched):
            self._abandon(stream, f"m{stream.member} sent a reply of another kind", now)
        else:
            self._router.term = max(self._router.term, answer.term)
            self._answered(stream, poll, answer, now)

    def on_failure(self, frame_number: int, now: float, problem: str = "") -> None:
        """The transport gave a poll up. Its answer may be lost, so the stream is abandoned."""
        stream = self._stream
        if stream is not None and frame_number in stream.polls:
            who = f"m{stream.member} cannot be reached"
            self._abandon(stream, f"{who}: {problem}" if problem else who, now)

    def resume(self, now: float) -> None:
        """Restore order after a thread was interrupted (Ctrl-C) anywhere inside this core.

        A poll that counts as in flight may never have left, and a watch may be between two tables. So the stream is
        dropped, and every watch that is neither paused nor over is to be created again, from its position.
        """
        if self._stream is not None:
            self._drop_stream(self._stream)
        for watch in self._watches:
            if watch.phase in (Phase.CREATING, Phase.LIVE):
                self._wait_again(watch)

    def on_time(self, now: float) -> None:
        """Look at the clock: leave a member that does not answer."""
        stream = self._stream
        if stream is None:
            return
        if any(now >= poll.suspect_at for poll in stream.polls.values()):
            self._outbox.timed_out(stream.member, now)
            self._drop_stream(stream)

    def next_wakeup(self) -> float | None:
        """The time at which to call :meth:`on_time` and :meth:`outgoing`; ``None`` if there is nothing to wait for."""
        stream = self._stream
        if stream is None:
            return self._outbox.not_before if self._waiting and self._router.members else None
        wakeup = min((poll.suspect_at for poll in stream.polls.values()), default=math.inf)
        if self._probe is not None and not self._probe_sent and stream.answered and not stream.creating:
            wakeup = min(wakeup, self._probe[1] + WATCH_LAG_S)
        return None if wakeup == math.inf else wakeup

    # -- polls --------------------------------------------------------------------------------------------------------

    def _next_creates(self) -> tuple[Subscription, ...]:
        """The watches that the next poll creates: as many as fit, or the first alone if a member has refused it."""
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

    def _send(
        self, stream: _PolledStream, creates: tuple[Subscription, ...], probing: bool, now: float
    ) -> OutgoingFrame:
        """Encode a poll, and note that it is in flight.

        A watch is created from the revision after its position; from "now" (0) only while no member has confirmed its
        start. Its id is new each time, so answers for an earlier creation cannot be mistaken for this one's.
        """
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
            wait, grace = WATCH_CREATE_WAIT_S, self._outbox.reply_timeout()
        elif probing:
            self._probe_sent = True
            wait, grace = 0.0, max(WATCH_POLL_GRACE_S, self._outbox.reply_timeout())
        else:
            wait, grace = WATCH_POLL_S, max(WATCH_POLL_GRACE_S, self._outbox.reply_timeout())
        self._number += 1
        first = not stream.answered
        stream.polls[self._number] = _PollInFlight(now + wait + grace, creates, now)
        poll = WatchPoll(self._cluster, wait, stream.id, first, tuple(entries), cancels)
        return OutgoingFrame(self._number, stream.member, _encode(poll))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answered(self, stream: _PolledStream, poll: _PollInFlight, answer: Watched, now: float) -> None:
        """Take in an answer and those that it was waited for, by number.

        A number that was taken in before means that the member has lost the stream and numbers from the start. A number
        that is missing while no poll is in flight was lost. In both cases events may be missing: abandon the stream.
        """
        if answer.number < stream.next_number or answer.number in stream.early:
            self._abandon(stream, f"m{stream.member} does not know the stream", now)
            return
        stream.early[answer.number] = answer
        while self._stream is stream and stream.next_number in stream.early:
            answer = stream.early.pop(stream.next_number)
            stream.next_number += 1
            problem = self._take_in(stream, answer, now)
            if problem:
                self._abandon(stream, f"m{stream.member} {problem}", now)
                return
        if stream.early and not stream.polls:
            self._abandon(stream, f"an answer from m{stream.member} was lost", now)
            return
        stream.answered = True
        self._router.note_ours(stream.member)
        self._outbox.answered(stream.member, now - poll.sent_at if poll.creates else None)
        self._check_lag(now)

    def _take_in(self, stream: _PolledStream, answer: Watched, now: float) -> str:
        """Take in the next answer; what is wrong with it, or an empty text.

        The order of the steps matters. Watches that begin to lag first store their position, while the stream's old
        revision still counts for them. Watches that are created count as lagging, so that neither the old nor the new
        revision of the stream is claimed for them before their own events are in. Only then does the stream's revision
        grow. A watch whose buffer is full is paused last, when its position is certain.
        """
        watches = stream.watches
        lagging = set(answer.lagging)
        for id in lagging - stream.lagging:
            if id in watches:
                stream.save_position(watches[id])
        stream.lagging |= lagging
        for id in answer.denied:
            if id in watches:
                self._end(watches[id], PermissionDenied("the user may not read the watched keys"), now)
        for id, compact_revision in answer.compacted:
            watch = watches.get(id)
            if watch is not None and watch.fixed:
                if stream.position(watch) + 1 >= compact_revision:
                    # A poll that arrived twice has created the watch again, at its old start.
                    return "ends a watch that has missed nothing"
                self._end(watch, CompactedError(compact_revision), now)
            elif watch is not None:  # from "now", not confirmed: it cannot have missed anything
                self._remove(stream, watch)
                self._wait_again(watch)
        for id, start in answer.created:
            watch = watches.get(id)
            if watch is not None:
                watch.confirm_start(start)
                stream.go_live(watch)
        full = []
        for batch in answer.batches:
            watch = watches.get(batch.id)
            if watch is None:
                continue  # cancelled
            if watch.phase is not Phase.LIVE:
                return "has news of a watch that it has not confirmed"
            # What the member sends must follow what we have, or an event would be seen twice.
            if batch.events and batch.events[0].item.mod_revision <= stream.position(watch):
                return "repeats events"
            watch.add_batch(batch)
            if watch.full:
                full.append(watch)
        stream.revision = max(stream.revision, answer.revision)
        stream.lagging = lagging
        self._known = max(self._known, answer.revision)
        for watch in full:
            if watch.phase is Phase.LIVE:
                self._pause(stream, watch)
        if answer.stale:
            return "is cut off from the leader"
        if self._is_lagging(stream, now):
            return f"lags: it has not reached revision {self._known}"
        return ""

    def _refused(self, stream: _PolledStream, poll: _PollInFlight, refused: Refused, now: float) -> None:
        """Take in a refusal. An invalid creation among several is found by creating each of them alone; whatever else
        the member refuses, another member is asked."""
        member = stream.member
        if refused.refusal is Refusal.INVALID and poll.creates:
            if len(poll.creates) == 1:
                self._end(poll.creates[0], InvalidArgument(f"refused: {refused.message}"), now)
            for watch in poll.creates:
                watch.alone = True
            self._drop_stream(stream)
            return
        if (error := denial(refused)) is not None:
            self._drop_stream(stream)
            for watch in list(self._watches):
                self._end(watch, error, now)
            return
        why = refused.message or refused.refusal.name.lower().replace("_", " ")
        self._abandon(stream, f"m{member}: {why}", now)
        if refused.refusal is Refusal.WRONG_CLUSTER and self._router.note_foreign(member):
            for watch in list(self._watches):
                self._end(watch, ClusterMismatch("the members of that name belong to another cluster"), now)

    # -- a member that lags -------------------------------------------------------------------------------------------

    def _check_lag(self, now: float) -> None:
        """Note since when the member has not reached the newest revision that this process has heard of."""
        stream = self._stream
        if stream is None or not stream.answered or stream.revision >= self._known:
            self._probe, self._probe_sent = None, False
        elif self._probe is None or stream.revision >= self._probe[0]:
            self._probe, self._probe_sent = (self._known, now), False

    def _probe_is_due(self, now: float) -> bool:
        return self._probe is not None and now >= self._probe[1] + WATCH_LAG_S

    def _is_lagging(self, stream: _PolledStream, now: float) -> bool:
        return self._probe is not None and self._probe_is_due(now) and stream.revision < self._probe[0]

    # -- moving -------------------------------------------------------------------------------------------------------

    def _abandon(self, stream: _PolledStream, problem: str, now: float) -> None:
        """The stream's member failed: quarantine it, and drop the stream."""
        self._outbox.failed(stream.member, now, problem)
        self._drop_stream(stream)

    def _drop_stream(self, stream: _PolledStream) -> None:
        """Drop the stream: its watches are to be created again, each from the revision after its position."""
        self._router.note_failures(self._outbox.failures)
        self._stream = None
        self._probe, self._probe_sent = None, False
        for watch in stream.watches.values():
            stream.save_position(watch)
            self._wait_again(watch)

    def _wait_again(self, watch: Subscription) -> None:
        watch.phase = Phase.WAITING
        watch.id = 0
        self._waiting[watch] = None

    def _pause(self, stream: _PolledStream, watch: Subscription) -> None:
        """The consumer is too slow: cancel the watch at the member until the buffer is drained."""
        stream.save_position(watch)
        self._remove(stream, watch)
        watch.phase = Phase.PAUSED

    def _remove(self, stream: _PolledStream, watch: Subscription) -> None:
        del stream.watches[watch.id]
        stream.cancels.append(watch.id)
        watch.id = 0

    def _position(self, watch: Subscription) -> int:
        stream = self._stream
        return stream.position(watch) if stream is not None and watch.id else watch.position

    def _end(self, watch: Subscription, error: KeeperError | None, now: float) -> None:
        """End a watch wherever it is; one that is over already stays as it is."""
        if watch not in self._watches:
            return
        stream = self._stream
        if stream is not None and watch.id:
            stream.save_position(watch)
            self._remove(stream, watch)
        self._waiting.pop(watch, None)
        del self._watches[watch]
        self._loops[watch.loop] -= 1
        if not self._loops[watch.loop]:
            del self._loops[watch.loop]
        watch.end(error)
        if not self._watches:
            self._idle_since = now
