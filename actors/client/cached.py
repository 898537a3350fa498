"""A read-only copy of a prefix in this process: ``with kv.cached("config/") as config: config.get("config/a")``.

The prefix is read once, at one revision, and then kept up to date by a watch from the next revision on. It promises
*sequential consistency*: the copy shows the store as of one revision, moves from revision to revision in the store's
order and never back, and shows a transaction completely or not at all. It is **not linearizable**: it lags by the delay
of the watch, and by as long as this process is cut off from the cluster. To see a certain write, ask for its revision:
``get(key, at_least=put.revision)``. ``at_least=kv.revision()`` is as good as a linearizable read.

If history that it needs is compacted (after a long partition), the prefix is read again; ``reloads`` counts that. The
old content stays visible until the new one, which is never older, replaces it in one step.

**Memory**: all keys and values of the prefix are in this process, at about ``len(key) + len(value) + 400`` bytes each.
A copy that would exceed ``max_bytes`` ends, and every read of it raises ``RequestTooLarge``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import weakref
from typing import NoReturn

from ...errors import InvalidArgument, KeeperError, RequestTimeout
from ...limits import CACHED_MAX_BYTES
from .. import arguments as check
from .. import finalizer_guard
from ..arguments import Key
from .aio_timeout import within
from .base import Handle
from .blocking import Blocking
from .cache_sync import CacheSync, Waiter
from .results import KeyValue, RangeResult
from .view import View


class CachedView:
    """What the sync and the async copy have in common. A copy ends when it is collected."""

    def __init__(self, handle: Handle, prefix: object, max_bytes: object, timeout: float) -> None:
        under = check.text_or_bytes("a prefix", prefix)
        bound = CACHED_MAX_BYTES if max_bytes is None else check.whole_number("max_bytes", max_bytes, 1)
        handle._check_open()
        view = View(handle._view.space, None)
        own = Blocking(handle._name, handle._cluster, share=handle._share, view=view, timeout=handle._timeout)
        self._codec = handle._view.codec
        self._timeout = handle._timeout
        self._sync = CacheSync(own, under, bound, timeout)
        weakref.finalize(self, self._sync.stop).atexit = False
        handle._watches.add(self)

    @property
    def prefix(self) -> bytes:
        """The prefix that is copied, as the handle sees it."""
        return self._sync.prefix

    @property
    def revision(self) -> int:
        """The revision as of which the copy shows the store."""
        return self._sync.revision

    @property
    def reloads(self) -> int:
        """How often the prefix was read again, because history that the copy needed had been compacted."""
        return self._sync.reloads

    def __len__(self) -> int:
        """The number of keys in the copy."""
        with finalizer_guard.gc_deferred, self._sync.lock:
            return len(self._sync.items)

    def _lookup(self, key: Key) -> KeyValue | None:
        name = key if type(key) is bytes else check.text_or_bytes("a key", key)
        sync = self._sync
        with finalizer_guard.gc_deferred, sync.lock:
            found = sync.items.get(name)
        if found is None:
            if not name.startswith(sync.prefix):
                raise InvalidArgument(f"key {name!r} is not under the prefix {sync.prefix!r} of this copy")
            return None
        return found if self._codec is None else self._decoded_copy(found)

    def _lookup_prefix(self, prefix: Key | None) -> RangeResult:
        under = self._sync.prefix if prefix is None else check.text_or_bytes("a prefix", prefix)
        if not under.startswith(self._sync.prefix):
            raise InvalidArgument(f"{under!r} is not under the prefix {self._sync.prefix!r} of this copy")
        items, revision = self._sync.range(under)
        if self._codec is not None:
            items = [self._decoded_copy(each) for each in items]
        return RangeResult(tuple(items), len(items), False, revision)

    def _decoded_copy(self, found: KeyValue) -> KeyValue:
        """The caller's own copy of a pair: an object that the codec makes may be changed by the code that gets it."""
        return KeyValue(
            found.key, found.raw, found.create_revision, found.mod_revision, found.version, found.lease, self._codec
        )

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check.seconds("timeout", timeout)

    def _late(self, revision: int) -> RequestTimeout:
        return RequestTimeout(f"the copy is at revision {self.revision}, and did not reach {revision} in time")

    def _end(self) -> None:
        self._sync.fail(InvalidArgument("this copy is closed"))
        self._sync.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.prefix!r} at revision {self.revision}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a copy does not pickle: it belongs to this process. Pass its .prefix and .revision, and let the other "
            "process make its own with cached(prefix), and read with at_least=revision"
        )


def _revision(value: object) -> int:
    return check.whole_number("at_least", value)


