"""Watches as the user sees them: ``for event in kv.watch(prefix="jobs/"): ...``

A watch sees every change of its keys from its start on: in order, once, and whole revisions at a time. Its start is
fixed before the call that makes it returns. It moves to another member by itself when its member dies, lags or is cut
off. :mod:`core.watch_core` sees to all that; this file turns stored events into the user's, and waits.

A watch belongs to its process. It ends when it is cancelled or collected, and when the handle that made it is closed.
If the history that it needs is compacted, it ends with :class:`~raykeeper.CompactedError`.
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
from typing import Any, NamedTuple, NoReturn

from ...errors import InvalidArgument, KeeperError, Unavailable
from ...limits import ASYNC_WATCH_CHECK_S, WATCH_POLL_S
from ...schema.answers import Item
from ...schema.frames import WatchEvent
from ...schema.operations import KeyRange, Range
from ...schema.validation import check_range
from .. import arguments as check
from ..finalizer_guard import LockFreeEvent
from ..interruptible import refuse_reentry
from ..transport.loop_reader import LoopReader
from .core.subscription import NewsSignal, Phase, Subscription
from .hub import Hub, clock
from .hub_pool import HubShare
from .loop_bridge import bridge_to
from .results import Batch, Event, KeyValue
from .view import View

ONLY = {"put": (True, False), "delete": (False, True)}


class WatchSpec(NamedTuple):
    """The checked arguments of a watch."""

    keys: KeyRange
    start_revision: int
    prev: bool
    puts: bool
    deletes: bool


def watch_spec(
    view: View, key: object, end: object, prefix: object, start_revision: object, prev: object, only: object
) -> WatchSpec:
    """Check the arguments of ``Client.watch``.

    Raises:
        InvalidArgument: one of them is wrong.
    """
    keys = view.keys(key, end, prefix)
    start = 0 if start_revision is None else check.whole_number("start_revision", start_revision, 1)
    puts, deletes = (True, True) if only is None else check.one_of("only", only, ONLY)
    return WatchSpec(keys, start, check.flag("prev", prev), puts, deletes)


class EventBuffer:
    """What the sync and the async watch have in common: the events that were taken from the hub, and the position.

    Args:
        share: in the hub, which stays open as long as its watches exist.
        view: the keys that the handle sees, and how values are decoded.
        signal: is woken when there may be something to take.
        loop: reads lanes in the event loop whose coroutines take it; ``None`` if a thread takes it.
    """

    def __init__(
        self, share: HubShare, view: View, wanted: WatchSpec, signal: NewsSignal, loop: LoopReader | None = None
    ) -> None:
        self._share = share
        self._view = view
        self._taken: deque[WatchEvent] = deque()
        self._position = 0
        self._over = False
        self._error: KeeperError | None = None
        self._taking = threading.RLock()  # a destructor may end a watch in the middle
        self._hub = hub = share.hub
        check_range(Range(wanted.keys), hub.limits)
        self._subscription: Subscription = hub.run_locked(
            lambda now: hub.watch_core.create(
                wanted.keys,
                start_revision=wanted.start_revision,
                prev=wanted.prev,
                puts=wanted.puts,
                deletes=wanted.deletes,
                signal=signal,
                loop=loop,
            )
        )
        self._at_collection = weakref.finalize(self, _drop, hub, self._subscription)
        self._at_collection.atexit = False

    @property
    def revision(self) -> int:
        """The revision up to which all events were delivered, and none after it. To go on later, or in another process,
        watch with ``start_revision=watch.revision + 1``."""
        self._hub.check_process()
        with self._taking:
            if not self._taken and not self._over:
                position = self._hub.read_locked(lambda: self._hub.watch_core.position(self._subscription))
                if position is not None:
                    self._position = max(self._position, position)
            return self._reached()

    def _reached(self) -> int:
        if self._taken:
            return self._taken[0].item.mod_revision - 1
        return max(self._position, self._subscription.start_after)  # the latter if nothing was taken yet

    def _begun(self) -> bool:
        """Whether the start is fixed. Raises if it never will be."""
        subscription = self._subscription
        if subscription.phase is Phase.OVER and not subscription.fixed:
            raise subscription.error or InvalidArgument("the watch was cancelled before it began")
        return subscription.fixed

    def _unconfirmed(self) -> Unavailable:
        """Cancel the watch, and return the error: no member has confirmed its start in time."""
        hub = self._hub
        problem = hub.read_locked(lambda: hub.watch_core.problem)
        self._end()
        return Unavailable(f"no member has confirmed the watch in time{': ' if problem else ''}{problem}")

    def _pull(self) -> bool:
        """Take what has arrived from the hub; whether there is an event now, or nothing more to wait for."""
        if not self._taken and not self._over:
            taken = self._hub.run_locked(lambda now: self._hub.watch_core.deliver(self._subscription))
            self._taken.extend(taken.events)
            self._position = max(self._position, taken.position)
            self._over, self._error = taken.over, taken.error
        return bool(self._taken) or self._over

    def _pop(self) -> Event | None:
        """The next event; ``None`` if none has arrived, or the watch is over.

        Raises:
            CompactedError: the events that come next have been compacted.
        """
        with self._taking:
            self._pull()
            if self._taken:
                return self._event(self._taken.popleft())
            if self._error is not None:
                raise self._error
            return None

    def _pop_batch(self, delivered: int, progress: bool) -> Batch | None:
        """The events of the next revision; or, if ``progress``, a notice that there were none after ``delivered``.

        The core buffers whole revisions, so all events of the first one are here.
        """
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
            if progress and not self._over and self._position > delivered:
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
            self._over = True  # the watch itself is the parent's, and its locks may be held by threads that are gone
            return
        hub.run_now_or_soon(lambda now: hub.watch_core.cancel(subscription, now))
        self._at_collection.detach()  # it would wake the hub's timer thread, for nothing
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
        hub.cancel_soon(subscription)


class _ThreadSignal:
    """Wakes the thread that waits for events of a watch, once the hub's lock is free: that is what it needs next."""

    __slots__ = ("__weakref__", "_hub", "event")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.event = LockFreeEvent()

    def wake(self) -> None:
        self._hub.flush_later(self)

    def flush(self) -> None:
        self.event.set()


