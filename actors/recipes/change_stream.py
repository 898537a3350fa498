"""Endless streams of changes: the leaders of an election, the services of a registry.

:class:`ChangeSource` is the logic, on either kind of handle: it reads the present once, follows a watch from there, and
reads the present again if history has been compacted. While the cluster cannot be reached it waits; no change is lost
by that. A subclass says what a change means. :class:`ChangeStream` and :class:`AsyncChangeStream` are what a user sees:
iterators whose waits can have a timeout, and can be ended from another thread or task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Generic, TypeVar

from ...errors import CompactedError, RequestTimeout, Unavailable
from ...limits import RECIPE_CHECK_S, RECIPE_MAX_PAUSE_S
from ..client.results import Event, KeyValue
from ..client.watch import AsyncWatch, Watch
from .sync_async import (
    AnyHandle,
    TimeLimit,
    Unpicklable,
    cancel_watch,
    next_event,
    open_watch,
    pause,
    resolved,
    run_sync,
)

T = TypeVar("T")


class ChangeSource(ABC, Generic[T]):
    """Follows the keys under a prefix.

    Args:
        space: the handle that sees them.
        folder: the prefix.
    """

    def __init__(self, space: AnyHandle, folder: bytes) -> None:
        self._space = space
        self._folder = folder
        self._watch: Watch | AsyncWatch | None = None
        self.ready: deque[T] = deque()
        """What the user is to be given next."""
        self.over = False
        """Whether it was cancelled."""

    @abstractmethod
    def on_present(self, items: list[KeyValue]) -> None:
        """The keys that exist now, in the order of their creation; all others have been deleted."""

    @abstractmethod
    def on_change(self, event: Event) -> None:
        """A key has changed."""

    async def next(self, timeout: float | None) -> T | None:
        """The next change; ``None`` when the time is over, or after ``cancel``.

        If the cluster cannot be reached, or history was compacted, the watch is dropped and the present read again.
        With timeout 0 the present is read once, so what is known now is returned.
        """
        deadline = TimeLimit(timeout)
        read = False
        with deadline.covering(self._space):
            while not self.ready:
                if self.over or (read and not deadline.left):
                    return None
                read = True
                try:
                    if self._watch is None:
                        await self._read_present()
                    else:
                        await self._follow(deadline)
                except CompactedError:
                    await self._unwatch()
                except (Unavailable, RequestTimeout):
                    await self._unwatch()
                    await pause(self._space, min(RECIPE_MAX_PAUSE_S, deadline.left))
        return self.ready.popleft()

    async def _read_present(self) -> None:
        """Read the present, and open a watch from the next revision on."""
        listing = await resolved(self._space.range(prefix=self._folder, sort="create_revision"))
        self._watch = await open_watch(self._space, prefix=self._folder, start_revision=listing.revision + 1)
        if self.over:  # meanwhile, by another thread
            await self._unwatch()
        self.on_present(list(listing))

    async def _follow(self, deadline: TimeLimit) -> None:
        watch = self._watch
        event = None if watch is None else await next_event(watch, min(RECIPE_CHECK_S, deadline.left))
        if event is not None:
            self.on_change(event)

    async def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await cancel_watch(watch)

    async def cancel(self) -> None:
        """Stop following; a wait in ``next`` ends."""
        self.over = True
        await self._unwatch()


class ChangeStream(Unpicklable, Generic[T]):
    """An iterator over changes, without end.

    It ends when it is cancelled, at the end of a ``with`` block, and when it is collected. One thread at a time may
    iterate; any may call ``cancel``.
    """

    def __init__(self, source: ChangeSource[T]) -> None:
        self._source = source

    def next(self, timeout: float | None = None) -> T | None:
        """Wait for the next change.

        Args:
            timeout: seconds; ``None`` waits forever, 0 returns what is known now.

        Returns:
            The change; ``None`` when the time is over, or after ``cancel``.
        """
        return run_sync(self._source.next(timeout))

    def cancel(self) -> None:
        """End the stream: iterating ends, and so does a wait in another thread."""
        run_sync(self._source.cancel())

    def close(self) -> None:
        """As ``cancel``, for ``contextlib.closing``."""
        self.cancel()

    def __iter__(self) -> ChangeStream[T]:
        return self

    def __next__(self) -> T:
        change = self.next()
        if change is None:
            raise StopIteration
        return change

    def __enter__(self) -> ChangeStream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncChangeStream(Unpicklable, Generic[T]):
    """As ``ChangeStream``, for asyncio: ``async for``, or ``await stream.next(timeout)``."""

    def __init__(self, source: ChangeSource[T]) -> None:
        self._source = source

    async def next(self, timeout: float | None = None) -> T | None:
        """See ``ChangeStream.next``. No change is lost if the coroutine is cancelled."""
        return await self._source.next(timeout)

    async def cancel(self) -> None:
        """See ``ChangeStream.cancel``."""
        await self._source.cancel()

    async def aclose(self) -> None:
        """As ``cancel``, for ``contextlib.aclosing``."""
        await self.cancel()

    def __aiter__(self) -> AsyncChangeStream[T]:
        return self

    async def __anext__(self) -> T:
        change = await self.next()
        if change is None:
            raise StopAsyncIteration
        return change

    async def __aenter__(self) -> AsyncChangeStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cancel()
