"""What is done with each recipe, over either kind of handle, where calls of it fail or are given up at any place.

Each can be done again after it has failed: what it cannot end by itself it leaves to a ``finally`` of its own. Leases
are long: if a ticket were left over, the next contender would not get its turn.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lab.patience import PATIENCE, until
from raykeeper import Client
from raykeeper.actors.recipes.sync_async import AnyHandle, resolved

TTL = 600.0
PLAIN = 29.0
"""Timeout of a handle whose calls do not fail."""


async def lock(kv: AnyHandle) -> None:
    held = kv.lock("l", TTL)
    try:
        assert await resolved(held.acquire(PATIENCE))
        await resolved(held.guard().put("k", "v"))
        assert await resolved(held.holder()) is not None
    finally:
        if held.held:
            await resolved(held.release())


async def handed_over(kv: AnyHandle, plain: Client) -> None:
    before, held = plain.lock("l", TTL), kv.lock("l", TTL)
    assert before.acquire(PATIENCE)
    free = threading.Timer(0.02, before.release)
    free.start()
    try:
        assert await resolved(held.acquire(PATIENCE))
        await resolved(held.release())
    finally:
        free.join()


async def in_vain(kv: AnyHandle, plain: Client) -> None:
    with plain.lock("l", TTL):
        assert not await resolved(kv.lock("l", TTL).acquire(0.3))


async def rwlock(kv: AnyHandle) -> None:
    table = kv.rwlock("l", TTL)
    for held in (table.read(), table.write()):
        assert await resolved(held.acquire(PATIENCE))
        await resolved(held.release())


async def semaphore(kv: AnyHandle) -> None:
    one, two = kv.semaphore("s", 2, TTL), kv.semaphore("s", 2, TTL)
    try:
        assert await resolved(one.acquire(PATIENCE))
        try:
            assert await resolved(two.acquire(PATIENCE))
            assert not await resolved(kv.semaphore("s", 2, TTL).acquire(0))
        finally:
            if two.held:
                await resolved(two.release())
    finally:
        if one.held:
            await resolved(one.release())


async def election(kv: AnyHandle) -> None:
    held = kv.election("e", TTL)
    try:
        assert await resolved(held.campaign("me", 5))
        await resolved(held.proclaim("still me"))
        assert (await resolved(held.leader())).value == b"still me"  # type: ignore[union-attr]
    finally:
        if held.held:
            await resolved(held.resign())


async def observe(kv: AnyHandle, plain: Client) -> None:
    with plain.election("e", TTL):
        leaders = kv.election("e", TTL).observe()
        assert await resolved(leaders.next(PATIENCE)) is not None
        assert await resolved(leaders.next(0)) is None
        await resolved(leaders.cancel())


async def barrier(kv: AnyHandle) -> None:
    assert await resolved(kv.barrier("b", 1, TTL).wait(PATIENCE))
    assert not await resolved(kv.barrier("c", 2, TTL).wait(0))


async def latch(kv: AnyHandle) -> None:
    gate = kv.latch("l", 2)
    assert await resolved(gate.count_down(request_id="one")) == 1
    await resolved(gate.wait(0))
    assert await resolved(gate.count_down(request_id="two")) == 0
    assert await resolved(gate.wait(PATIENCE))
    assert await resolved(gate.left()) == 0


async def counter(kv: AnyHandle) -> None:
    rows = kv.counter("c")
    assert await resolved(rows.add(5, request_id="once")) == 5
    assert await resolved(rows.value()) == 5


async def queue(kv: AnyHandle) -> None:
    work = kv.queue("q", TTL)
    await resolved(work.put("x", request_id="put"))
    claim = await resolved(work.claim(0))
    if claim is not None:  # the second time it may be done
        assert claim.item == b"x"
        await acknowledged(claim)


async def given_back(kv: AnyHandle, plain: Client) -> None:
    work = kv.queue("q", TTL)
    if not len(plain.queue("q")):
        plain.queue("q").put("x")
    claim = await resolved(work.claim(PATIENCE))
    assert claim is not None
    await resolved(claim.nack())
    again = await resolved(work.claim(PATIENCE))
    assert again is not None
    await acknowledged(again)


async def acknowledged(claim: Any) -> None:
    try:
        await resolved(claim.ack())
    finally:
        await resolved(claim.nack())


async def registry(kv: AnyHandle) -> None:
    found = kv.registry("r")
    entry = await resolved(found.register("n", "here", TTL))
    try:
        assert [each.address for each in await resolved(found.lookup("n"))] == ["here"]
        await resolved(entry.update("there"))
    finally:
        await resolved(entry.deregister())


async def changes(kv: AnyHandle, plain: Client) -> None:
    with plain.registry("r").register("n", "here", TTL):
        watch = kv.registry("r").watch()
        assert (await resolved(watch.next(PATIENCE))).type == "up"  # type: ignore[union-attr]
        assert await resolved(watch.next(0)) is None
        await resolved(watch.cancel())


async def partitioner(kv: AnyHandle) -> None:
    share = kv.partitioner("p", 40, TTL)
    try:
        await resolved(share.join())
        assert len(share.mine()) == 40
    finally:
        await resolved(share.leave())


async def divided(kv: AnyHandle, plain: Client) -> None:
    with plain.partitioner("p", 4, TTL) as other:
        share = kv.partitioner("p", 4, TTL)
        try:
            await resolved(share.join())
            await balanced(lambda: len(share.mine()) == len(other.mine()) == 2)
        finally:
            await resolved(share.leave())


async def balanced(condition: Callable[[], bool]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        wait_until(condition)
    else:
        async with asyncio.timeout(PATIENCE) if hasattr(asyncio, "timeout") else _nothing():
            while not condition():
                await asyncio.sleep(0.005)


class _nothing:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...


async def atomically(kv: AnyHandle) -> None:
    """Once more each time: the outcome of one that was given up is not known, but none counts twice."""

    def both(t: Any, there: Any) -> int:
        next_one = 1 if there is None else int(there.raw) + 1
        t.put("times", str(next_one))
        return next_one

    def add(t: Any) -> Any:
        found = t.get("times")
        return _then(found, lambda there: both(t, there)) if inspect.isawaitable(found) else both(t, found)

    assert await resolved(kv.atomically(add)) == int((await resolved(kv.get("times"))).raw)  # type: ignore[union-attr]


async def _then(found: Awaitable[Any], use: Callable[[Any], Any]) -> Any:
    return use(await found)


async def rate(kv: AnyHandle) -> None:
    calls = kv.rate("r", 1000.0, 5, TTL)
    try:
        assert await resolved(calls.acquire(2, PATIENCE))
    finally:
        await resolved(calls.close())


async def on_change(kv: AnyHandle) -> None:
    told: list[Any] = []
    watching = await resolved(kv.on_change("told", call=told.append))
    try:
        await balanced(lambda: bool(told))
    finally:
        await resolved(watching.cancel())
        await balanced(lambda: not at_work_on_calls())


def at_work_on_calls() -> bool:
    return any(name.startswith("raykeeper-calls") for name in at_work())


async def on_connection(kv: AnyHandle) -> None:
    told: list[Any] = []
    watching = await resolved(kv.on_connection(told.append))
    try:
        await resolved(kv.put("k", "v"))
        await balanced(lambda: "connected" in told)
    finally:
        await resolved(watching.cancel())


SCENARIOS: list[Callable[..., Awaitable[None]]] = [
    lock,
    handed_over,
    in_vain,
    rwlock,
    semaphore,
    election,
    observe,
    barrier,
    latch,
    counter,
    queue,
    given_back,
    registry,
    changes,
    partitioner,
    divided,
    atomically,
    rate,
    on_change,
    on_connection,
]


def wait_until(condition: Callable[[], object]) -> None:
    until(condition)


@contextmanager
def nothing_left(kv: Client) -> Iterator[None]:
    """At the end no lease is kept alive, and no thread or watch works, that was not there before."""
    hub = kv._known_hub()
    assert hub is not None

    def kept() -> int:
        gc.collect()
        return hub.read_locked(lambda: sum(held.keep for held in hub.lease_core._held.values()))

    threads = at_work()
    before = kept()
    yield
    wait_until(lambda: kept() <= before)
    wait_until(lambda: at_work() <= threads)


def at_work() -> set[str]:
    """Threads that work for one object, which they are named by; others serve the whole process, and stay."""
    return {thread.name for thread in threading.enumerate() if "'" in thread.name}
