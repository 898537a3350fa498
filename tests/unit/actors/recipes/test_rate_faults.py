"""Rate limits when something goes wrong: errors, interrupts and signal handlers at the worst moment. Whatever happens,
no share is kept that nobody follows, nobody waits for itself, and the next call works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread
from lab.patience import PATIENCE, until
from raykeeper import (
    Client,
    CompactedError,
    InvalidArgument,
    KeeperError,
    NoSpace,
    ReentrantCall,
    RequestTimeout,
    Unavailable,
)
from raykeeper.actors import finalizer_guard
from raykeeper.actors.client.leases import revoke_steps
from raykeeper.actors.deadline import time_left
from raykeeper.actors.recipes import rate_holder as rate
from raykeeper.actors.recipes import sync_async
from raykeeper.actors.recipes.token_bucket import TokenBucket, TokenWait
from raykeeper.errors import PermissionDenied, SessionExpired

NEVER = 1e-6
"""Tokens a second: none comes while a test runs."""
MANY = 1e6
"""Tokens a second: there are always some."""
TTL = 600.0
"""No lease is lost because a machine is slow."""


@pytest.fixture(autouse=True)
def nobody_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No share is given back because a machine is slow."""
    monkeypatch.setattr(rate, "RATE_IDLE_S", TTL)


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own, whose calls have all the time that a slow machine takes."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/").with_timeout(PATIENCE)
        member.cut = False


def holding_of(limiter: Any) -> Any:
    holding = limiter._logic._holding
    assert holding is not None
    return holding


def lose(kv: Client, limiter: Any) -> None:
    """Its lease ends."""
    lease = holding_of(limiter).lease
    lease.lost.set()
    kv._run(revoke_steps(lease.id), None)


# --- signal handlers and destructors ---------------------------------------------------------------------------------


def refused(limiter: Any) -> None:
    """What a handler calls on this very thread."""
    for call in (limiter.try_acquire, limiter.acquire, limiter.close):
        with pytest.raises(ReentrantCall):
            call()


def test_a_handler_that_has_interrupted_a_change_of_the_bucket_is_refused(kv: Client) -> None:
    calls = kv.rate("r", NEVER, 10, TTL)
    assert calls.acquire(3)

    def interrupted() -> None:
        with calls._logic.bucket._lock:
            refused(calls)

    in_thread(interrupted).result()
    assert calls.acquire(7, 0), "nothing was taken, and nothing given back"
    calls.close()


def test_no_collection_starts_while_the_bucket_is_changed() -> None:
    deferring = []

    def clock() -> float:
        deferring.append(threading.get_ident() in finalizer_guard._deferring)
        return 0.0

    made, lost, wait = TokenBucket(clock), threading.Event(), TokenWait(1)
    deferring.clear()
    made.open(lost)
    made.set_share(1, 1, 1)
    made.try_take(1)
    made.enqueue(wait)
    made.take(wait)
    made.leave(wait)
    made.lower(1, 1)
    made.drain(lost)
    assert len(deferring) >= 7
    assert all(deferring)
    assert threading.get_ident() not in finalizer_guard._deferring


