"""What goes on and on: the leaders of an election, the changes of a registry.

:class:`Follower` is the logic, over either handle: it looks at the present once, follows a watch from there, and looks
again where history is compacted away. While the cluster cannot be reached it waits; nothing is lost by that. What it
makes of what it sees is said by a subclass. :class:`Following` and :class:`AsyncFollowing` are the two faces that a
user sees: iterators whose waits can be bounded, and ended from elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Generic, TypeVar

from ...errors import CompactedError, RequestTimeout, Unavailable
from ...limits import RECIPE_LOOK, RECIPE_MAX_PAUSE
from ..client.results import KeyValue
from ..client.watch import AsyncWatch, Event, Watch
from .faces import Deadline, Handle, Unpicklable, drive, news, pause, settled, stop, watching

T = TypeVar("T")


class Follower(ABC, Generic[T]):
    """Follows the keys of a folder.

    Args:
        space: the handle that sees it.
    """

    def __init__(self, space: Handle, folder: bytes) -> None:
        self._space = space
        self._folder = folder
        self._watch: Watch | AsyncWatch | None = None
        self.ready: deque[T] = deque()
        """What is to be told."""
        self.over = False

    @abstractmethod
    def present(self, items: list[KeyValue]) -> None:
        """These keys are there, in the order in which they came; what is not among them has gone."""

    @abstractmethod
    def changed(self, event: Event) -> None:
        """A key has changed."""

    async def next(self, timeout: float | None) -> T | None:
        """What comes next; ``None`` when the time is over, or after ``cancel``."""
        deadline = Deadline(timeout)
        looked = False
        with deadline.covering(self._space):
            while not self.ready:
                if self.over or (looked and not deadline.left):
                    return None
                looked = True
                try:
                    if self._watch is None:
                        await self._look()
                    else:
                        await self._follow(deadline)
                except CompactedError:
                    await self._unwatch()
                except (Unavailable, RequestTimeout):
                    await self._unwatch()
                    await pause(self._space, min(RECIPE_MAX_PAUSE, deadline.left))
        return self.ready.popleft()

    async def _look(self) -> None:
        listing = await settled(self._space.range(prefix=self._folder, sort="create_revision"))
        self._watch = await watching(self._space, prefix=self._folder, start_revision=listing.revision + 1)
        if self.over:  # meanwhile, by another thread
            await self._unwatch()
        self.present(list(listing))

    async def _follow(self, deadline: Deadline) -> None:
        watch = self._watch
        event = None if watch is None else await news(watch, min(RECIPE_LOOK, deadline.left))
        if event is not None:
            self.changed(event)

    async def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await stop(watch)

    async def cancel(self) -> None:
        """Follow no longer; whoever waits in ``next`` is told."""
        self.over = True
        await self._unwatch()


class Following(Unpicklable, Generic[T]):
    """An iterator over what happens, for ever. It ends when it is cancelled, at the end of a ``with`` block, and when
    it is collected. For one thread at a time; ``cancel`` may be called from any."""

    def __init__(self, follower: Follower[T]) -> None:
        self._follower = follower

    def next(self, timeout: float | None = None) -> T | None:
        """Wait for what comes next.

        Args:
            timeout: seconds, ``None`` for ever, 0 for what there is now.

        Returns:
            it, or ``None`` when the time is over or this was cancelled.
        """
        return drive(self._follower.next(timeout))

    def cancel(self) -> None:
        """End it: iterating ends, and so does a wait in another thread."""
        drive(self._follower.cancel())

    def close(self) -> None:
        """The same as ``cancel``, under the name that ``contextlib.closing`` calls."""
        self.cancel()

    def __iter__(self) -> Following[T]:
        return self

    def __next__(self) -> T:
        told = self.next()
        if told is None:
            raise StopIteration
        return told

    def __enter__(self) -> Following[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncFollowing(Unpicklable, Generic[T]):
    """The same as ``Following`` for asyncio: ``async for``, or ``await following.next(timeout)``."""

    def __init__(self, follower: Follower[T]) -> None:
        self._follower = follower

    async def next(self, timeout: float | None = None) -> T | None:
        """See ``Following.next``. Nothing is lost if it is cancelled."""
        return await self._follower.next(timeout)

    async def cancel(self) -> None:
        """See ``Following.cancel``."""
        await self._follower.cancel()

    async def aclose(self) -> None:
        """The same as ``cancel``, under the name that ``contextlib.aclosing`` calls."""
        await self.cancel()

    def __aiter__(self) -> AsyncFollowing[T]:
        return self

    async def __anext__(self) -> T:
        told = await self.next()
        if told is None:
            raise StopAsyncIteration
        return told

    async def __aenter__(self) -> AsyncFollowing[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cancel()
