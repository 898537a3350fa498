"""What the user holds of a watch: ``for event in kv.watch(prefix="jobs/"): ...``

A watch sees every change of its keys from its start on, in order, once, and whole revisions at a time; it moves to
another member by itself when its own one dies, lags or is cut off. How that comes about is said in :mod:`watching`;
this file turns stored events into the user's, and waits. Its start is fixed before the call that makes it returns.

A watch belongs to its process. It ends when it is cancelled or collected, when the handle that made it is closed, and
when the history that it needs is compacted away; only then is that an error, :class:`~raykeeper.CompactedError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from ...errors import InvalidArgument, KeeperError, Unavailable
from ...limits import ASYNC_WATCH_CHECK, WATCH_POLL
from ...store.commands import Item, KeyRange, Range
from ..protocol import WatchEvent
from ..validation import check_range
from . import arguments as check
from .hub import Hub, clock
from .registry import Share
from .requests import View
from .results import KeyValue
from .subscription import Gate, Phase, Subscription
from .undisturbed import Bell
from .waiting import within

ONLY = {"put": (True, False), "delete": (False, True)}


class Event(msgspec.Struct, frozen=True):
    """One change of one key (etcd: mvccpb.Event).

    Attributes:
        type: ``"put"`` or ``"delete"``.
        kv: the key as it is now; of a deleted one only ``key`` and ``mod_revision`` mean something.
        prev: the key as it was before, if the watch was made with ``prev=True``; ``None`` if there was none, or if
            that revision is compacted.
    """

    type: Literal["put", "delete"]
    kv: KeyValue
    prev: KeyValue | None = None


class Batch(msgspec.Struct, frozen=True):
    """One whole revision as far as a watch is concerned, or a notice that there was nothing for it up to a revision.

    Attributes:
        revision: with this batch, everything up to this revision was delivered.
        events: of this revision; empty for a progress notice.
    """

    revision: int
    events: tuple[Event, ...]


class Wanted(NamedTuple):
    """What a watch is asked to look at."""

    keys: KeyRange
    start_revision: int
    prev: bool
    puts: bool
    deletes: bool


def wanted(
    view: View, key: object, end: object, prefix: object, start_revision: object, prev: object, only: object
) -> Wanted:
    """Check the arguments of ``Client.watch``.

    Raises:
        InvalidArgument: one of them is wrong.
    """
    keys = view.keys(key, end, prefix)
    start = 0 if start_revision is None else check.whole_number("start_revision", start_revision, 1)
    puts, deletes = (True, True) if only is None else check.one_of("only", only, ONLY)
    return Wanted(keys, start, check.flag("prev", prev), puts, deletes)


class Feed:
    """What a sync and an async watch have in common: what was taken, and where that stands.

    Args:
        share: in the hub; the hub lives as long as its watches.
        view: which keys, and how values are decoded.
        gate: is woken when there may be something to take.
    """

    def __init__(self, share: Share, view: View, wanted: Wanted, gate: Gate) -> None:
        self._share = share
        self._view = view
        self._taken: deque[WatchEvent] = deque()
        self._position = 0
        self._over = False
        self._error: KeeperError | None = None
        self._taking = threading.RLock()  # a destructor may end a watch in the middle
        self._hub = hub = share.hub
        check_range(Range(wanted.keys), hub.limits)
        self._subscription: Subscription = hub.do(
            lambda now: hub.watching.create(
                wanted.keys,
                start_revision=wanted.start_revision,
                prev=wanted.prev,
                puts=wanted.puts,
                deletes=wanted.deletes,
                gate=gate,
            )
        )
        weakref.finalize(self, _drop, hub, self._subscription).atexit = False

    @property
    def revision(self) -> int:
        """All events up to this revision were delivered, and none beyond."""
        self._hub.check_process()
        with self._taking:
            if not self._taken and not self._over:
                position = self._hub.peek(lambda: self._hub.watching.position(self._subscription))
                if position is not None:
                    self._position = max(self._position, position)
            return self._reached()

    def _reached(self) -> int:
        if self._taken:
            return self._taken[0].item.mod_revision - 1
        return max(self._position, self._subscription.before)  # nothing was taken yet, and something waits

    def _begun(self) -> bool:
        """Whether the start is fixed.

        Raises:
            KeeperError: it never will be.
        """
        subscription = self._subscription
        if subscription.phase is Phase.OVER and not subscription.fixed:
            raise subscription.error or InvalidArgument("the watch was cancelled before it began")
        return subscription.fixed

    def _unconfirmed(self) -> Unavailable:
        """No member has said in time where the watch begins: cancel it."""
        hub = self._hub
        problem = hub.peek(lambda: hub.watching.problem)
        self._end()
        return Unavailable(f"no member has confirmed the watch in time{': ' if problem else ''}{problem}")

    def _pull(self) -> bool:
        """Take what has come; whether there is an event, or nothing more to wait for."""
        if not self._taken and not self._over:
            taken = self._hub.do(lambda now: self._hub.watching.take(self._subscription))
            self._taken.extend(taken.events)
            self._position = max(self._position, taken.position)
            self._over, self._error = taken.over, taken.error
        return bool(self._taken) or self._over

    def _pop(self) -> Event | None:
        """The next event; ``None`` if there is none, or no more.

        Raises:
            CompactedError: the history that comes next is gone.
        """
        with self._taking:
            self._pull()
            if self._taken:
                return self._event(self._taken.popleft())
            if self._error is not None:
                raise self._error
            return None

    def _pop_batch(self, told: int, progress: bool) -> Batch | None:
        """The next revision's events, or, if wanted, a notice that there were none beyond ``told``."""
        with self._taking:
            self._pull()
            taken = self._taken
            if taken:
                revision = taken[0].item.mod_revision
                events = []
                while taken and taken[0].item.mod_revision == revision:
                    events.append(self._event(taken.popleft()))
                return Batch(revision, tuple(events))
            if self._error is not None:
                raise self._error
            if progress and not self._over and self._position > told:
                return Batch(self._position, ())
            return None

    def _event(self, event: WatchEvent) -> Event:
        prev = None if event.prev is None else self._pair(event.prev, deleted=False)
        return Event("delete" if event.deleted else "put", self._pair(event.item, event.deleted), prev)

    def _pair(self, i: Item, deleted: bool) -> KeyValue:
        codec = None if deleted else self._view.codec
        key = i.key[len(self._view.space) :]
        return KeyValue(key, i.value, i.create_revision, i.mod_revision, i.version, i.lease, codec)

    def _end(self) -> None:
        hub, subscription = self._hub, self._subscription
        if hub.process != os.getpid():
            self._over = True  # the watch itself is the parent's; whoever held the lock may not be here
            return
        hub.now_or_soon(lambda now: hub.watching.cancel(subscription, now))
        with self._taking:
            self._taken.clear()
            self._over, self._error = True, None

    def __repr__(self) -> str:
        foreign = self._hub.process != os.getpid()
        state = "of another process" if foreign else "ended" if self._over else f"at revision {self.revision}"
        return f"<{type(self).__name__} of cluster {self._hub.name!r}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a watch does not pickle: it belongs to this process. Pass its .revision, and let the other process "
            "watch with start_revision=revision + 1"
        )


