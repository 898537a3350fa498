"""The watches that one member serves.

A watch is a position in the history of a range; what lies between the position and the newest revision is read from the
store when somebody polls for it. So a slow consumer costs nothing, holds back nobody, and no event is ever kept in
memory on its behalf. The loop only says which keys have changed; a watch that is concerned becomes *due*, and the poll
that waits for its stream is woken; if it has missed no more than a few changes of just now, the loop reads them itself.
A watch that is not due has seen everything, so its position needs no moving.

Guarantees (etcd: watch API): ordered, unique, complete from the first revision on, whole revisions at a time; a
progress notice (a batch without events) never runs ahead of an event, because ``seen`` moves only after the watches
that a revision concerns were made due.

The loop calls ``changed``, ``replaced`` and ``tick``; polls come on threads of their own and read the history there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..limits import (
    MAX_WATCH_STREAMS,
    MAX_WATCHES_PER_STREAM,
    WATCH_BATCH_BYTES,
    WATCH_FORGET_AT_ONCE,
    WATCH_QUICK_CHANGES,
    WATCH_QUICK_STREAMS,
    WATCH_REPLY_BYTES,
    WATCH_SCAN,
    WATCH_STREAM_IDLE,
)
from ..store.history import Wanted
from ..store.state import State
from .protocol import CreateWatch, Refusal, Refused, WatchBatch, Watched, WatchEvent, WatchPoll
from .watch_index import WatchIndex

Reply = Watched | Refused
Done = Callable[[Callable[[], Reply]], None]
"""Called once with a function that makes the reply, on whatever thread wants to do that."""


class Gathered:
    """Makes a reply that is made already: it costs no thread."""

    __slots__ = ("_reply",)

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def __call__(self) -> Reply:
        """The reply."""
        return self._reply


@dataclass(eq=False, slots=True)
class _Watch:
    id: int
    wanted: Wanted
    position: int
    """Everything up to this revision was handed out. Only a watch that is due relies on it: one that is not has seen
    everything, as far as the member has."""
    stream: _Stream
    due: bool = False
    """In the stream's list of watches that have something to read, or just being read."""
    again: bool = False
    """Concerned by another change while it is due."""
    ended: bool = False


@dataclass(slots=True)
class _Poll:
    """Somebody who waits for a stream."""

    deadline: float
    done: Done


@dataclass(eq=False, slots=True)
class _Stream:
    id: bytes
    polled_at: float
    watches: dict[int, _Watch] = field(default_factory=dict)
    due: list[_Watch] = field(default_factory=list)
    created: list[tuple[int, int]] = field(default_factory=list)
    """Watches, and where they begin, for the next reply: it may be another poll's than theirs, and their first news may
    already be in it."""
    poll: _Poll | None = None
    replies: int = 0
    gathering: threading.Lock = field(default_factory=threading.Lock)
    """Held while a reply is made, so that replies are numbered in the order of what they hold."""