def test_a_handler_that_has_interrupted_a_join_is_refused(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kv.rate("r", NEVER, 10, TTL)
    look, handled = rate.RateHolder._look, []

    async def interrupted(self: Any) -> Any:
        if not handled:
            handled.append(True)
            with pytest.raises(ReentrantCall):
                calls.acquire()
            with pytest.raises(ReentrantCall):
                calls.close()
            assert calls._logic._holding is None, "the handler's call has begun nothing"
        return await look(self)

    monkeypatch.setattr(rate.RateHolder, "_look", interrupted)
    assert in_thread(lambda: calls.acquire(10, 0)).result()
    assert handled
    calls.close()


def test_a_handler_does_not_wait_for_a_thread_that_waits_for_what_it_has_interrupted(kv: Client) -> None:
    calls, joined = kv.rate("r", NEVER, 10, TTL), kv.rate("s", NEVER, 10, TTL)
    assert joined.acquire()
    entered, over = threading.Event(), threading.Event()

    def busy() -> None:
        with calls._logic.gate._lock, joined._logic.gate._lock:  # type: ignore[union-attr]
            entered.set()
            assert over.wait(PATIENCE)

    def interrupted() -> None:
        with kv._hub(1.0)._lock:
            with pytest.raises(ReentrantCall):
                calls.acquire()
            joined.close()  # as all closing does, it leaves the rest to a thread

    other = in_thread(busy)
    assert entered.wait(PATIENCE)
    handler = in_thread(interrupted)
    try:
        until(lambda: handler.done)
        handler.result()
        assert joined.share == 0
    finally:
        over.set()
    other.result()
    assert calls.acquire()
    calls.close()


def test_a_handler_does_not_wait_for_the_turn_of_its_own_thread(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kv.rate("r", NEVER, 10, TTL)
    assert calls.acquire(10)
    pause, waiting, handled = rate.pause, [], []

    async def interrupted(handle: Any, seconds: float) -> None:
        if threading.get_ident() in waiting and not handled:
            handled.append(True)
            with pytest.raises(ReentrantCall):
                calls.acquire()
            assert not calls.try_acquire()
        await pause(handle, min(seconds, 0.01))

    def wait() -> Any:
        waiting.append(threading.get_ident())
        return calls.acquire(timeout=PATIENCE)

    monkeypatch.setattr(rate, "pause", interrupted)
    waiter = in_thread(wait)
    until(lambda: handled)
    calls._logic.bucket.set_share(1, 10, 1)
    assert waiter.result()
    calls.close()


# --- what ends the follower ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NoSpace, SessionExpired, PermissionDenied])
def test_a_holder_that_cannot_follow_gives_its_share_up(
    error: type[KeeperError], kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = kv.rate("r", NEVER, 10, TTL), kv.rate("r", NEVER, 10, TTL)
    assert first.acquire()
    write = rate.RateHolder._write

    async def failing(self: Any, *arguments: Any) -> bool:
        if self is first._logic:
            raise error("the test says so", applied=False)
        return await write(self, *arguments)

    monkeypatch.setattr(rate.RateHolder, "_write", failing)
    second.try_acquire()
    until(lambda: first.share == 0)
    until(lambda: second.share == pytest.approx(NEVER))
    monkeypatch.setattr(rate.RateHolder, "_write", write)
    assert not first.try_acquire(10)  # it has a share again
    until(lambda: first.share == second.share > 0)
    first.close()
    second.close()


def test_a_holder_that_cannot_read_what_is_shared_gives_its_share_up(kv: Client) -> None:
    calls = kv.rate("r", NEVER, 10, TTL)
    assert calls.acquire()
    kv.reserved("rate").put(calls._logic._state_key, b"nonsense")
    until(lambda: calls.share == 0)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        calls.acquire()
    kv.reserved("rate").delete(calls._logic._state_key)
    assert calls.acquire()
    calls.close()


def test_a_follower_whose_history_is_compacted_goes_on_also_if_it_fails_at_first(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = kv.rate("compacted", NEVER, 10, TTL), kv.rate("compacted", NEVER, 10, TTL)
    next_event, look, faults = rate.next_event, rate.RateHolder._look, [CompactedError(1), Unavailable("not now")]

    async def compacted(watch: Any, max_wait: float) -> Any:
        if len(faults) == 2 and threading.current_thread().name == "raykeeper-rate-'compacted'":
            raise faults.pop(0)
        return await next_event(watch, max_wait)

    async def unavailable(self: Any) -> Any:
        if len(faults) == 1 and self is first._logic:
            raise faults.pop()
        return await look(self)

    assert first.acquire()
    holding = holding_of(first)
    monkeypatch.setattr(rate, "next_event", compacted)
    monkeypatch.setattr(rate.RateHolder, "_look", unavailable)
    until(lambda: not faults)
    second.try_acquire()
    until(lambda: first.share == second.share > 0)
    assert first._logic._holding is holding
    first.close()
    second.close()


def test_a_join_without_a_thread_for_the_follower_is_none(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = kv.rate("r", NEVER, 10, TTL), kv.rate("r", NEVER, 10, TTL)

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            first.acquire()
    assert first.share == 0
    assert first._logic._holding is None
    assert not second.try_acquire(10)  # a tenth of the pool went with the lease
    until(lambda: second.share == pytest.approx(NEVER))
    first.try_acquire()
    until(lambda: first.share == second.share > 0)
    first.close()
    second.close()


def follower(name: str) -> asyncio.Task[None]:
    (task,) = [task for task in sync_async._tasks if task.get_name() == f"raykeeper-rate-{name!r}"]
    return task


@pytest.mark.parametrize("begun", [True, False])
def test_a_task_that_is_cancelled_gives_its_share_up(begun: bool, kv: Client) -> None:
    async def main() -> None:
        calls = kv.aio.rate("cancelled", NEVER, 10, TTL)
        assert await calls.acquire()
        old, following = holding_of(calls), follower("cancelled")
        if begun:
            await asyncio.sleep(0)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await asyncio.sleep(0)
        assert old.lease.lost.is_set()
        if begun:
            assert calls.share == 0
        assert not await calls.acquire(9, 0), "what nobody follows gives nothing"
        assert holding_of(calls) is not old
        await calls.close()

    asyncio.run(main())


def test_a_share_belongs_to_a_loop_and_in_another_one_it_is_another(kv: Client) -> None:
    calls, other = kv.aio.rate("loops", NEVER, 10, TTL), kv.rate("loops", NEVER, 10, TTL)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(calls.acquire())
    old, left = holding_of(calls), follower("loops")
    loop.close()

    async def main() -> None:
        assert not await calls.acquire(9, 0), "what nobody follows gives nothing"
        assert old.lease.lost.is_set()
        assert holding_of(calls) is not old
        await asyncio.to_thread(other.try_acquire)
        while not calls.share == other.share > 0:
            await asyncio.sleep(0.01)
        await calls.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    sync_async._tasks.discard(left)
    other.close()


def test_a_follower_that_is_late_leaves_the_next_share_alone(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is lost, and a call joins again, before the follower of the old one hears of it."""
    wake = threading.Event()
    next_event, settle, asleep = rate.next_event, rate.RateHolder._settle, []

    async def late(watch: Any, max_wait: float) -> Any:
        if not asleep and threading.current_thread().name == "raykeeper-rate-'late'":
            asleep.append(threading.current_thread())
            assert wake.wait(PATIENCE)
            return None
        return await next_event(watch, max_wait)

    async def settled(self: Any, holding: Any) -> int:
        revision = await settle(self, holding)
        if asleep:  # in the join after the loss, before it ends
            wake.set()
            asleep[0].join(PATIENCE)
            assert not asleep[0].is_alive()
        return revision

    calls = kv.rate("late", 1000, 10, TTL)
    monkeypatch.setattr(rate, "next_event", late)
    assert calls.acquire()
    until(lambda: asleep)
    lose(kv, calls)
    monkeypatch.setattr(rate.RateHolder, "_settle", settled)
    assert calls.acquire(timeout=PATIENCE)
    assert calls.share == 1000
    calls.close()


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable, RequestTimeout])
def test_who_has_had_a_share_waits_for_another_one(
    error: type[KeeperError], kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, tries = kv.rate("r", MANY, 10, TTL), []

    async def failing(*arguments: Any) -> Any:
        tries.append(True)
        raise error("the cluster cannot be reached", applied=False)

    with monkeypatch.context() as patch:
        patch.setattr(rate, "leased_txn_or_nothing", failing)
        with pytest.raises(error):
            calls.acquire()  # the first share
    assert calls.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(rate, "leased_txn_or_nothing", failing)
        lose(kv, calls)
        assert not calls.try_acquire()
        assert not calls.acquire(timeout=0.05)
        tries.clear()
        waiter = in_thread(calls.acquire)
        until(lambda: len(tries) > 2)
        assert not waiter.done
    assert waiter.result()
    calls.close()


def test_a_wait_ends_in_time_also_if_its_share_is_lost_in_it(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a call does has the time that is left of its timeout, not each part all of it."""
    calls, seen = kv.rate("r", NEVER, 10, TTL), []
    assert calls.acquire(10)
    take = calls._logic.bucket.take
    monkeypatch.setattr(calls._logic.bucket, "take", lambda wait: (seen.append(time_left()), take(wait))[1])

    def looked_more_than_once() -> bool:
        seen.clear()
        assert not calls.acquire(timeout=0.5)
        return len(seen) > 1

    until(looked_more_than_once)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.5
    calls.close()


def test_a_handle_that_was_closed_is_not_waited_for(member: OneMember) -> None:
    client = member.client()
    calls = client.namespace("closed handle/").rate("r", NEVER, 10, TTL)
    assert calls.acquire()
    lost = holding_of(calls).lease.lost
    lost.set()
    calls._logic.space.close()  # type: ignore[unused-coroutine]
    with pytest.raises(KeeperError):
        calls.acquire()
    client.close()


@pytest.mark.parametrize("where", ["enqueue", "leave"])
def test_an_interrupt_leaves_nobody_in_the_way(where: str, kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kv.rate("r", NEVER, 10, TTL)
    assert calls.acquire()
    bucket = calls._logic.bucket
    enqueue = bucket.enqueue

    def interrupted(wait: TokenWait) -> None:
        if where == "enqueue":
            enqueue(wait)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bucket, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls.acquire(10, timeout=0)
    assert not bucket.waiting
    assert calls.acquire(9, timeout=0)
    calls.close()


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("where", ["__aenter__", "__aexit__"])
def test_an_interrupt_leaves_no_gate_shut(where: str, kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kv.rate("r", NEVER, 10, TTL)
    enter = sync_async._ThreadGate.__aenter__

    async def interrupted(gate: Any, *error: object) -> None:
        if where == "__aenter__":
            await enter(gate)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sync_async._ThreadGate, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls.acquire()
    assert in_thread(lambda: calls.acquire(timeout=PATIENCE)).result()
    assert calls.acquire(timeout=PATIENCE)
    calls.close()
