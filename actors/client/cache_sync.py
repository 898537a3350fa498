"""How the local copy of a prefix is kept: a thread loads it and follows a watch (:mod:`cached` has the promises).

The copy is loaded at one revision and continued by a watch from the next revision on, in steps of whole revisions, each
under the lock that reads take. If history that the watch needs has been compacted, the prefix is loaded again, beside
the old content, which stays visible until then.

A watch reports only changes of its own keys. A reader that waits for a revision that changed other keys would wait
until the next progress notice. So while a reader waits, the thread opens a second watch as a *probe*: from "now", of a
key that is never written. Before a member says which revision "now" is, it makes sure that it has applied everything
that was acknowledged; and the stream, which both watches share, advances to that revision.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ...errors import (
    CompactedError,
    ForkedProcess,
    InvalidArgument,
    KeeperError,
    RequestTimeout,
    RequestTooLarge,
    Unavailable,
)
from ...limits import (
    CACHED_ENTRY_BYTES,
    CACHED_FIRST_CHECK_S,
    CACHED_MAX_CHECK_S,
    CLIENT_RANGE_RESTARTS,
    CLIENT_SHORT_BACKOFF_S,
    WATCH_POLL_S,
)
from ...schema.answers import Item
from ...schema.frames import WatchEvent
from ...schema.key_spaces import UNUSED_KEY
from ...schema.operations import KeyRange, Range
from .. import finalizer_guard
from .blocking import Blocking
from .core.subscription import Phase, Subscription
from .hub import Hub, clock
from .results import KeyValue
from .view import Steps, View, page, prefix_end, rest_of

_log = logging.getLogger("raykeeper.client")

_UNUSED_KEY = KeyRange(UNUSED_KEY)
"""A key that is never written."""

Waiter = concurrent.futures.Future[object]
"""A future that is resolved when the copy has reached a revision, or was loaded for the first time."""


class _WakeEvent(finalizer_guard.LockFreeEvent):
    """Wakes the thread that keeps a copy."""

    wake = finalizer_guard.LockFreeEvent.set


class _EndedCopy(Mapping[bytes, KeyValue]):
    """Replaces the content of a copy that has ended: any access raises the reason. So reads need not check."""

    def __init__(self, error: KeeperError) -> None:
        self.error = error

    def __getitem__(self, key: bytes) -> NoReturn:
        raise self.error.with_traceback(None)  # the same object is raised each time, and would gather tracebacks

    def __iter__(self) -> NoReturn:
        raise self.error.with_traceback(None)

    def __len__(self) -> NoReturn:
        raise self.error.with_traceback(None)

    def get(self, key: bytes, default: object = None) -> NoReturn:
        raise self.error.with_traceback(None)


class CacheSync:
    """The content of a copy, and the thread that keeps it until it is stopped. Users hold a ``Cached``.

    Args:
        client: a handle of the copy's own, without a codec.
        prefix: the prefix, as the client sees it.
        max_bytes: the most memory that the content may take.
        timeout: seconds for the first load.
    """

    def __init__(self, client: Blocking, prefix: bytes, max_bytes: int, timeout: float) -> None:
        self.prefix = prefix
        self.revision = 0
        self.reloads = 0
        self.loaded: Waiter = concurrent.futures.Future()
        self.lock = threading.RLock()
        """Held for each read, and for each step from one revision to another."""
        self.items: Mapping[bytes, KeyValue] = {}
        self._client = client
        self._view: View = client._view
        self._keys = self._view.keys(None, None, prefix)
        self._skip = len(self._view.space)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._order: list[bytes] | None = None
        """The keys in order; ``None`` if a key came or went since they were sorted."""
        self._waiting: list[tuple[int, Waiter]] = []
        self._wake = _WakeEvent()
        self._stopped = False
        _syncs.add(self)
        name = f"raykeeper-cached-{client.cluster_name}"
        threading.Thread(target=self._run, args=(timeout,), name=name, daemon=True).start()

    # -- reading, on any thread ---------------------------------------------------------------------------------------

    def range(self, prefix: bytes) -> tuple[list[KeyValue], int]:
        """The pairs under a prefix, in order, and the revision."""
        with finalizer_guard.gc_deferred, self.lock:
            items = self.items
            if self._order is None:
                self._order = sorted(items)
            order, end = self._order, prefix_end(prefix)
            stop = bisect_left(order, end) if end else len(order)
            return [items[key] for key in order[bisect_left(order, prefix) : stop]], self.revision

    def reached(self, revision: int) -> Waiter | None:
        """A future for the moment when the copy reaches a revision; ``None`` if it has reached it."""
        if self.revision >= revision:
            return None
        with finalizer_guard.gc_deferred, self.lock:
            if isinstance(self.items, _EndedCopy):
                raise self.items.error.with_traceback(None)
            if self.revision >= revision:
                return None
            waiting: Waiter = concurrent.futures.Future()
            self._waiting.append((revision, waiting))
        self._wake.wake()
        return waiting

    def stop(self) -> None:
        """Have the copy's thread end it. Safe anywhere, in destructors too."""
        self._stopped = True
        self._wake.wake()

    def fail(self, error: KeeperError) -> None:
        """End the copy: from now on every read raises this error."""
        with finalizer_guard.gc_deferred, self.lock:
            if not isinstance(self.items, _EndedCopy):
                self.items = _EndedCopy(error)
            self._order = None
            waiting, self._waiting = self._waiting, []
        for _, each in [*waiting, (0, self.loaded)]:
            _resolve(each, error)

    def forked(self) -> None:
        """In a forked child: the copy's thread does not exist, and its lock may be held by a thread that is gone."""
        self.lock, self._wake = threading.RLock(), _WakeEvent()
        self._waiting = []
        self.items = _EndedCopy(ForkedProcess())

    # -- keeping, on the copy's own thread ----------------------------------------------------------------------------

    def _run(self, timeout: float) -> None:
        """Load and follow until the copy is stopped or fails.

        Whatever happens, the copy ends with a reason, which every later read raises and every waiting reader gets.
        """
        error: KeeperError = InvalidArgument("this copy is closed")
        try:
            self._load(timeout)
            _resolve(self.loaded)
            while not self._stopped:
                try:
                    self._follow()
                except CompactedError as lost:
                    _log.info("the copy of %r is loaded again: %s", self.prefix, lost)
                    self._reload()
        except KeeperError as problem:
            error = problem
        except Exception as problem:  # a thread that ended silently would leave a copy that never changes again
            _log.exception("the copy of %r failed", self.prefix)
            error = Unavailable(f"the copy failed: {problem!r}")
        self.fail(error)
        self._client._release()

    def _load(self, timeout: float) -> None:
        """Read the prefix at one revision, and replace the content by it, unless that would go back in time."""
        revision, items, size = self._client._run(_load_steps(self._keys, self._max_bytes), timeout)
        content = {pair.key: pair for pair in self._view._pairs(items, None)}
        with finalizer_guard.gc_deferred, self.lock:
            if isinstance(self.items, _EndedCopy):
                return
            if revision < self.revision:
                raise Unavailable(f"the cluster is at revision {revision}; the copy was at {self.revision} already")
            self.items, self._bytes, self._order, self.revision = content, size, None, revision

    def _reload(self) -> None:
        """Load the prefix again, repeatedly while the cluster cannot be reached; the old content stays visible."""
        pause = CACHED_FIRST_CHECK_S
        while not self._stopped:
            try:
                self._load(self._client.timeout)
                self.reloads += 1
                return
            except (CompactedError, RequestTimeout, Unavailable) as problem:
                _log.debug("the copy of %r could not be loaded: %s", self.prefix, problem)
                self._wake.wait(pause)
                self._wake.clear()
                pause = min(CLIENT_SHORT_BACKOFF_S, 2 * pause)

    def _follow(self) -> None:
        """Follow the watch until the copy is stopped, and probe while a reader waits for a later revision.

        The wake-up event is cleared before anything is read, so whatever arrives later wakes this thread again. That a
        probe has ended is read before the main watch is: so the revision that the probe confirmed is taken in here, and
        the probe may be closed. Probes are repeated, with growing pauses, while a revision is still missing.

        Raises:
            CompactedError: the events that come next have been compacted.
        """
        hub = self._client._hub(self._client.timeout)

        def watch(keys: KeyRange, start: int) -> Subscription:
            return hub.run_locked(
                lambda now: hub.watch_core.create(
                    keys, start_revision=start, puts=True, deletes=True, signal=self._wake
                )
            )

        main, probe, probe_at, pause = watch(self._keys, self.revision + 1), None, math.inf, CACHED_FIRST_CHECK_S
        try:
            while True:
                self._wake.clear()
                if self._stopped:
                    return
                probed = probe is not None and (probe.fixed or probe.phase is Phase.OVER)
                taken = hub.run_locked(lambda now: hub.watch_core.deliver(main))
                missing = self._step(taken.events, taken.position)
                if taken.over:
                    raise taken.error or InvalidArgument("the handle's hub is closed")
                now = clock()
                if probe is not None and (probed or not missing):
                    _cancel(hub, probe)
                    probe, probe_at = None, now + pause
                    pause = min(CACHED_MAX_CHECK_S, 2 * pause)
                if not missing:
                    probe_at, pause = math.inf, CACHED_FIRST_CHECK_S
                elif probe is None:
                    probe_at = min(probe_at, now + pause)
                    if now >= probe_at:
                        probe, probe_at = watch(_UNUSED_KEY, 0), math.inf
                self._wake.wait(max(0.0, min(WATCH_POLL_S, probe_at - clock())))
        finally:
            for each in (main, probe):
                if each is not None:
                    _cancel(hub, each)

    def _step(self, events: Sequence[WatchEvent], position: int) -> bool:
        """Apply the events up to a revision in one step; whether a reader waits for a later revision."""
        changes = {event.item.key[self._skip :]: None if event.deleted else self._pair(event.item) for event in events}
        done: list[Waiter] = []
        with finalizer_guard.gc_deferred, self.lock:
            if isinstance(self.items, dict):  # it has not been ended
                self._change(self.items, changes)
            self.revision = max(self.revision, position)
            if self._waiting:
                done = [waiting for revision, waiting in self._waiting if revision <= self.revision]
                self._waiting = [each for each in self._waiting if each[0] > self.revision and not each[1].cancelled()]
            missing = bool(self._waiting)
        for waiting in done:
            _resolve(waiting)
        if self._bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return missing

    def _change(self, items: dict[bytes, KeyValue], changes: dict[bytes, KeyValue | None]) -> None:
        """Apply changes to the content (``None`` deletes), and keep its size and the sorted keys up to date."""
        for key, pair in changes.items():
            before = items.get(key)
            if before is not None:
                self._bytes -= _size(before.key, before.raw)
            if pair is not None:
                items[key] = pair
                self._bytes += _size(key, pair.raw)
            elif before is not None:
                del items[key]
            if (before is None) != (pair is None):
                self._order = None

    def _pair(self, i: Item) -> KeyValue:
        key = i.key[self._skip :]
        return KeyValue(key, i.value, i.create_revision, i.mod_revision, i.version, i.lease)


