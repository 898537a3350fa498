"""A read-only copy of a prefix in this process: ``with kv.cached("config/") as config: config.get("config/a")``.

It is read once, whole, at one revision, and then follows a watch from the revision behind that. What it promises is
*sequential consistency of one copy*: it stands at one revision of the store, steps from revision to revision in the
store's order, never back, and shows a transaction whole or not at all. It is **not linearizable**: it lags behind the
store by the watch's delay, and by as long as this process is cut off from the cluster. Who must see a certain write
asks for it, ``get(key, at_least=put.revision)``; ``at_least=kv.revision()`` is as good as a linearizable read.

If history that it needs is compacted away (after a long cut), it is read anew and counts that in ``reloads``. The old
content stays in sight until the new one, which is never older, takes its place in one step.

**Memory**: all keys and values of the prefix lie in this process, at about ``len(key) + len(value) + 400`` bytes each.
A copy that would grow over ``max_bytes`` ends, and every read of it raises ``RequestTooLarge``.
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
from . import arguments as check
from . import undisturbed
from .arguments import Key
from .base import Handle
from .handle import Client
from .replica import Replica, Waiting
from .requests import View
from .results import KeyValue, RangeResult
from .waiting import within


class CachedView:
    """What the sync and the async copy have in common. It ends when it is collected."""

    def __init__(self, handle: Handle, prefix: object, max_bytes: object, timeout: float) -> None:
        under = check.text_or_bytes("a prefix", prefix)
        bound = CACHED_MAX_BYTES if max_bytes is None else check.whole_number("max_bytes", max_bytes, 1)
        handle._check_open()
        view = View(handle._view.space, None)
        own = Client(handle._name, handle._cluster, share=handle._share, view=view, timeout=handle._timeout)
        self._codec = handle._view.codec
        self._timeout = handle._timeout
        self._replica = Replica(own, under, bound, timeout)
        weakref.finalize(self, self._replica.stop).atexit = False
        handle._watches.add(self)

    @property
    def prefix(self) -> bytes:
        """What is copied, as the handle names it."""
        return self._replica.prefix

    @property
    def revision(self) -> int:
        """The revision at which the copy stands: all changes up to it are in sight, and none beyond."""
        return self._replica.revision

    @property
    def reloads(self) -> int:
        """How often the copy was read anew, because history that it needed was compacted away."""
        return self._replica.reloads

    def __len__(self) -> int:
        """How many keys the copy holds."""
        with undisturbed.here, self._replica.lock:
            return len(self._replica.items)

    def _look(self, key: Key) -> KeyValue | None:
        name = key if type(key) is bytes else check.text_or_bytes("a key", key)
        replica = self._replica
        with undisturbed.here, replica.lock:
            found = replica.items.get(name)
        if found is None:
            if not name.startswith(replica.prefix):
                raise InvalidArgument(f"key {name!r} is not under the prefix {replica.prefix!r} of this copy")
            return None
        return found if self._codec is None else self._decoding(found)

    def _look_under(self, prefix: Key | None) -> RangeResult:
        under = self._replica.prefix if prefix is None else check.text_or_bytes("a prefix", prefix)
        if not under.startswith(self._replica.prefix):
            raise InvalidArgument(f"{under!r} is not under the prefix {self._replica.prefix!r} of this copy")
        items, revision = self._replica.range(under)
        if self._codec is not None:
            items = [self._decoding(each) for each in items]
        return RangeResult(tuple(items), len(items), False, revision)

    def _decoding(self, found: KeyValue) -> KeyValue:
        """A pair of the caller's own: what the codec makes of the value may be changed by whoever has it."""
        return KeyValue(
            found.key, found.raw, found.create_revision, found.mod_revision, found.version, found.lease, self._codec
        )

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check.seconds("timeout", timeout)

    def _late(self, revision: int) -> RequestTimeout:
        return RequestTimeout(f"the copy stands at revision {self.revision}, and {revision} has not come in time")

    def _end(self) -> None:
        self._replica.end(InvalidArgument("this copy is closed"))
        self._replica.stop()

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
    """A local copy of a prefix. Made by ``Client.cached``; see the module for what it promises. Thread-safe.

    Any read may raise ``InvalidArgument`` (an argument is wrong, or the copy is closed) and ``RequestTooLarge`` (it
    would take more than ``max_bytes``).
    """

    def get(self, key: Key, *, at_least: int | None = None, timeout: float | None = None) -> KeyValue | None:
        """One key as the copy has it, in microseconds; ``None`` if there is none.

        Args:
            at_least: first wait until the copy has come to this revision.
            timeout: seconds for that; ``None`` for the handle's default.

        Raises:
            RequestTimeout: the copy has not come so far in time.
        """
        if at_least is not None:
            self._reach(at_least, timeout)
        return self._look(key)

    def range(
        self, prefix: Key | None = None, *, at_least: int | None = None, timeout: float | None = None
    ) -> RangeResult:
        """All keys under a prefix, in key order and at one revision; ``None`` for all of the copy.

        The first range after a key came or went sorts the keys again.

        Args:
            at_least, timeout: as for :meth:`get`.
        """
        if at_least is not None:
            self._reach(at_least, timeout)
        return self._look_under(prefix)

    def close(self) -> None:
        """End the copy, and free what it holds."""
        self._end()

    def _reach(self, at_least: int, timeout: float | None) -> None:
        waiting = self._replica.reach(_revision(at_least))
        if waiting is not None:
            self._wait(waiting, self._seconds(timeout), self._late(at_least))

    def _wait(self, waiting: Waiting, seconds: float, late: KeeperError) -> None:
        try:
            waiting.result(min(seconds, threading.TIMEOUT_MAX))
        except concurrent.futures.TimeoutError:
            if waiting.cancel():
                raise late from None
            waiting.result()  # it comes just now
        except BaseException:
            waiting.cancel()
            raise

    def __enter__(self) -> Cached:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()


