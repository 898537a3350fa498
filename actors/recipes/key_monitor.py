"""Watching the keys of everything that a process holds: a holder whose key is deleted has lost what it held.

The lease says soon enough that a ticket is gone if it expired or was revoked. But the key alone may be deleted, as an
operator does to take a lock away; that only a watch can tell. For asyncio there is one task for each ticket held. For
blocking handles, one thread of the process waits for news of all their watches. So its cost depends on how many keys
are deleted, not on how many there are.

It is a service thread, on which none of the user's code runs (:mod:`finalizer_guard`), and it makes no call that waits.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections import deque
from typing import NamedTuple

from ...errors import CompactedError, KeeperError
from ...limits import RECIPE_CHECK_S, RECIPE_MAX_PAUSE_S
from ..background import LazyThread
from ..client.handle import KeyValueClient
from ..client.leases import LossEvent
from ..client.watch import EventBuffer, watch_spec
from ..finalizer_guard import ServiceQueue, ServiceThread
from ..one_thread import NoThreadLeft, start_thread


class _MonitorRequest(NamedTuple):
    """A key to watch for its ticket. The ticket is held weakly, so that a forgotten one is not kept alive by this."""

    space: KeyValueClient
    ticket: weakref.ref[object]
    key: bytes
    start: int
    """The first revision at which a deletion counts."""
    lost: LossEvent
    """Set when the key is deleted."""

    @property
    def over(self) -> bool:
        return self.ticket() is None or self.lost.is_set()


class _KeyWatch(EventBuffer):
    """The watch of one key. Whenever it has news, it puts itself into the monitor's queue."""

    def __init__(self, request: _MonitorRequest, news: ServiceQueue[_KeyWatch | _MonitorRequest]) -> None:
        self.request = request
        self._news = news
        request.space._hub(0)
        share = request.space._share
        assert share is not None
        spec = watch_spec(request.space._view, request.key, None, None, request.start, False, "delete")
        super().__init__(share, request.space._view, spec, self)

    def wake(self) -> None:
        """There is news. Called by the hub, with its lock held."""
        self._news.put(self)

    def key_deleted(self) -> bool:
        """Whether the key was deleted, as far as this watch knows.

        Raises:
            CompactedError: it may have been, in history that has been compacted.
        """
        return self._pop() is not None

    def close(self) -> None:
        """End the watch."""
        self._end()


class KeyMonitor:
    """The thread that watches keys for blocking handles, and its queue."""

    def __init__(self) -> None:
        self._news: ServiceQueue[_KeyWatch | _MonitorRequest] = ServiceQueue()
        self._thread = LazyThread(self._run, "raykeeper-holds")

    def watch_key(self, space: KeyValueClient, ticket: object, key: bytes, start: int, lost: LossEvent) -> None:
        """Set ``lost`` when the key is deleted at revision ``start`` or later, unless the ticket is forgotten."""
        self._news.put(_MonitorRequest(space, weakref.ref(ticket), key, start, lost))
        self._thread.ensure_started()

    def _run(self) -> None:
        """Open watches for new requests, act on the news of those that are open, and now and then close idle ones.

        A request waits a moment before its watch is opened: what is held only briefly costs no watch. Nothing is missed
        by that, because the watch starts at the request's revision. Before the thread waits, it drops its reference to
        the last entry of the queue, which would keep a hub alive.
        """
        thread = ServiceThread()
        new: deque[tuple[float, _MonitorRequest]] = deque()
        watches: set[_KeyWatch] = set()
        check_at = time.monotonic() + RECIPE_CHECK_S
        while True:
            until = min(new[0][0] if new else check_at, check_at)
            entry = self._news.take(thread, until - time.monotonic() if new or watches else math.inf)
            now = time.monotonic()
            if isinstance(entry, _MonitorRequest):
                new.append((now + RECIPE_MAX_PAUSE_S, entry))
            elif entry is not None:
                self._take_news(entry, watches)
            entry = None
            while new and new[0][0] <= now:
                self._open(new.popleft()[1], watches)
            if now >= check_at:
                check_at = now + RECIPE_CHECK_S
                for watch in [watch for watch in watches if watch.request.over]:
                    self._close(watch, watches)

    def _open(self, request: _MonitorRequest, watches: set[_KeyWatch]) -> None:
        if not request.over:
            with contextlib.suppress(KeeperError):  # the lease says soon enough if it is lost
                watches.add(_KeyWatch(request, self._news))

    def _take_news(self, watch: _KeyWatch, watches: set[_KeyWatch]) -> None:
        """Set ``lost`` if the watch says that its key was deleted; close the watch if it is of no more use."""
        try:
            deleted = watch.key_deleted()
        except CompactedError:
            self._close(watch, watches)
            name = f"raykeeper-looks-{watch.request.key!r}"
            try:
                start_thread(threading.Thread(target=self._read_again, args=(watch.request,), name=name, daemon=True))
            except NoThreadLeft:  # a new watch will say the same
                self._news.put(watch.request)
            return
        except KeeperError:
            deleted = False
        if deleted:
            watch.request.lost.lose()
        if deleted or watch._over:
            self._close(watch, watches)

    def _close(self, watch: _KeyWatch, watches: set[_KeyWatch]) -> None:
        watches.discard(watch)
        with contextlib.suppress(KeeperError):
            watch.close()

    def _read_again(self, request: _MonitorRequest) -> None:
        """History that a watch needs was compacted: read the present, on a thread of its own, and go on from there."""
        with contextlib.suppress(KeeperError):
            now = request.space.range(request.key, keys_only=True)
            if now.items:
                self._news.put(request._replace(start=now.revision + 1))
            else:
                request.lost.lose()


key_monitor = KeyMonitor()


def _in_child() -> None:
    key_monitor.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)