class Watch(EventBuffer):
    """A watch, made by ``Client.watch``.

    ::

        with kv.watch(prefix="jobs/") as watch:
            for event in watch:                      # waits; ends after watch.cancel()
                print(event.type, event.kv.key)
            event = watch.next(timeout=5)            # None after 5 seconds without an event
            for batch in watch.batches():            # whole revisions, with progress notices
                print(batch.revision, batch.events)

    Several threads may take events from one watch: each event goes to one of them. It does not pickle; pass its
    ``revision`` to another process instead.

    Raises (while iterating):
        CompactedError: the events that come next have been compacted; all before them were delivered.
    """

    def __init__(self, share: HubShare, view: View, wanted: WatchSpec, timeout: float) -> None:
        self._wakeup = _ThreadSignal(share.hub)
        self._taker = threading.RLock()
        super().__init__(share, view, wanted, self._wakeup)
        deadline = clock() + timeout
        try:
            while not self._begun():
                if not self._wakeup.event.wait(_bounded(deadline - clock())):
                    raise self._unconfirmed()
                self._wakeup.event.clear()
        except BaseException:
            self._end()
            raise

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event.

        Args:
            timeout: seconds; ``None`` waits forever, 0 does not wait.

        Returns:
            The event, or ``None`` when the time is over or the watch was cancelled.

        Raises:
            CompactedError: the events that come next have been compacted.
            ForkedProcess: this process is a forked child of the watch's own.
        """
        deadline = _deadline(timeout)
        self._hub.check_process()  # in a forked child the lock may be held by a thread that is gone
        refuse_reentry(self._taker)
        try:
            if not self._taker.acquire(timeout=_bounded(deadline - clock())):
                return None
            while True:
                self._wakeup.event.clear()
                event = self._pop()
                if event is not None or self._over:
                    return event
                if not self._wait(deadline):
                    event = self._pop()
                    return event
        finally:
            try:  # noqa: SIM105 - see interruptible: nothing may run before it
                self._taker.release()
            except RuntimeError:  # the time was over
                pass

    def batches(self) -> Iterator[Batch]:
        """Iterate over whole revisions, each as one batch. While nothing happens, progress notices (batches without
        events) come now and then."""
        delivered = self.revision
        while True:
            batch = self._next_batch(delivered)
            if batch is None:
                return
            delivered = batch.revision
            yield batch

    def _next_batch(self, delivered: int) -> Batch | None:
        self._hub.check_process()
        refuse_reentry(self._taker)
        with self._taker:
            progress = False
            while True:
                self._wakeup.event.clear()
                batch = self._pop_batch(delivered, progress)
                if batch is not None or self._over:
                    return batch
                progress = not self._wait(clock() + WATCH_POLL_S)

    def _wait(self, deadline: float) -> bool:
        return self._wakeup.event.wait(_bounded(deadline - clock()))

    def cancel(self) -> None:
        """End the watch, from any thread; events that were not taken yet are dropped, and iterators end."""
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


class _LoopEvent:
    """The event that the coroutine waiting for a watch waits on. Made inside its loop.

    The coroutine awaits a bare future, so it runs in the loop's next iteration after the event is set.
    ``asyncio.Event`` and a timeout around it would take three iterations, each with a system call.

    Args:
        reader: reads lanes in this loop; ``None`` if it cannot.
    """

    def __init__(self, reader: LoopReader | None = None) -> None:
        self.reader = reader
        self._loop = asyncio.get_running_loop()
        self._is_set = False
        self._waiting: list[asyncio.Future[bool]] = []
        self._scheduled = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def clear(self) -> None:
        """Reset it."""
        self._is_set = False

    async def wait(self, seconds: float) -> bool:
        """Wait until it is set, for this many seconds at most; whether it was."""
        if self._is_set:
            return True
        future: asyncio.Future[bool] = self._loop.create_future()
        timer = self._loop.call_later(seconds, _expire, future)
        self._waiting.append(future)
        try:
            return await future
        finally:
            timer.cancel()
            self._waiting.remove(future)

    def flush(self) -> None:
        if self.reader is not None and self.reader.reads_now():
            self._set()
        elif not self._scheduled:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        self._scheduled = False
        self._is_set = True
        for future in self._waiting:
            if not future.done():
                future.set_result(True)

    @contextlib.contextmanager
    def set_by_the_loop(self) -> Iterator[None]:
        """For a coroutine of this loop that does what sets the event: the loop, which is awake, is not woken for it."""
        self._scheduled = True
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the collector finalizes this coroutine
                self._set()

    def overdue(self) -> bool:
        """Whether the loop has not run the callback that was scheduled: a signal handler raised as it began."""
        overdue, self._scheduled = self._scheduled, False
        return overdue


class _LoopSignal:
    """What the hub holds of a :class:`_LoopEvent`.

    It holds the event weakly: a coroutine that still waits when its loop is closed must be collectable, together with
    its watch and with the lease that it may be waiting under.
    """

    def __init__(self, hub: Hub, event: _LoopEvent) -> None:
        self._hub = hub
        self._event = weakref.ref(event)

    def wake(self) -> None:
        self._hub.flush_later(self)

    def flush(self) -> None:
        event = self._event()
        if event is not None:
            event.flush()


class AsyncWatch(EventBuffer):
    """As :class:`Watch`, for the event loop that made it: ``async for event in await kv.aio.watch("k")``."""

    def __init__(self, share: HubShare, view: View, wanted: WatchSpec) -> None:
        reader = bridge_to(share.hub).reader
        self._wakeup = _LoopEvent(reader)
        super().__init__(share, view, wanted, _LoopSignal(share.hub, self._wakeup), reader)

    async def begin(self, timeout: float) -> None:
        """Wait until the start is fixed; ``AsyncClient.watch`` has done so.

        Raises:
            Unavailable: it could not be fixed in time.
        """
        deadline = clock() + timeout
        try:
            while not self._begun():
                if not await self._wait(deadline):
                    raise self._unconfirmed()
                self._wakeup.clear()
        except BaseException:
            self._end()
            raise

    async def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event: see ``Watch.next``. No event is lost if the coroutine is cancelled."""
        deadline = _deadline(timeout)
        self._hub.check_process()
        while True:
            self._wakeup.clear()
            event = self._pop()
            if event is not None or self._over:
                return event
            if not await self._wait(deadline):
                return self._pop()

    async def batches(self) -> AsyncIterator[Batch]:
        """Iterate over whole revisions: see ``Watch.batches``."""
        delivered, progress = self.revision, False
        while True:
            self._wakeup.clear()
            batch = self._pop_batch(delivered, progress)
            if batch is not None:
                delivered, progress = batch.revision, False
                yield batch
            elif self._over:
                return
            else:
                progress = not await self._wait(clock() + WATCH_POLL_S)

    async def _wait(self, deadline: float) -> bool:
        left = deadline - clock()
        if left <= 0:
            return self._wakeup.is_set()
        while not await self._wakeup.wait(min(left, ASYNC_WATCH_CHECK_S)):
            if self._wakeup.overdue():
                return True
            left = deadline - clock()
            if left <= 0:
                return False
        return True

    async def cancel(self) -> None:
        """End the watch: see ``Watch.cancel``."""
        self._end_in_loop()

    def _end_in_loop(self) -> None:
        with self._wakeup.set_by_the_loop():
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
        self._end_in_loop()


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


def _deadline(timeout: Any) -> float:
    return float("inf") if timeout is None else clock() + check.seconds("timeout", timeout)


def _bounded(seconds: float) -> float:
    """Seconds as a lock's timeout: at least 0, and finite."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)
