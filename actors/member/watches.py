"""The watches that one member serves.

A watch is a position in the history of a range. What lies between the position and the newest revision is read from the
store when a client polls for it. So a slow consumer costs nothing and delays no other, and no event is kept in memory
for it. The loop only reports which keys have changed: a watch of one of them becomes *due*, and the poll that waits for
its stream is answered. If it has missed only a few recent changes, the loop reads them itself. A watch that is not due
has seen everything, so its position need not be updated.

Guarantees (etcd: watch API): ordered, unique, complete from the first revision on, whole revisions at a time. A
progress notice (a batch without events) never overtakes an event, because ``seen`` advances only after the watches of
the changed keys were made due.

The loop calls ``keys_changed``, ``answer_others``, ``state_replaced`` and ``answer_overdue_polls``; polls come on
threads of their own and read the history there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ...limits import (
    MAX_WATCH_STREAMS,
    MAX_WATCHES_PER_STREAM,
    WATCH_BATCH_BYTES,
    WATCH_FIRST_STREAMS,
    WATCH_FORGET_AT_ONCE,
    WATCH_QUICK_CHANGES,
    WATCH_QUICK_STREAMS,
    WATCH_REPLY_BYTES,
    WATCH_SCAN_CHANGES,
    WATCH_STREAM_IDLE_S,
)
from ...schema.commands import Caller
from ...schema.frames import CreateWatch, Refusal, Refused, WatchBatch, Watched, WatchEvent, WatchPoll
from ...store.state.auth_table import AuthTable
from ...store.state.history import Changes, HistoryQuery
from .turn import Turn
from .watch_index import WatchIndex

WatchReply = Watched | Refused
WatchReplyCallback = Callable[[Callable[[], WatchReply]], None]
"""Called once, with a function that makes the reply and may be called on any thread."""


class ReadyReply:
    """A reply that exists already, in the form of a function that makes it."""

    __slots__ = ("_reply",)

    def __init__(self, reply: WatchReply) -> None:
        self._reply = reply

    def __call__(self) -> WatchReply:
        """The reply."""
        return self._reply


@dataclass(eq=False, slots=True)
class _Watch:
    id: int
    wanted: HistoryQuery
    position: int
    """Everything up to this revision was delivered. It matters only while the watch is due: otherwise the watch has
    seen everything that this member has applied."""
    stream: _ServedStream
    due: bool = False
    """It is in the stream's list of watches with something to read, or is being read."""
    again: bool = False
    """Another of its keys has changed while it was due."""
    ended: bool = False


@dataclass(slots=True)
class _PendingPoll:
    """A poll that waits for news of its stream."""

    deadline: float
    done: WatchReplyCallback


@dataclass(eq=False, slots=True)
class _ServedStream:
    id: bytes
    polled_at: float
    user: str | None = None
    """Whose it is; ``None`` while users are not needed."""
    source: str = ""
    """From where its client polled last, for people."""
    users: AuthTable | None = None
    """The users and roles by which its watches were checked."""
    watches: dict[int, _Watch] = field(default_factory=dict)
    due: list[_Watch] = field(default_factory=list)
    created: list[tuple[int, int]] = field(default_factory=list)
    """New watches and their start revisions, for the next reply. That may answer another poll than the one that created
    them, and may already hold their first events."""
    poll: _PendingPoll | None = None
    replies: int = 0
    gathering: threading.Lock = field(default_factory=threading.Lock)
    """Held while a reply is made, so that replies are numbered in the order of their contents."""


_Polls = list[tuple[_ServedStream, _PendingPoll]]
_Reads = dict[tuple[HistoryQuery, int], tuple[Changes, tuple[WatchEvent, ...]]]
"""What was read for one reply: by the query and the first revision, the changes and the events made of them."""
_NO_OTHERS: tuple[_Polls, int, _Polls] = ([], 0, [])


class WatchFigures(NamedTuple):
    """See :meth:`Watches.figures`."""

    streams: int
    watches: int
    due: int
    """Watches with something to read."""
    lag: int
    """Revisions that the slowest of them has not read."""
    slowest: bytes
    """The stream of that one; empty if none lags..."""
    silent: float
    """... and for how many seconds its client has not polled..."""
    source: str = ""
    """... and from where, for people, it came."""