class Watches:
    """See the module.

    Args:
        state: the member's state as it is now (a snapshot replaces it).
        clock: the server's clock.
        is_stale: whether the member is cut off from the leader.
    """

    def __init__(self, state: Callable[[], State], clock: Callable[[], float], is_stale: Callable[[], bool]) -> None:
        self._state = state
        self._clock = clock
        self._is_stale = is_stale
        self._lock = threading.Lock()
        self._index: WatchIndex[_Watch] = WatchIndex()
        self._streams: dict[bytes, _Stream] = {}
        self._dropped: list[_Watch] = []
        """Watches that have ended and still stand in the index."""
        self._seen = state().revision
        """Up to here the watches know what concerns them."""
        self.busy = False
        """Whether anybody watches: if not, nobody needs to call ``changed``."""
        self._closed = False

    # -- the loop's side ----------------------------------------------------------------------------------------------

    def changed(self, keys: Sequence[bytes], revision: int) -> None:
        """These keys have changed, up to and including this revision, which readers already see."""
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
        quick = WATCH_QUICK_STREAMS if len(keys) <= WATCH_QUICK_CHANGES else 0
        for stream, poll in polls[:quick]:
            reply = self._gather_now(stream, before)
            poll.done(partial(self._gather, stream) if reply is None else Gathered(reply))
        self._answer(polls[quick:])

    def replaced(self) -> None:
        """A snapshot has replaced the state: every watch looks for itself what it has missed."""
        with self._lock:
            before, self._seen = self._seen, self._state().revision
            for stream in self._streams.values():
                for watch in stream.watches.values():
                    if watch.due:
                        watch.again = True
                    else:
                        self._make_due(watch, before)
            polls = self._take_polls(self._streams.values())
        self._answer(polls)

    def tick(self, now: float) -> None:
        """Time has passed: answer polls whose time is over or that are better asked elsewhere; drop silent streams."""
        if not self._streams and not self._dropped:
            return
        stale = self._is_stale()
        with self._lock:
            over = [s for s in self._streams.values() if s.poll and (stale or s.poll.deadline <= now)]
            polls = self._take_polls(over)
            for stream in list(self._streams.values()):
                if stream.poll is None and now - stream.polled_at >= WATCH_STREAM_IDLE:
                    self._drop(stream)
            self._forget(WATCH_FORGET_AT_ONCE)
        self._answer(polls)

    def close(self) -> None:
        """Answer everybody who waits: this member stops."""
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

    def _take_polls(self, streams: Iterable[_Stream]) -> list[tuple[_Stream, _Poll]]:
        polls = []
        for stream in streams:
            if stream.poll is not None:
                polls.append((stream, stream.poll))
                stream.poll = None
                stream.polled_at = self._clock()
        return polls

    def _answer(self, polls: list[tuple[_Stream, _Poll]]) -> None:
        for stream, poll in polls:
            poll.done(partial(self._gather, stream))

    def _drop(self, stream: _Stream) -> None:
        del self._streams[stream.id]
        for watch in stream.watches.values():
            watch.ended = True
        self._dropped += stream.watches.values()
        stream.watches.clear()
        stream.due.clear()
        self.busy = bool(self._streams)

    def _forget(self, most: int) -> None:
        """Take watches of dropped streams out of the index, so many at a time: there may be thousands."""
        for watch in self._dropped[-most:]:
            self._index.remove(watch.wanted.keys, watch)
        del self._dropped[-most:]

    # -- polls --------------------------------------------------------------------------------------------------------

    def poll(self, request: WatchPoll, deadline: float, done: Done) -> None:
        """Take a poll in. The watches that it creates begin now: call this when the state is known to be as new as any
        at the poll's arrival, if one of them begins with what comes next (``start_revision`` 0).

        A poll takes over from the one before it, which is answered at once with what there is.
        """
        with self._lock:
            if self._closed:
                refused: Reply | None = Refused(Refusal.NOT_SERVING)
            else:
                refused = self._begin(request)
            polls: list[tuple[_Stream, _Poll]] = []
            if refused is None:
                stream = self._streams[request.stream]
                polls = self._take_polls([stream])
                stream.created += [self._create(stream, create) for create in request.create]
                for number in request.cancel:
                    self._cancel(stream, number)
                stream.polled_at = self._clock()
                stream.poll = _Poll(deadline, done)
                if stream.created or stream.due or self._is_stale():
                    polls += self._take_polls([stream])
        if refused is not None:
            answer = refused
            done(lambda: answer)
        self._answer(polls)

    def _begin(self, request: WatchPoll) -> Reply | None:
        """Find or begin the stream; why not, otherwise."""
        stream = self._streams.get(request.stream)
        if stream is None:
            if not request.first:
                return Watched(0, self._seen, stale=True)
            if len(self._streams) >= MAX_WATCH_STREAMS:
                return Refused(Refusal.OVERLOADED, message="this member serves as many watch streams as it may")
            stream = self._streams[request.stream] = _Stream(request.stream, self._clock())
            self.busy = True
        elif request.first:
            return Watched(0, self._seen, stale=True)  # a repeated poll: its stream is not what it takes it for
        if len(stream.watches) + len(request.create) > MAX_WATCHES_PER_STREAM:
            return Refused(Refusal.OVERLOADED, message="a process may have no more watches")
        return None

    def _create(self, stream: _Stream, create: CreateWatch) -> tuple[int, int]:
        start = create.start_revision or self._seen + 1
        wanted = Wanted(create.keys, create.prev, create.puts, create.deletes)
        watch = _Watch(create.id, wanted, start - 1, stream)
        self._cancel(stream, create.id)
        stream.watches[create.id] = watch
        self._index.add(create.keys, watch)
        if start <= self._seen:
            watch.due = True
            stream.due.append(watch)
        return create.id, start

    def _cancel(self, stream: _Stream, number: int) -> None:
        watch = stream.watches.pop(number, None)
        if watch is not None:
            watch.ended = True
            self._index.remove(watch.wanted.keys, watch)

    # -- gathering, on the poll's thread ------------------------------------------------------------------------------

    def _gather(self, stream: _Stream) -> Reply:
        with stream.gathering:
            return self._gathered(stream)

    def _gather_now(self, stream: _Stream, before: int) -> Reply | None:
        """The reply, if a few watches are due for nothing but what came behind this revision; for the loop, which must
        wait for nobody."""
        with self._lock:
            few = len(stream.due) <= WATCH_QUICK_CHANGES and all(watch.position >= before for watch in stream.due)
        if not few or not stream.gathering.acquire(blocking=False):
            return None
        try:
            return self._gathered(stream)
        finally:
            stream.gathering.release()

    def _gathered(self, stream: _Stream) -> Reply:
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
        batches: list[WatchBatch] = []
        compacted: list[tuple[int, int]] = []
        left = WATCH_REPLY_BYTES
        waiting: list[_Watch] = []
        served: list[_Watch] = []
        for watch in due:
            if left <= 0:
                waiting.append(watch)
            elif not watch.ended:
                left -= self._read(watch, seen, left, batches, compacted)
                served.append(watch)
        behind = self._put_back([*waiting, *served], seen)  # who got nothing this time comes first the next
        if behind is None:
            return Watched(0, seen, stale=True)
        return Watched(number, seen, created, tuple(batches), behind, tuple(compacted), self._is_stale())

    def _read(
        self, watch: _Watch, seen: int, left: int, batches: list[WatchBatch], compacted: list[tuple[int, int]]
    ) -> int:
        """Read what one watch has missed; the bytes that it takes."""
        low = watch.position + 1
        if low > seen:  # it begins in the future
            return 0
        state = self._state()
        found = state.history(watch.wanted, low, seen, max_bytes=min(left, WATCH_BATCH_BYTES), max_scanned=WATCH_SCAN)
        if isinstance(found, int):
            with self._lock:
                if watch.stream.watches.get(watch.id) is watch:
                    self._cancel(watch.stream, watch.id)
            compacted.append((watch.id, found))
            return 0
        watch.position = found.upto
        if found.changes or found.upto < seen:  # how far that went counts too, for one who has to go on elsewhere
            events = tuple([WatchEvent(change.deleted, change.item, change.prev) for change in found.changes])
            batches.append(WatchBatch(watch.id, found.upto, events))
        return found.size

    def _put_back(self, watches: list[_Watch], seen: int) -> tuple[int, ...] | None:
        """Those that have not seen everything, or were concerned again meanwhile, stay due; which have not seen all.

        ``None`` if the stream was dropped meanwhile (after a sleep of the machine, say): then its watches have ended,
        and what was read for them is not all.
        """
        behind = []
        stream = watches[0].stream if watches else None
        with self._lock:
            if stream is not None and self._streams.get(stream.id) is not stream:
                return None
            for watch in watches:
                watch.due = not watch.ended and (watch.again or watch.position < seen)
                if watch.due:
                    watch.stream.due.append(watch)
                    if watch.position < seen:
                        behind.append(watch.id)
        return tuple(behind)