def _drop(hub: Hub, subscription: Subscription) -> None:
    if hub.process == os.getpid():
        hub.drop(subscription)


class _ThreadGate:
    """Wakes the thread that waits for a watch."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = Bell()

    def wake(self) -> None:
        self.event.set()


class Watch(Feed):
    """Changes of keys as they happen. Made by ``Client.watch``; see the module.

    Iterate for :class:`Event`, or over :meth:`batches` for :class:`Batch`. Both wait, and end after :meth:`cancel`.
    Several threads may take events from one watch: each event goes to one of them.

    Raises (while iterating):
        CompactedError: the events that come next are compacted away; all before them were delivered.
    """

    def __init__(self, share: Share, view: View, wanted: Wanted, timeout: float) -> None:
        self._gate = _ThreadGate()
        self._turn = threading.Lock()
        super().__init__(share, view, wanted, self._gate)
        deadline = clock() + timeout
        try:
            while not self._begun():
                if not self._gate.event.wait(_bounded(deadline - clock())):
                    raise self._unconfirmed()
                self._gate.event.clear()
        except BaseException:
            self._end()
            raise

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event.

        Args:
            timeout: seconds, ``None`` for ever.

        Returns:
            the event, or ``None`` when the time is over or the watch was cancelled.

        Raises:
            CompactedError: the events that come next are compacted away.
        """
        deadline = _deadline(timeout)
        self._hub.check_process()  # whoever has the turn may not be here
        if not self._turn.acquire(timeout=_bounded(deadline - clock())):
            return None
        try:
            while True:
                self._gate.event.clear()
                event = self._pop()
                if event is not None or self._over:
                    return event
                if not self._wait(deadline):
                    return self._pop()
        finally:
            self._turn.release()

    def batches(self) -> Iterator[Batch]:
        """Whole revisions, each as one batch; empty ones now and then, as progress notices, while nothing happens."""
        told = self.revision
        while True:
            batch = self._next_batch(told)
            if batch is None:
                return
            told = batch.revision
            yield batch

    def _next_batch(self, told: int) -> Batch | None:
        self._hub.check_process()
        with self._turn:
            progress = False
            while True:
                self._gate.event.clear()
                batch = self._pop_batch(told, progress)
                if batch is not None or self._over:
                    return batch
                progress = not self._wait(clock() + WATCH_POLL)

    def _wait(self, deadline: float) -> bool:
        return self._gate.event.wait(_bounded(deadline - clock()))

    def cancel(self) -> None:
        """End the watch; events that were not taken yet are dropped. Iterators end."""
        self._end()

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Event:
        event = self.next()
        while event is None:
            if self._over:
                raise StopIteration
            event = self.next()
        return event

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()