class Watches:
    """See the module.

    Args:
        turn: the member's.
        clock: the replica's clock.
        is_stale: whether the member is cut off from the leader.
        term: the Raft term that it is in.
    """

    def __init__(
        self,
        turn: Turn,
        clock: Callable[[], float],
        is_stale: Callable[[], bool],
        term: Callable[[], int] = lambda: 0,
    ) -> None:
        self._turn = turn
        self._clock = clock
        self._is_stale = is_stale
        self._term = term
        self._lock = threading.Lock()
        self._index: WatchIndex[_Watch] = WatchIndex()
        self._streams: dict[bytes, _ServedStream] = {}
        self._dropped: list[_Watch] = []
        """Watches that have ended but are still in the index."""
        self._seen = turn.state.revision
        """The newest revision whose changes have made their watches due."""
        self.busy = False
        """Whether there are streams."""
        self._others = _NO_OTHERS
        """Polls that :meth:`answer_others` is to answer: in the loop, with the revision before; and on threads."""
        self.events_sent = 0
        """Events in replies so far; for metrics."""
        self._closed = False

    # -- the loop's side ----------------------------------------------------------------------------------------------

    def keys_changed(self, keys: Sequence[bytes], revision: int) -> None:
        """These keys have changed, up to and including this revision, which reads already see.

        ``seen`` must advance under the same lock that makes the watches due, or a reply made in between would report
        progress past an event that it lacks.

        The polls of the first ``WATCH_FIRST_STREAMS`` streams are answered here; those of the others by
        :meth:`answer_others`, which the caller calls next, after it has answered those who made the changes."""
        with self._lock:
            woken = []
            before = self._seen
            if self.busy:
                for watch in self._index.concerned(keys):
                    if watch.ended:
                        continue
                    if watch.due:
                        watch.again = True
                    else:
                        self._make_due(watch, before)
                    woken.append(watch.stream)
            self._seen = revision
            polls = self._take_polls(woken)
        if not polls:
            return
        quick = WATCH_QUICK_STREAMS if len(keys) <= WATCH_QUICK_CHANGES else 0
        first = min(quick, WATCH_FIRST_STREAMS)
        self._answer_now(polls[:first], before)
        self._others = polls[first:quick], before, polls[quick:]

    def answer_others(self) -> None:
        """Answer the polls that :meth:`keys_changed` has left."""
        (soon, before, later), self._others = self._others, _NO_OTHERS
        self._answer_now(soon, before)
        self._answer(later)

    def state_replaced(self) -> None:
        """A snapshot has replaced the state: every watch becomes due, because it may have missed something."""
        with self._lock:
            before, self._seen = self._seen, self._turn.state.revision
            for stream in self._streams.values():
                for watch in stream.watches.values():
                    if watch.due:
                        watch.again = True
                    else:
                        self._make_due(watch, before)
            polls = self._take_polls(self._streams.values())
        self._answer(polls)

    def answer_overdue_polls(self, now: float) -> None:
        """Answer polls whose deadline has passed, or all if this member is cut off, so that clients ask another; drop
        streams that are no longer polled."""
        if not self._streams and not self._dropped:
            return
        stale = self._is_stale()
        with self._lock:
            over = [s for s in self._streams.values() if s.poll and (stale or s.poll.deadline <= now)]
            polls = self._take_polls(over)
            for stream in list(self._streams.values()):
                if stream.poll is None and now - stream.polled_at >= WATCH_STREAM_IDLE_S:
                    self._drop(stream)
            self._forget(WATCH_FORGET_AT_ONCE)
        self._answer(polls)

    def figures(self, now: float) -> WatchFigures:
        """How much is watched, and which stream lags most. Any thread."""
        with self._lock:
            seen = self._seen
            watches = due = lag = 0
            slowest: _ServedStream | None = None
            for stream in self._streams.values():
                watches += len(stream.watches)
                if not stream.due:
                    continue
                due += len(stream.due)
                most = seen - min([watch.position for watch in stream.due])
                if most > lag:
                    slowest, lag = stream, most
            silent = 0.0 if slowest is None or slowest.poll is not None else max(0.0, now - slowest.polled_at)
            id = b"" if slowest is None else slowest.id
            source = "" if slowest is None else slowest.source
            return WatchFigures(len(self._streams), watches, due, lag, id, silent, source)

    def close(self) -> None:
        """This member stops: refuse all waiting polls."""
        with self._lock:
            self._closed = True
            polls = self._take_polls(self._streams.values())
            for stream in list(self._streams.values()):
                self._drop(stream)
        for _, poll in polls:
            poll.done(lambda: Refused(Refusal.NOT_SERVING))

    def _make_due(self, watch: _Watch, position: int) -> None:
        watch.due = True
        watch.position = max(watch.position, position)
        watch.stream.due.append(watch)

    def _take_polls(self, streams: Iterable[_ServedStream]) -> _Polls:
        polls = []
        for stream in streams:
            if stream.poll is not None:
                polls.append((stream, stream.poll))
                stream.poll = None
                stream.polled_at = self._clock()
        return polls

    def _answer_now(self, polls: _Polls, before: int) -> None:
        """Answer polls in the loop if little was missed, all of it after this revision; else leave it to a thread."""
        for stream, poll in polls:
            reply = self._gather_now(stream, before)
            poll.done(partial(self._gather, stream) if reply is None else ReadyReply(reply))

    def _answer(self, polls: _Polls) -> None:
        for stream, poll in polls:
            poll.done(partial(self._gather, stream))

    def _drop(self, stream: _ServedStream) -> None:
        del self._streams[stream.id]
        for watch in stream.watches.values():
            watch.ended = True
        self._dropped += stream.watches.values()
        stream.watches.clear()
        stream.due.clear()
        self.busy = bool(self._streams)

    def _forget(self, most: int) -> None:
        """Remove watches of dropped streams from the index, a bounded number at a time: there may be thousands."""
        for watch in self._dropped[-most:]:
            self._index.remove(watch.wanted.keys, watch)
        del self._dropped[-most:]

    # -- polls --------------------------------------------------------------------------------------------------------

    def poll(
        self,
        request: WatchPoll,
        deadline: float,
        done: WatchReplyCallback,
        caller: Caller | None = None,
        source: str = "",
    ) -> None:
        """Accept a poll, and create its watches. If one of them starts with what comes next (``start_revision`` 0), the
        state must be known to be as new as any was when the poll arrived.

        A poll replaces the stream's previous one, which is answered at once with what there is.

        Args:
            caller: who polls; ``None`` while users are not needed.
            source: from where, for people.
        """
        user = None if caller is None else caller.user
        with self._lock:
            if self._closed:
                refused: WatchReply | None = Refused(Refusal.NOT_SERVING)
            else:
                refused = self._find_or_open(request, user)
            polls: _Polls = []
            if refused is None:
                stream = self._streams[request.stream]
                polls = self._take_polls([stream])
                if request.create:
                    stream.users = None
                stream.created += [self._create(stream, create) for create in request.create]
                for number in request.cancel:
                    self._cancel(stream, number)
                stream.polled_at, stream.source = self._clock(), source
                stream.poll = _PendingPoll(deadline, done)
                if stream.created or stream.due or self._is_stale():
                    polls += self._take_polls([stream])
        if refused is not None:
            answer = refused
            done(lambda: answer)
        self._answer(polls)

    def _find_or_open(self, request: WatchPoll, user: str | None) -> WatchReply | None:
        """Find or open the poll's stream; the reply if that is not possible. A stream that is not what the client takes
        it for is answered as stale: then the client opens another, and resumes each watch at the position that it
        knows."""
        stream = self._streams.get(request.stream)
        if stream is None:
            if not request.first:
                return Watched(0, self._seen, stale=True)
            if len(self._streams) >= MAX_WATCH_STREAMS:
                return Refused(Refusal.OVERLOADED, message="this member serves as many watch streams as it may")
            stream = self._streams[request.stream] = _ServedStream(request.stream, self._clock(), user)
            self.busy = True
        elif user != stream.user:  # users came to be needed, or not to be
            return Watched(0, self._seen, stale=True)
        elif request.first:
            return Watched(0, self._seen, stale=True)  # a repeated poll
        if len(stream.watches) + len(request.create) > MAX_WATCHES_PER_STREAM:
            return Refused(Refusal.OVERLOADED, message="a process may have no more watches")
        return None

    def _create(self, stream: _ServedStream, create: CreateWatch) -> tuple[int, int]:
        start = create.start_revision or self._seen + 1
        wanted = HistoryQuery(create.keys, create.prev, create.puts, create.deletes)
        watch = _Watch(create.id, wanted, start - 1, stream)
        self._cancel(stream, create.id)
        stream.watches[create.id] = watch
        self._index.add(create.keys, watch)
        if start <= self._seen:
            watch.due = True
            stream.due.append(watch)
        return create.id, start

    def _cancel(self, stream: _ServedStream, number: int) -> None:
        watch = stream.watches.pop(number, None)
        if watch is not None:
            watch.ended = True
            self._index.remove(watch.wanted.keys, watch)

    # -- gathering, on the poll's thread ------------------------------------------------------------------------------

    def _gather(self, stream: _ServedStream) -> WatchReply:
        with stream.gathering:
            return self._gather_locked(stream)

    def _gather_now(self, stream: _ServedStream, before: int) -> WatchReply | None:
        """The reply, if only a few watches are due and all for changes after this revision; else ``None``. For the
        loop, which must not wait, so it does not wait for the lock either."""
        with self._lock:
            few = len(stream.due) <= WATCH_QUICK_CHANGES and all(watch.position >= before for watch in stream.due)
        if not few or not stream.gathering.acquire(blocking=False):
            return None
        try:
            return self._gather_locked(stream)
        finally:
            stream.gathering.release()

    def _gather_locked(self, stream: _ServedStream) -> WatchReply:
        """Read what the due watches have missed, as much as fits. Number and ``seen`` are taken together with the list
        of due watches: whatever changes afterwards makes a watch due again, for the next reply."""
        with self._lock:
            if self._closed:
                return Refused(Refusal.NOT_SERVING)
            if self._streams.get(stream.id) is not stream:
                return Watched(0, self._seen, stale=True)
            stream.replies += 1
            number, seen = stream.replies, self._seen
            due, stream.due = stream.due, []
            created, stream.created = tuple(stream.created), []
            for watch in due:
                watch.again = False
        denied = self._end_denied(stream)
        if denied:
            created = tuple([each for each in created if each[0] not in denied])
        batches: list[WatchBatch] = []
        compacted: list[tuple[int, int]] = []
        read: _Reads = {}
        left = WATCH_REPLY_BYTES
        waiting: list[_Watch] = []
        served: list[_Watch] = []
        for watch in due:
            if left <= 0:
                waiting.append(watch)
            elif not watch.ended:
                left -= self._read(watch, seen, left, batches, compacted, read)
                served.append(watch)
        lagging = self._put_back([*waiting, *served], seen)  # those without room in this reply are first in the next
        if lagging is None:
            return Watched(0, seen, stale=True)
        return Watched(
            number, seen, created, tuple(batches), lagging, tuple(compacted), self._is_stale(), self._term(), denied
        )

    def _end_denied(self, stream: _ServedStream) -> tuple[int, ...]:
        """End the watches of keys that the user may not read, if users or roles have changed since they were checked,
        or there are new ones; returns their ids. Events that lie before the change are not delivered either."""
        users = self._turn.state.users
        if users is stream.users or not users.enabled:
            return ()
        rights = None if stream.user is None else users.rights(stream.user)
        with self._lock:
            stream.users = users
            denied = [
                watch.id
                for watch in stream.watches.values()
                if rights is None or not rights.may_read(watch.wanted.keys)
            ]
            for number in denied:
                self._cancel(stream, number)
        return tuple(denied)

    def _read(
        self,
        watch: _Watch,
        seen: int,
        left: int,
        batches: list[WatchBatch],
        compacted: list[tuple[int, int]],
        read: _Reads,
    ) -> int:
        """Read what one watch has missed; returns the size in bytes. A hundred watches of one range have mostly missed
        the same, which is read once for all of them, and stays in ``read``."""
        low = watch.position + 1
        if low > seen:  # it starts at a future revision
            return 0
        same = watch.wanted, low
        known = read.get(same) if left >= WATCH_BATCH_BYTES else None
        if known is None:
            found = self._turn.state.history(
                watch.wanted, low, seen, max_bytes=min(left, WATCH_BATCH_BYTES), max_scanned=WATCH_SCAN_CHANGES
            )
            events: tuple[WatchEvent, ...] = ()
            if not isinstance(found, int):
                events = tuple([WatchEvent(change.deleted, change.item, change.prev) for change in found.changes])
                if left >= WATCH_BATCH_BYTES:
                    read[same] = found, events
        else:
            found, events = known
        if isinstance(found, int):
            with self._lock:
                if watch.stream.watches.get(watch.id) is watch:
                    self._cancel(watch.stream, watch.id)
            compacted.append((watch.id, found))
            return 0
        watch.position = found.upto
        if found.changes or found.upto < seen:  # the position matters too, to a client that resumes at another member
            batches.append(WatchBatch(watch.id, found.upto, events))
            self.events_sent += len(events)
        return found.size

    def _put_back(self, watches: list[_Watch], seen: int) -> tuple[int, ...] | None:
        """Keep those due that have not seen everything, or whose keys have changed again; returns the ids of the
        former.

        ``None`` if the stream was dropped meanwhile (after the machine slept, say): then its watches have ended, and
        what was read for them may be incomplete.
        """
        lagging = []
        stream = watches[0].stream if watches else None
        with self._lock:
            if stream is not None and self._streams.get(stream.id) is not stream:
                return None
            for watch in watches:
                watch.due = not watch.ended and (watch.again or watch.position < seen)
                if watch.due:
                    watch.stream.due.append(watch)
                    if watch.position < seen:
                        lagging.append(watch.id)
        return tuple(lagging)