class AsyncCached(CachedView):
    """The same as :class:`Cached` for asyncio. Made by ``AsyncClient.cached``; may be used in any loop."""

    async def get(self, key: Key, *, at_least: int | None = None, timeout: float | None = None) -> KeyValue | None:
        """One key as the copy has it: see ``Cached.get``."""
        if at_least is not None:
            await self._reach(at_least, timeout)
        return self._look(key)

    async def range(
        self, prefix: Key | None = None, *, at_least: int | None = None, timeout: float | None = None
    ) -> RangeResult:
        """All keys under a prefix: see ``Cached.range``."""
        if at_least is not None:
            await self._reach(at_least, timeout)
        return self._look_under(prefix)

    async def close(self) -> None:
        """End the copy: see ``Cached.close``."""
        self._end()

    async def _reach(self, at_least: int, timeout: float | None) -> None:
        waiting = self._replica.reach(_revision(at_least))
        if waiting is not None:
            await self._wait(waiting, self._seconds(timeout), self._late(at_least))

    async def _wait(self, waiting: Waiting, seconds: float, late: KeeperError) -> None:
        if not await within(None if seconds == math.inf else seconds, asyncio.wrap_future(waiting)):
            raise late

    async def __aenter__(self) -> AsyncCached:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._end()


def open_copy(handle: Client, prefix: object, max_bytes: object, timeout: float) -> Cached:
    """A copy that is loaded: ``Client.cached``."""
    cached = Cached(handle, prefix, max_bytes, timeout)
    try:
        cached._wait(cached._replica.loaded, timeout, _not_loaded(timeout))
    except BaseException:
        cached._end()
        raise
    return cached


async def open_async_copy(handle: Handle, prefix: object, max_bytes: object, timeout: float) -> AsyncCached:
    """A copy that is loaded: ``AsyncClient.cached``."""
    cached = AsyncCached(handle, prefix, max_bytes, timeout)
    try:
        await cached._wait(cached._replica.loaded, timeout, _not_loaded(timeout))
    except BaseException:
        cached._end()
        raise
    return cached


def _not_loaded(timeout: float) -> RequestTimeout:
    return RequestTimeout(f"the prefix could not be read within {timeout:g} s")
