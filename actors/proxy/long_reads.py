"""The places of calls that read ranges of keys: few at a time, since a page takes several times its size before an
answer that counts as held is made of it.

A page that was asked for comes, whether its caller is still there or not. So a call that is given up keeps its place
until then: a client that asks and resets, over and over, has no more pages on their way than one that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ...limits import MAX_PROXY_LONG_READS

T = TypeVar("T")


class LongReads:
    """The places of one proxy. Used by the loop's thread alone.

    Args:
        most: how many there are.
    """

    def __init__(self, most: int = MAX_PROXY_LONG_READS) -> None:
        self._places = asyncio.Semaphore(most)

    def place(self) -> Place:
        """A place to wait for, as an asynchronous context."""
        return Place(self._places)


class Place:
    """One call's place among the long reads."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._page: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> Place:
        await self._places.acquire()
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._page is None or self._page.done():
            self._places.release()
        else:
            self._page.add_done_callback(self._given_up)

    def _given_up(self, page: asyncio.Future[Any]) -> None:
        if not page.cancelled():
            page.exception()  # it was looked at: nobody else will
        self._places.release()

    async def wait_for(self, page: Coroutine[Any, Any, T]) -> T:
        """Have a page come. It goes on coming if the caller is cancelled."""
        self._page = future = asyncio.ensure_future(page)
        return await asyncio.shield(future)
