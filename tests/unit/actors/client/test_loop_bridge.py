"""Coroutines by lane: their loop reads the replies itself while no other caller waits, and holds up nobody."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.lanes import until
from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from raykeeper import Client, ReentrantCall
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.loop_bridge import LoopBridge, bridge_to
from raykeeper.actors.member import request_handler
from raykeeper.actors.transport.client_lanes import LaneTransport

# A reply that nobody reads is found by the hub's timer thread, so these tests also look at what read it. On a busy
# machine that thread is now and then the faster one, and a call takes long for other reasons: not each call is looked
# at, but most of them, or the quickest of many.
TRIES = 50


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member(by_lane=True) as made:
        yield made


@pytest.fixture
def kv(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(hub_pool, "linger", 0.0)
    with member.client() as client:
        transport = client._hub(1.0).transport
        assert isinstance(transport, LaneTransport)

        def opened() -> bool:
            client.put("k", "v")
            return any(route.lane is not None for route in transport._routes.values())

        until(opened, "a lane is opened")
        yield client


class Wakes:
    """Counts how often another thread wakes the running loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counted(*arguments: Any, **more: Any) -> Any:
            self.number += 1
            return wake(*arguments, **more)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)


def bridge(kv: Client) -> LoopBridge:
    """Of the running loop."""
    return bridge_to(kv._hub(1.0))


def calls_agree(kv: Client) -> bool:
    """Whether the loop counts the calls that are open as its own, all of them."""
    reader, hub = bridge(kv).reader, kv._hub(1.0)
    assert reader is not None
    return hub.read_locked(lambda: reader.open_calls == hub._dispatch_core.pending)


async def read_by_the_loop(kv: Client, wakes: Wakes) -> bool:
    """Whether this loop reads the reply of a lone call: the timer thread may be the faster one now and then."""
    before = wakes.number
    await kv.aio.put("k", "v", timeout=PATIENCE)
    return wakes.number == before


async def reads_again(kv: Client, wakes: Wakes) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await read_by_the_loop(kv, wakes):
        assert time.monotonic() < deadline, "the loop reads no more"