def _load_steps(keys: KeyRange, max_bytes: int) -> Steps[tuple[int, list[Item], int]]:
    """Steps that read a range completely at one revision: the revision, the items, and their size in bytes."""
    for _ in range(CLIENT_RANGE_RESTARTS):
        try:
            return (yield from _page_steps(keys, max_bytes))
        except CompactedError:
            pass  # between two pages: start again, at a newer revision
    raise Unavailable("the prefix was compacted away while it was read, again and again")


def _page_steps(keys: KeyRange, max_bytes: int) -> Steps[tuple[int, list[Item], int]]:
    """Steps that read page after page, all at the revision of the first."""
    items: list[Item] = []
    size = revision = 0
    rest: KeyRange | None = keys
    while rest is not None:
        # The first page is linearizable. The past is the same on every member, so any may answer for the others.
        answer = yield from page(Range(rest, revision, uncounted=True), revision > 0, revision)
        items += answer.items
        size += sum([_size(item.key, item.value) for item in answer.items])
        if size > max_bytes:
            raise _too_large(max_bytes)
        revision = answer.revision
        rest = rest_of(rest, answer)
    return revision, items, size


def _size(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + CACHED_ENTRY_BYTES


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the copy of this prefix takes more than max_bytes={max_bytes}")


def _cancel(hub: Hub, watch: Subscription) -> None:
    hub.run_locked(lambda now: hub.watch_core.cancel(watch, now))


def _resolve(waiting: Waiter, error: KeeperError | None = None) -> None:
    """Resolve a future, unless its waiter has cancelled it."""
    if waiting.done() or not waiting.set_running_or_notify_cancel():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)


_syncs: weakref.WeakSet[CacheSync] = weakref.WeakSet()


def _forget_all() -> None:
    for copy in list(_syncs):
        copy.forked()


os.register_at_fork(after_in_child=_forget_all)