class Cached(CachedView):
    """A local copy of a prefix, made by ``Client.cached``. It may be shared by threads.

    It shows one revision of the store after another, in order and each as a whole, but lags a little: it is not
    linearizable. ``at_least`` makes a read wait for a revision.

    ::

        with kv.cached("config/") as config:
            config.get("config/rate")
            config.get("config/rate", at_least=written.revision)
            config.range("config/limits/")

    Any read may raise ``InvalidArgument`` (an argument is wrong, or the copy is closed) and ``RequestTooLarge`` (the
    copy would take more than ``max_bytes``).
    """

    def get(self, key: Key, *, at_least: int | None = None, timeout: float | None = None) -> KeyValue | None:
        """Read one key, in microseconds; ``None`` if there is no such key.

        Args:
            key: the key, as the handle sees it; it must have the copy's prefix.
            at_least: first wait until the copy has reached this revision.
            timeout: seconds for that; ``None`` is the handle's default.

        Raises:
            RequestTimeout: the copy did not reach the revision in time.
        """
        if at_least is not None:
            self._wait_for_revision(at_least, timeout)
        return self._lookup(key)

    def range(
        self, prefix: Key | None = None, *, at_least: int | None = None, timeout: float | None = None
    ) -> RangeResult:
        """Read all keys under a prefix, in key order and as of one revision.

        The first range after a key was created or deleted sorts all keys of the copy, which takes time for many.

        Args:
            prefix: a prefix that begins with the copy's own; ``None`` for all of the copy.
            at_least, timeout: as for :meth:`get`.

        Raises:
            RequestTimeout: the copy did not reach the revision in time.
        """
        if at_least is not None:
            self._wait_for_revision(at_least, timeout)
        return self._lookup_prefix(prefix)

    def close(self) -> None:
        """End the copy and free its memory."""
        self._end()

    def _wait_for_revision(self, at_least: int, timeout: float | None) -> None:
        waiting = self._sync.reached(_revision(at_least))
        if waiting is not None:
            self._wait(waiting, self._seconds(timeout), self._late(at_least))

    def _wait(self, waiting: Waiter, seconds: float, late: KeeperError) -> None:
        try:
            waiting.result(min(seconds, threading.TIMEOUT_MAX))
        except concurrent.futures.TimeoutError:
            if waiting.cancel():
                raise late from None
            waiting.result()  # it has arrived in between
        except BaseException:
            waiting.cancel()
            raise

    def __enter__(self) -> Cached:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()


class AsyncCached(CachedView):
    """As :class:`Cached`, for asyncio. Made by ``AsyncClient.cached``; it may be used in any event loop."""

    async def get(self, key: Key, *, at_least: int | None = None, timeout: float | None = None) -> KeyValue | None:
        """Read one key: see ``Cached.get``."""
        if at_least is not None:
            await self._wait_for_revision(at_least, timeout)
        return self._lookup(key)

    async def range(
        self, prefix: Key | None = None, *, at_least: int | None = None, timeout: float | None = None
    ) -> RangeResult:
        """Read all keys under a prefix: see ``Cached.range``."""
        if at_least is not None:
            await self._wait_for_revision(at_least, timeout)
        return self._lookup_prefix(prefix)

    async def close(self) -> None:
        """End the copy: see ``Cached.close``."""
        self._end()

    async def _wait_for_revision(self, at_least: int, timeout: float | None) -> None:
        waiting = self._sync.reached(_revision(at_least))
        if waiting is not None:
            await self._wait(waiting, self._seconds(timeout), self._late(at_least))

    async def _wait(self, waiting: Waiter, seconds: float, late: KeeperError) -> None:
        if not await within(None if seconds == math.inf else seconds, asyncio.wrap_future(waiting)):
            raise late

    async def __aenter__(self) -> AsyncCached:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._end()


def open_copy(handle: Blocking, prefix: object, max_bytes: object, timeout: float) -> Cached:
    """Make a copy and wait until it is loaded; for ``Client.cached``."""
    cached = Cached(handle, prefix, max_bytes, timeout)
    try:
        cached._wait(cached._sync.loaded, timeout, _not_loaded(timeout))
    except BaseException:
        cached._end()
        raise
    return cached


async def open_async_copy(handle: Handle, prefix: object, max_bytes: object, timeout: float) -> AsyncCached:
    """Make a copy and wait until it is loaded; for ``AsyncClient.cached``."""
    cached = AsyncCached(handle, prefix, max_bytes, timeout)
    try:
        await cached._wait(cached._sync.loaded, timeout, _not_loaded(timeout))
    except BaseException:
        cached._end()
        raise
    return cached


def _not_loaded(timeout: float) -> RequestTimeout:
    return RequestTimeout(f"the prefix could not be read within {timeout:g} s")
