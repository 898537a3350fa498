"""What must happen once, does, however long it takes; and what was not done says so."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from typing import Any

import pytest

from lab.onemember import OneMember
from lab.patience import PATIENCE
from raykeeper import Client, Compare, LockLost, Op, RequestTimeout
from raykeeper.actors.client import hub, leases


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every lease had been asked for long ago."""
    monkeypatch.setattr(leases, "clock", lambda: hub.clock() - 1000)


def test_a_transaction_with_a_lease_runs_once_however_slow(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    made = []

    def make(id: int) -> Op:
        made.append(id)
        return Op.txn([Compare.version("once") == 0], [Op.put("once", "done"), Op.put("me", "here", lease=id)])

    lease, result = kv.leased_txn(10, make)
    assert result.succeeded
    assert len(made) == 1
    assert kv.get("once").version == 1  # type: ignore[union-attr]
    assert lease is not None
    assert lease.lost.is_set()


def test_the_same_for_asyncio(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)

    async def main() -> None:
        lease, result = await kv.aio.leased_txn(10, lambda id: Op.txn([], [Op.put("once", "done", lease=id)]))
        assert result.succeeded
        assert lease is not None
        assert lease.lost.is_set()
        assert (await kv.aio.get("once")).version == 1  # type: ignore[union-attr]

    asyncio.run(main())


def test_a_lock_whose_place_took_too_long_takes_another(
    kv: Client, monkeypatch: pytest.MonkeyPatch, member: OneMember
) -> None:
    before, late = member.leases, [True]
    monkeypatch.setattr(leases, "clock", lambda: hub.clock() - (1000 if late and late.pop() else 0))
    lock = kv.lock("l")
    assert lock.acquire(timeout=PATIENCE)
    assert len(member.leases - before) == 1
    lock.release()
    assert member.leases <= before


def test_a_second_ack_after_one_without_an_answer_does_not_say_that_it_was_not_done(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = kv.queue("q")
    queue.put("x")
    claim = queue.claim()
    assert claim is not None
    run = Client._run

    def lose(self: Client, steps: Any, timeout: Any) -> Any:
        run(self, steps, timeout)
        raise RequestTimeout("lost on its way back", applied=None)

    monkeypatch.setattr(Client, "_run", lose)
    with pytest.raises(RequestTimeout):
        claim.ack()
    monkeypatch.undo()
    with pytest.raises(LockLost) as caught:
        claim.ack()
    assert caught.value.applied is None
    assert len(queue) == 0


def test_what_is_made_under_a_guard_is_guarded(kv: Client, member: OneMember) -> None:
    lock = kv.lock("g")
    lock.acquire()
    guard = lock.guard()
    with guard.lease(10) as lease:
        guard.put("k", "v", lease=lease)
    lock.release()
    before = member.leases
    attempts: dict[str, Any] = {
        "put": lambda: guard.put("a", "1"),
        "delete": lambda: guard.delete("a"),
        "txn": lambda: guard.txn([], [Op.put("a", "1")]),
        "lease": lambda: guard.lease(10, keep_alive=False),
        "leased_txn": lambda: guard.leased_txn(10, lambda id: Op.txn([], [Op.put("a", "1", lease=id)])),
        "namespace": lambda: guard.namespace("n/").put("a", "1"),
        "aio": lambda: asyncio.run(_lease(guard)),
        "counter": lambda: guard.counter("c").add(1),
        "queue": lambda: guard.queue("c").put("x"),
        "latch": lambda: guard.latch("c", 1).count_down(),
        "lock": lambda: guard.lock("other").acquire(timeout=PATIENCE),
        "registry": lambda: guard.registry("r").register("n", "here"),
    }
    for what, attempt in attempts.items():
        with pytest.raises(LockLost):
            pytest.fail(f"{what} passed the guard: {attempt()!r}")
    assert member.leases <= before


async def _lease(guard: Client) -> None:
    await guard.aio.lease(10)


def test_a_lease_of_0_is_none(kv: Client) -> None:
    kv.put("k", "v", lease=0)
    kv.txn([], [Op.put("j", "v", lease=0)])
    assert [item.lease for item in kv.range(prefix="")] == [0, 0]


def test_the_async_handle_can_be_entered_again(kv: Client) -> None:
    async def main() -> None:
        for _ in range(2):
            async with kv.aio as handle:
                await handle.put("k", "v")
            assert handle.closed

    asyncio.run(main())


def test_a_claim_that_may_not_come_in_a_with_block(kv: Client) -> None:
    queue = kv.queue("q")
    with queue.claiming(timeout=0) as claim:
        assert claim is None
    queue.put("x")
    with queue.claiming(timeout=PATIENCE) as claim:
        assert claim is not None
        assert claim.item == b"x"
    assert len(queue) == 0

    async def main() -> None:
        async with kv.aio.queue("q").claiming(timeout=0) as claim:
            assert claim is None

    asyncio.run(main())


def test_whatever_belongs_to_the_process_says_that_it_does_not_pickle(kv: Client) -> None:
    queue = kv.queue("q")
    queue.put("x")
    held = kv.lock("held")
    held.acquire()
    with kv.lease(10) as lease, kv.watch("k") as watch, kv.cached("") as copy:
        things = [
            kv.lock("l"),
            held,
            kv.rwlock("l").read(),
            kv.rwlock("l"),
            kv.semaphore("l", 1),
            kv.election("l"),
            kv.election("l").observe(),
            kv.barrier("l", 1),
            kv.latch("l", 1),
            queue,
            queue.claim(),
            kv.counter("c"),
            kv.registry("r"),
            kv.registry("r").register("n", "here"),
            kv.registry("r").watch(),
            kv.partitioner("p", 1),
            lease,
            watch,
            copy,
        ]
        for thing in [*things, kv.aio.lock("l"), kv.aio.election("l"), kv.aio.semaphore("l", 1), kv.aio.queue("q")]:
            inspect.getmembers(thing)  # as Ray does once it does not pickle: whatever it raises is what the user sees
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(thing)
    held.release()