class _LoopGate:
    """Wakes the coroutine that waits for a watch. Made inside its loop."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._told = False

    def flush(self) -> None:
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop was closed, and whoever waited in it is gone
                self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        self._told = False
        self.event.set()

    def overdue(self) -> bool:
        """Whether the loop did not do what it was told: a handler of a signal raised where it began."""
        overdue, self._told = self._told, False
        return overdue


class _LoopNews:
    """What the hub knows of a gate. It is held weakly: a coroutine that still waits there when its loop is closed is to
    be collected, with the watch, and with the lease that it may wait for a turn by."""

    def __init__(self, hub: Hub, gate: _LoopGate) -> None:
        self._hub = hub
        self._gate = weakref.ref(gate)

    def wake(self) -> None:
        self._hub.tell(self)

    def flush(self) -> None:
        gate = self._gate()
        if gate is not None:
            gate.flush()


class AsyncWatch(Feed):
    """The same as :class:`Watch` for asyncio, in the loop that made it: ``async for event in await kv.watch("k")``."""

    def __init__(self, share: Share, view: View, wanted: Wanted) -> None:
        self._gate = _LoopGate()
        super().__init__(share, view, wanted, _LoopNews(share.hub, self._gate))

    async def begin(self, timeout: float) -> None:
        """Wait until the start is fixed. ``AsyncClient.watch`` has done so.

        Raises:
            Unavailable: it was not, in time.
        """
        deadline = clock() + timeout
        try:
            while not self._begun():
                if not await self._wait(deadline):
                    raise self._unconfirmed()
                self._gate.event.clear()
        except BaseException:
            self._end()
            raise

    async def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event: see ``Watch.next``. No event is lost if the coroutine is cancelled."""
        deadline = _deadline(timeout)
        self._hub.check_process()
        while True:
            self._gate.event.clear()
            event = self._pop()
            if event is not None or self._over:
                return event
            if not await self._wait(deadline):
                return self._pop()

    async def batches(self) -> AsyncIterator[Batch]:
        """Whole revisions: see ``Watch.batches``."""
        told, progress = self.revision, False
        while True:
            self._gate.event.clear()
            batch = self._pop_batch(told, progress)
            if batch is not None:
                told, progress = batch.revision, False
                yield batch
            elif self._over:
                return
            else:
                progress = not await self._wait(clock() + WATCH_POLL)

    async def _wait(self, deadline: float) -> bool:
        left = deadline - clock()
        if left <= 0:
            return self._gate.event.is_set()
        while not await within(min(left, ASYNC_WATCH_CHECK), self._gate.event.wait()):
            if self._gate.overdue():
                return True
            left = deadline - clock()
            if left <= 0:
                return False
        return True

    async def cancel(self) -> None:
        """End the watch: see ``Watch.cancel``."""
        self._end()

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        while event is None:
            if self._over:
                raise StopAsyncIteration
            event = await self.next()
        return event

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()


def _deadline(timeout: Any) -> float:
    return float("inf") if timeout is None else clock() + check.seconds("timeout", timeout)


def _bounded(seconds: float) -> float:
    """A wait that a lock takes: 0 at least, and not for ever."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)
