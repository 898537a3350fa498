"""Waiting for a bounded time."""

from __future__ import annotations

import asyncio

import pytest

from lab.patience import PATIENCE
from raykeeper.actors.client.aio_timeout import within


def test_it_says_whether_that_was_in_time() -> None:
    async def play() -> None:
        event = asyncio.Event()
        assert not await within(0.001, event.wait())
        event.set()
        assert await within(60, event.wait())

        async def fail() -> None:
            raise KeyError("of its own")

        with pytest.raises(KeyError):
            await within(1, fail())
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(play())


@pytest.mark.parametrize("turns", range(8))
def test_a_cancellation_is_not_lost_however_close_it_comes_to_what_was_waited_for(turns: int) -> None:
    async def play() -> None:
        event, waits = asyncio.Event(), 0

        async def work() -> None:
            nonlocal waits
            while True:
                event.clear()
                waits += 1
                await within(60, event.wait())

        task = asyncio.create_task(work())
        while not waits:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        assert done
        assert task.cancelled()

    asyncio.run(play())
