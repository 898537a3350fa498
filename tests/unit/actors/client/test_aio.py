"""The handle with coroutines: the same calls, in one loop or several."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest

from lab.client.cluster import FakeCluster, connect
from raykeeper import AsyncClient, Client, InvalidArgument, KeeperError, Op, RequestTimeout, RequestTooLarge, codec
from raykeeper.actors.client.core import outbox
from raykeeper.actors.client.hub import Hub
from raykeeper.actors.handles import Coordination
from raykeeper.limits import LOOP_SUBMIT_DIVISOR, LOOP_SUBMIT_REQUESTS
from raykeeper.schema.frames import Reads, Writes

ASK_NOTHING = {"namespace", "with_codec", "with_timeout", "reserved", *vars(Coordination)}
"""Calls that only make another object, and so are not coroutines."""


def test_the_surface_is_the_same() -> None:
    """Same calls, same parameters, same defaults."""
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if name.startswith("_"):
            continue
        twin = getattr(AsyncClient, name)
        ours, theirs = inspect.signature(method), inspect.signature(twin)
        parameters = list(ours.parameters.values()), list(theirs.parameters.values())
        if name == "atomically":  # its function may be a coroutine
            parameters = tuple([each.replace(annotation=None) for each in some] for some in parameters)  # type: ignore[assignment]
        assert parameters[0] == parameters[1], name
        assert inspect.iscoroutinefunction(twin) or name in ASK_NOTHING, name


def test_all_calls(kv: Client) -> None:
    async def main() -> None:
        async with kv.aio.namespace("n/") as aio:
            put = await aio.put("a", "1")
            assert (await aio.get("a")).value == b"1"  # type: ignore[union-attr]
            await aio.with_codec(codec.JSON).put("b", [1])
            assert (await aio.range(prefix="")).count == 2
            assert (await aio.txn(success=[Op.get("a")])).succeeded
            assert (await aio.delete("a")).deleted == 1
            assert await aio.revision() == put.revision + 2
            await aio.compact(put.revision)
        with pytest.raises(InvalidArgument, match="closed"):
            await aio.get("a")
        with pytest.raises(InvalidArgument):
            await kv.aio.put(7, "v")  # type: ignore[arg-type]
        with pytest.raises(RequestTooLarge):
            await kv.aio.put("k", b"x" * 2_000_000)
        with pytest.raises(RequestTimeout):
            await kv.aio.get("k", timeout=0)

    asyncio.run(main())
    assert kv.get("n/b").value == b"[1]"  # type: ignore[union-attr]


def test_a_thousand_coroutines_share_frames_and_wake_ups(
    kv: Client, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "CLIENT_SUSPICION_S", 60.0)  # on a busy machine the answer may take a long time
    wakes = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (wakes.append(1), wake(*args)))
        await asyncio.gather(*(kv.aio.put(f"k{i}", "v") for i in range(1000)))
        await asyncio.gather(*(kv.aio.get(f"k{i}") for i in range(1000)))

    asyncio.run(main())
    parts = -(-1000 // LOOP_SUBMIT_REQUESTS)
    assert cluster.count(Writes) <= parts  # fewer, since they wait for the session
    assert 1 < cluster.count(Reads) <= parts
    assert len(wakes) <= 4 * parts
    assert kv.range(prefix="", count_only=True).count == 1000


def test_many_calls_leave_before_the_iteration_is_over(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the members work at the first while the loop makes the others."""
    together: list[int] = []
    made = 0
    submit_many = Hub.submit_many

    def counted(hub: Hub, calls: list[Any], *loop: Any) -> list[int]:
        together.append(len(calls))
        assert made <= sum(together)
        return submit_many(hub, calls, *loop)

    monkeypatch.setattr(Hub, "submit_many", counted)
    count = 2 * LOOP_SUBMIT_REQUESTS + 5
    assert count < LOOP_SUBMIT_REQUESTS * LOOP_SUBMIT_DIVISOR

    async def put(i: int) -> None:
        nonlocal made
        made += 1
        await kv.aio.put(f"k{i}", "v")

    async def main() -> None:
        await asyncio.gather(*(put(i) for i in range(count)))

    asyncio.run(main())
    assert together == [LOOP_SUBMIT_REQUESTS, LOOP_SUBMIT_REQUESTS, 5]


def test_a_lone_call_waits_for_no_other(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    submit_many = Hub.submit_many
    monkeypatch.setattr(
        Hub, "submit_many", lambda hub, calls, *loop: together.append(len(calls)) or submit_many(hub, calls, *loop)
    )

    async def main() -> None:
        await kv.aio.put("k", "v")
        await kv.aio.get("k")
        assert together == []
        await asyncio.gather(*(kv.aio.get("k") for _ in range(3)))
        assert together == [3]

    asyncio.run(main())


def test_cancelling_gives_the_call_up(kv: Client, cluster: FakeCluster) -> None:
    async def main() -> None:
        await kv.aio.put("k", "v")
        cluster.gate.clear()
        task = asyncio.ensure_future(kv.aio.put("k", "w"))
        await asyncio.sleep(0.01)
        never = asyncio.ensure_future(kv.aio.put("never", "w"))
        await asyncio.sleep(0)  # it has asked, but was not handed in
        task.cancel()
        never.cancel()
        for each in (task, never):
            with pytest.raises(asyncio.CancelledError):
                await each
        assert kv._share.hub._dispatch_core.pending == 0  # type: ignore[union-attr]
        cluster.gate.set()
        await kv.aio.put("k", "x")
        assert (await kv.aio.get("k")).value == b"x"  # type: ignore[union-attr]
        assert await kv.aio.get("never") is None

    asyncio.run(main())


def test_wait_for_leaves_nothing_behind(kv: Client, cluster: FakeCluster) -> None:
    async def main() -> None:
        cluster.gate.clear()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(kv.aio.put("k", "v"), 0.05)
        assert kv._share.hub._dispatch_core.pending == 0  # type: ignore[union-attr]
        cluster.gate.set()

    asyncio.run(main())


def test_several_loops_at_once_and_one_after_the_other(kv: Client) -> None:
    async def main(name: str) -> None:
        for i in range(20):
            await kv.aio.put(f"{name}{i}", "v")

    errors: list[BaseException] = []

    def run(name: str) -> None:
        try:
            asyncio.run(main(name))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run("e")
    assert not errors
    assert kv.range(prefix="", count_only=True).count == 100


def test_a_loop_that_was_closed_over_open_calls_harms_nobody(kv: Client, cluster: FakeCluster) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(kv.aio.put("k", "v"))
        await asyncio.sleep(0.01)
        tasks.append(task)

    tasks: list[Any] = []
    cluster.gate.clear()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    cluster.gate.set()
    kv.put("k", "w")
    assert kv.get("k").value == b"w"  # type: ignore[union-attr]
    tasks[0]._log_destroy_pending = False


def test_an_unpickled_handle_opens_its_hub_without_blocking_the_loop(cluster: FakeCluster) -> None:
    async def main() -> None:
        aio = AsyncClient("test", 0x77)
        await asyncio.gather(*(aio.put(f"k{i}", "v") for i in range(50)))
        assert (await aio.range(prefix="")).count == 50
        with pytest.raises(KeeperError):
            await AsyncClient("other", 0x77).get("k", timeout=1)

    asyncio.run(main())


def test_a_handle_that_only_a_coroutine_holds(cluster: FakeCluster) -> None:
    async def main() -> int:
        return (await connect().aio.put("k", "v")).revision

    assert asyncio.run(main()) == 2