def test_no_other_thread_takes_part(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = Wakes(monkeypatch)
        for each in range(200):
            await kv.aio.put(f"k{each}", "v")
            await kv.aio.get(f"k{each}")
        await asyncio.gather(*(kv.aio.put(f"k{each}", "w") for each in range(1000)))
        await asyncio.gather(*(kv.aio.get(f"k{each}") for each in range(1000)))
        assert wakes.number <= 100, "but for the timer thread's looks"
        assert calls_agree(kv)

    asyncio.run(main())


def test_a_thread_waits_for_no_loop_that_is_held_up(kv: Client) -> None:
    """Neither for its own reply, nor for those of the batches that are in flight ahead of its call."""

    async def main() -> None:
        own = [asyncio.ensure_future(kv.aio.put(f"k{each}", "v")) for each in range(1000)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert kv._hub(1.0)._dispatch_core.pending == 1000
        took = []

        def put() -> None:
            for _ in range(TRIES):
                begun = time.monotonic()
                kv.put("other", "v", timeout=PATIENCE)
                took.append(time.monotonic() - begun)
                if took[-1] < 0.2:
                    break

        thread = threading.Thread(target=put)
        thread.start()
        thread.join()  # which blocks the loop
        assert min(took) < 0.2, "it does not wait for the timer thread"
        await asyncio.gather(*own)

    asyncio.run(main())


def test_a_loop_waits_for_no_other_loop_that_is_held_up(kv: Client) -> None:
    async def other() -> float:
        begun = time.monotonic()
        await kv.aio.put("other", "v", timeout=PATIENCE)
        return time.monotonic() - begun

    async def main() -> None:
        took = [1e6]
        for _ in range(TRIES):
            if min(took) < 0.2:
                break
            own = [asyncio.ensure_future(kv.aio.put(f"k{each}", "v")) for each in range(300)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            thread = threading.Thread(target=lambda: took.append(asyncio.run(other())))
            thread.start()
            thread.join()  # which blocks the loop
            await asyncio.gather(*own)
        assert min(took) < 0.2, "it does not wait for the timer thread"

    asyncio.run(main())


def test_a_loop_reads_again_after_others_have_called(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its own calls never pause."""

    async def main() -> None:
        wakes = Wakes(monkeypatch)
        stop = False

        async def ceaseless(key: str) -> None:
            while not stop:
                await kv.aio.put(key, "v")

        tasks = [asyncio.ensure_future(ceaseless(f"k{each}")) for each in range(20)]
        for _ in range(3):
            await asyncio.to_thread(kv.put, "other", "v")
            await asyncio.to_thread(lambda: asyncio.run(kv.aio.put("other", "v")))
            deadline = time.monotonic() + PATIENCE
            before, number = wakes.number, 0
            while number < 5:  # this many looks in a row without a wake-up
                await asyncio.sleep(0.01)
                number = number + 1 if wakes.number == before else 0
                before = wakes.number
                assert time.monotonic() < deadline, "the loop reads no more"
        stop = True
        await asyncio.gather(*tasks)
        assert calls_agree(kv)

    asyncio.run(main())


def test_calls_that_are_given_up_are_counted(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = Wakes(monkeypatch)
        for _ in range(20):
            tasks = [asyncio.ensure_future(kv.aio.put("k", "v")) for _ in range(10)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(kv.aio.leases(), kv.aio.put("k", "v"))
            await asyncio.gather(kv.aio.put("k", "v", timeout=0), return_exceptions=True)
        assert calls_agree(kv)
        await reads_again(kv, wakes)

    asyncio.run(main())


def test_a_thread_that_watches_gets_its_events_while_the_loop_is_held_up(kv: Client) -> None:
    async def main() -> None:
        with kv.watch("watched") as watch:
            await kv.aio.put("watched", "v")
            event = watch.next(timeout=PATIENCE)  # which blocks the loop
            assert event is not None

    asyncio.run(main())


def test_a_thread_may_begin_to_watch_while_a_loop_reads_the_polls(kv: Client) -> None:
    """The poll that the loop has sent brings the thread's events, too."""

    async def main() -> None:
        async with await kv.aio.watch("of the loop"):
            with kv.watch("watched") as watch:
                for _ in range(TRIES):
                    if min(took) < 0.3:
                        break
                    await kv.aio.put("k", "v")
                    begun = time.monotonic()
                    threading.Timer(0.05, kv.put, ("watched", "v")).start()
                    event = watch.next(timeout=PATIENCE)  # which blocks the loop
                    assert event is not None
                    took.append(time.monotonic() - begun)
        assert min(took) < 0.3, "it does not wait for the timer thread"

    took = [1e6]
    asyncio.run(main())


def test_a_loop_reads_the_polls_of_its_own_watches(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = Wakes(monkeypatch)
        for _ in range(3):
            async with await kv.aio.watch("watched") as watch:
                for each in range(50):
                    await kv.aio.put("watched", str(each))
                    event = await watch.next(timeout=PATIENCE)
                    assert event is not None
                    assert event.kv.value == str(each).encode()
        assert wakes.number <= 40, "but for the timer thread's looks"
        await reads_again(kv, wakes)

    asyncio.run(main())


def test_locks_of_one_loop(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = Wakes(monkeypatch)

        async def turns() -> None:
            for _ in range(10):
                async with kv.aio.lock("lock", ttl=30):
                    await kv.aio.put("k", "v")

        await asyncio.gather(*(turns() for _ in range(3)))
        assert wakes.number <= 40, "but for the timer thread's looks"
        assert calls_agree(kv)

    asyncio.run(main())


def test_a_poll_of_a_watch_that_has_ended_keeps_nobody_from_reading(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await reads_again(kv, Wakes(monkeypatch))

    monkeypatch.setattr(request_handler, "WATCH_POLL_S", 10 * PATIENCE)
    with kv.watch("watched"):
        pass
    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 5 * PATIENCE
    transport: Any = kv._hub(1.0).transport
    (lane,) = transport._by_fd.values()
    until(lambda: kv.put("k", "v") and not lane.connection.is_reading(), "a thread reads, too")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "stopped"])
def test_a_loop_that_ends_over_its_calls_holds_up_nobody(
    kv: Client, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    async def main() -> None:
        tasks.extend(asyncio.ensure_future(kv.aio.put(f"k{each}", "v")) for each in range(100))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[Any]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    if closed:
        loop.close()
    begun = time.monotonic()
    kv.put("k", "v", timeout=PATIENCE)
    if not closed:
        loop.run_until_complete(asyncio.wait(tasks, timeout=PATIENCE))
        assert all(task.done() for task in tasks)
        loop.close()
    assert time.monotonic() - begun < PATIENCE / 4

    async def after() -> None:
        await reads_again(kv, Wakes(monkeypatch))

    asyncio.run(after())
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_lane_that_ends_under_a_loop_is_opened_again(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = Wakes(monkeypatch)
        transport: Any = kv._hub(1.0).transport
        for _ in range(3):
            await reads_again(kv, wakes)
            calls = [asyncio.ensure_future(kv.aio.put(f"k{each}", "v", timeout=PATIENCE)) for each in range(50)]
            await asyncio.sleep(0)
            for lane in list(transport._by_fd.values()):
                lane.connection.shut_down(abruptly=True)
            await asyncio.gather(*calls)
        await reads_again(kv, wakes)

    asyncio.run(main())


def test_a_hub_that_is_closed_leaves_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_pool, "linger", 0.0)

    async def main(member: OneMember) -> None:
        with member.client() as kv:
            for _ in range(3):
                await kv.aio.put("k", "v")
            reader = bridge(kv).reader
            assert reader is not None
        del kv
        deadline = time.monotonic() + PATIENCE
        while not reader._epoll.closed:
            await asyncio.sleep(0.001)
            assert time.monotonic() < deadline
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "the loop is as it was"), PATIENCE)

    with one_member(by_lane=True) as member:
        asyncio.run(main(member))


def test_a_loop_that_cannot_read_is_woken(kv: Client) -> None:
    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, fd: Any, callback: Any, *arguments: Any) -> None:
            if fd is not self._ssock:  # type: ignore[attr-defined]
                raise NotImplementedError
            super().add_reader(fd, callback, *arguments)

    async def main() -> None:
        await asyncio.gather(*(kv.aio.put(f"k{each}", "v", timeout=PATIENCE) for each in range(50)))
        for _ in range(20):
            await kv.aio.put("k", "v", timeout=PATIENCE)
        assert bridge(kv).reader is None

    loop = Loop()
    loop.run_until_complete(main())
    loop.close()


def test_a_signal_handler_may_call_while_its_loop_waits_or_reads(kv: Client) -> None:
    """Wherever it strikes, it gets an answer or is refused, and the coroutines go on."""
    answered = 0

    def handle(*_: object) -> None:
        nonlocal answered
        try:
            kv.get("k", timeout=PATIENCE)
            answered += 1
        except ReentrantCall:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0.0007)

    async def main() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0007)
        deadline = time.monotonic() + PATIENCE
        while answered < 100:
            await asyncio.gather(*(kv.aio.put(f"k{each}", "v", timeout=PATIENCE) for each in range(5)))
            await kv.aio.put("k", "v", timeout=PATIENCE)
            assert time.monotonic() < deadline
        signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        asyncio.run(main())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    kv.put("after", "v", timeout=PATIENCE)
