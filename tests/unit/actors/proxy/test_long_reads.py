"""A call that is given up keeps its place until the page that it asked for has come."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from raykeeper.actors.proxy.long_reads import LongReads


def test_a_page_that_is_on_its_way_counts_though_nobody_waits_for_it() -> None:
    async def go() -> None:
        reads, asked = LongReads(2), []

        async def page(come: asyncio.Event) -> str:
            asked.append(come)
            await come.wait()
            return "page"

        async def call(come: asyncio.Event) -> str:
            async with reads.place() as place:
                return await place.wait_for(page(come))

        async def settled() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        first = [asyncio.Event() for _ in range(50)]
        calls = [asyncio.ensure_future(call(each)) for each in first]
        for given_up in calls:
            await settled()
            given_up.cancel()
        await settled()
        assert len(asked) == 2, "the others were given up before they had a place"
        last = asyncio.Event()
        last.set()
        waiting = asyncio.ensure_future(call(last))
        await settled()
        assert len(asked) == 2
        first[0].set()
        assert await waiting == "page"
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*calls)

    asyncio.run(go())


def test_a_page_that_fails_gives_its_place_back() -> None:
    async def go() -> None:
        reads = LongReads(1)

        async def fails() -> None:
            await asyncio.sleep(0)
            raise ValueError

        for given_up in (False, True, False):

            async def call() -> None:
                async with reads.place() as place:
                    await place.wait_for(fails())

            task = asyncio.ensure_future(call())
            if given_up:
                await asyncio.sleep(0)
                task.cancel()
            with suppress(ValueError, asyncio.CancelledError):
                await task
        async with reads.place():
            pass

    asyncio.run(go())
