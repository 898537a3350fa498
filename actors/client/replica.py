"""What keeps the local copy of a prefix: a thread that loads it and follows a watch (:mod:`cached` has the promises).

The copy is loaded at one revision and goes on by a watch from the revision behind it, in steps of whole revisions,
each under the lock that reads take. If history is gone that the watch needs, it is loaded anew beside the old content,
which stays in sight until the new one takes its place.

A watch tells only of its own keys. So that nobody waits for ever for a revision that touched others, a second watch, of
a key that nobody ever writes, is begun "now" while somebody waits: before a member says where "now" is, it has made
sure that it knows all that was acknowledged, and the stream that both watches share comes with it.
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
    CACHED_FIRST_LOOK,
    CACHED_LAST_LOOK,
    CLIENT_RANGE_RESTARTS,
    CLIENT_SHORT_BACKOFF,
    WATCH_POLL,
)
from ...store.commands import Item, KeyRange, Range
from ..protocol import WatchEvent
from . import undisturbed
from .handle import Client
from .hub import Hub, clock
from .requests import RESERVED_SPACE, Steps, View, page, prefix_end, rest_of
from .results import KeyValue
from .subscription import Phase, Subscription

_log = logging.getLogger(__name__)

_QUIET = KeyRange(RESERVED_SPACE + b"\0quiet")
"""A key that nobody ever writes."""

Waiting = concurrent.futures.Future[object]
"""Somebody who waits for a revision, or for the first load."""


class _Gate(undisturbed.Bell):
    """Wakes the thread that keeps a copy."""

    wake = undisturbed.Bell.set


class _Ended(Mapping[bytes, KeyValue]):
    """Stands where the content stood: whoever looks is told why there is none. So reads need not check."""

    def __init__(self, error: KeeperError) -> None:
        self.error = error

    def __getitem__(self, key: bytes) -> NoReturn:
        raise self.error.with_traceback(None)  # one object, raised again and again, would gather tracebacks

    def __iter__(self) -> NoReturn:
        raise self.error.with_traceback(None)

    def __len__(self) -> NoReturn:
        raise self.error.with_traceback(None)

    def get(self, key: bytes, default: object = None) -> NoReturn:
        raise self.error.with_traceback(None)


class Replica:
    """The content, and the thread that keeps it. Lives until it is stopped; :mod:`cached` has what users hold.

    Args:
        client: of this copy's own, without a codec.
        prefix: as the client sees it.
        timeout: seconds for the first load.
    """

    def __init__(self, client: Client, prefix: bytes, max_bytes: int, timeout: float) -> None:
        self.prefix = prefix
        self.revision = 0
        self.reloads = 0
        self.loaded: Waiting = concurrent.futures.Future()
        self.lock = threading.RLock()
        """Around a read, and around each step from one revision to another."""
        self.items: Mapping[bytes, KeyValue] = {}
        self._client = client
        self._view: View = client._view
        self._keys = self._view.keys(None, None, prefix)
        self._skip = len(self._view.space)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._order: list[bytes] | None = None
        """The keys in order, if that is known."""
        self._waiting: list[tuple[int, Waiting]] = []
        self._gate = _Gate()
        self._stopped = False
        _replicas.add(self)
        name = f"raykeeper-cached-{client.cluster_name}"
        threading.Thread(target=self._keep, args=(timeout,), name=name, daemon=True).start()

    # -- reading, on any thread ---------------------------------------------------------------------------------------

    def range(self, prefix: bytes) -> tuple[list[KeyValue], int]:
        """What lies under a prefix, in order, and at which revision."""
        with undisturbed.here, self.lock:
            items = self.items
            if self._order is None:
                self._order = sorted(items)
            order, end = self._order, prefix_end(prefix)
            stop = bisect_left(order, end) if end else len(order)
            return [items[key] for key in order[bisect_left(order, prefix) : stop]], self.revision

    def reach(self, revision: int) -> Waiting | None:
        """What to wait for until the copy has come to a revision; ``None`` if it has."""
        if self.revision >= revision:
            return None
        with undisturbed.here, self.lock:
            if isinstance(self.items, _Ended):
                raise self.items.error.with_traceback(None)
            if self.revision >= revision:
                return None
            waiting: Waiting = concurrent.futures.Future()
            self._waiting.append((revision, waiting))
        self._gate.wake()
        return waiting

    def stop(self) -> None:
        """End the copy. Safe anywhere, in destructors too: its thread does the rest."""
        self._stopped = True
        self._gate.wake()

    def end(self, error: KeeperError) -> None:
        """From now on every read raises this."""
        with undisturbed.here, self.lock:
            if not isinstance(self.items, _Ended):
                self.items = _Ended(error)
            self._order = None
            waiting, self._waiting = self._waiting, []
        for _, each in [*waiting, (0, self.loaded)]:
            _finish(each, error)

    def forked(self) -> None:
        """In a forked child: nobody keeps this copy, and whoever held its lock is not here."""
        self.lock, self._gate = threading.RLock(), _Gate()
        self._waiting = []
        self.items = _Ended(ForkedProcess())

    # -- keeping, on the copy's own thread ----------------------------------------------------------------------------

    def _keep(self, timeout: float) -> None:
        error: KeeperError = InvalidArgument("this copy is closed")
        try:
            self._load(timeout)
            _finish(self.loaded)
            while not self._stopped:
                try:
                    self._follow()
                except CompactedError as lost:
                    _log.info("a copy of %r is loaded anew: %s", self.prefix, lost)
                    self._reload()
        except KeeperError as problem:
            error = problem
        except Exception as problem:  # a thread that ends in silence would leave a copy that is never new again
            _log.exception("a copy of %r failed", self.prefix)
            error = Unavailable(f"the copy failed: {problem!r}")
        self.end(error)
        self._client._release()

    def _load(self, timeout: float) -> None:
        """Read everything at one revision, and show that from now on."""
        revision, items, size = self._client._run(_loading(self._keys, self._max_bytes), timeout)
        content = {pair.key: pair for pair in self._view._pairs(items, None)}
        with undisturbed.here, self.lock:
            if isinstance(self.items, _Ended):
                return
            if revision < self.revision:
                raise Unavailable(f"the cluster stands at revision {revision}; the copy was at {self.revision} already")
            self.items, self._bytes, self._order, self.revision = content, size, None, revision

    def _reload(self) -> None:
        pause = CACHED_FIRST_LOOK
        while not self._stopped:
            try:
                self._load(self._client.timeout)
                self.reloads += 1
                return
            except (CompactedError, RequestTimeout, Unavailable) as problem:
                _log.debug("a copy of %r could not be loaded: %s", self.prefix, problem)
                self._gate.wait(pause)
                self._gate.clear()
                pause = min(CLIENT_SHORT_BACKOFF, 2 * pause)

    def _follow(self) -> None:
        """Keep up until the copy is stopped.

        Raises:
            CompactedError: what comes next is gone.
        """
        hub = self._client._hub(self._client.timeout)

        def watch(keys: KeyRange, start: int) -> Subscription:
            return hub.do(
                lambda now: hub.watching.create(keys, start_revision=start, puts=True, deletes=True, gate=self._gate)
            )

        main, look, look_at, pause = watch(self._keys, self.revision + 1), None, math.inf, CACHED_FIRST_LOOK
        try:
            while True:
                self._gate.clear()
                if self._stopped:
                    return
                looked = look is not None and (look.fixed or look.phase is Phase.OVER)
                taken = hub.do(lambda now: hub.watching.take(main))
                missing = self._step(taken.events, taken.position)
                if taken.over:
                    raise taken.error or InvalidArgument("the handle's hub is closed")
                now = clock()
                if look is not None and (looked or not missing):
                    _cancel(hub, look)
                    look, look_at = None, now + pause
                    pause = min(CACHED_LAST_LOOK, 2 * pause)
                if not missing:
                    look_at, pause = math.inf, CACHED_FIRST_LOOK
                elif look is None:
                    look_at = min(look_at, now + pause)
                    if now >= look_at:
                        look, look_at = watch(_QUIET, 0), math.inf
                self._gate.wait(max(0.0, min(WATCH_POLL, look_at - clock())))
        finally:
            for each in (main, look):
                if each is not None:
                    _cancel(hub, each)

    def _step(self, events: Sequence[WatchEvent], position: int) -> bool:
        """Go on to a revision; whether somebody waits for a later one."""
        changes = {event.item.key[self._skip :]: None if event.deleted else self._pair(event.item) for event in events}
        done: list[Waiting] = []
        with undisturbed.here, self.lock:
            if isinstance(self.items, dict):  # it has not been ended
                self._change(self.items, changes)
            self.revision = max(self.revision, position)
            if self._waiting:
                done = [waiting for revision, waiting in self._waiting if revision <= self.revision]
                self._waiting = [each for each in self._waiting if each[0] > self.revision and not each[1].cancelled()]
            missing = bool(self._waiting)
        for waiting in done:
            _finish(waiting)
        if self._bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return missing

    def _change(self, items: dict[bytes, KeyValue], changes: dict[bytes, KeyValue | None]) -> None:
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


def _loading(keys: KeyRange, max_bytes: int) -> Steps[tuple[int, list[Item], int]]:
    """Read a range whole, at one revision: which one, the items, and what they count."""
    for _ in range(CLIENT_RANGE_RESTARTS):
        try:
            return (yield from _pages(keys, max_bytes))
        except CompactedError:
            pass  # between two pages: begin anew, at a newer revision
    raise Unavailable("the prefix was compacted away while it was read, again and again")


def _pages(keys: KeyRange, max_bytes: int) -> Steps[tuple[int, list[Item], int]]:
    items: list[Item] = []
    size = revision = 0
    rest: KeyRange | None = keys
    while rest is not None:
        # The past is the same on every member.
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
    hub.do(lambda now: hub.watching.cancel(watch, now))


def _finish(waiting: Waiting, error: KeeperError | None = None) -> None:
    """Wake whoever waits, if he has not gone."""
    if waiting.done() or not waiting.set_running_or_notify_cancel():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)


_replicas: weakref.WeakSet[Replica] = weakref.WeakSet()


def _forget_all() -> None:
    for copy in list(_replicas):
        copy.forked()


os.register_at_fork(after_in_child=_forget_all)
