"""Where a watch stands as long as nothing was taken from it, and how its events reach the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lab.patience import PATIENCE
from raykeeper import Client
from raykeeper.actors.client import watch as watch_module


def test_a_watch_tells_where_it_began_though_events_wait(kv: Client, until: Callable[..., None]) -> None:
    """A consumer that continues from ``revision`` later must not be sent back to the beginning of history."""
    before = kv.put("a", "1").revision
    with kv.watch("a") as fresh, kv.watch("a", start_revision=before) as past:
        kv.put("a", "2")
        until(lambda: not fresh._subscription.empty and not past._subscription.empty)
        assert (fresh.revision, past.revision) == (before, before - 1)
        assert [past.next(1).kv.text for _ in range(2)] == ["1", "2"]  # type: ignore[union-attr]
        until(lambda: past.revision > before)


def test_the_consumer_is_woken_before_the_next_poll_leaves(
    kv: Client, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not while the hub's lock is held, which the consumer needs next."""
    steps: list[str] = []
    with kv.watch("a") as watch:
        hub = watch._hub
        until(lambda: not hub.watch_core._waiting and not hub.watch_core._stream.creating)  # type: ignore[union-attr]
        poll, flush = hub.transport.poll, watch_module._ThreadSignal.flush

        def polled(*arguments: Any) -> None:
            steps.append("poll")
            poll(*arguments)

        def woken(signal: Any) -> None:
            steps.append("woken with the lock" if hub._lock._is_owned() else "woken")  # type: ignore[attr-defined]
            flush(signal)

        monkeypatch.setattr(hub.transport, "poll", polled)
        monkeypatch.setattr(watch_module._ThreadSignal, "flush", woken)
        kv.put("a", "1")
        assert watch.next(10) is not None
        until(lambda: "poll" in steps)
        assert steps[:2] == ["woken", "poll"]


def test_a_coroutine_runs_in_the_next_iteration_after_its_event_is_set() -> None:
    async def play() -> None:
        event = watch_module._LoopEvent()
        seen: list[str] = []

        async def consumer(name: str) -> None:
            assert await event.wait(PATIENCE)
            seen.append(name)

        tasks = [asyncio.create_task(consumer(name)) for name in "ab"]
        await asyncio.sleep(0)
        event._set()
        await asyncio.sleep(0)
        assert seen == ["a", "b"]
        assert await event.wait(PATIENCE), "it stays set"
        event.clear()
        assert not await event.wait(0.01)
        waiting = asyncio.create_task(event.wait(PATIENCE))
        await asyncio.sleep(0)
        event._set()
        waiting.cancel()  # in the iteration in which it is set
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not event._waiting
        await asyncio.gather(*tasks)

    asyncio.run(play())
