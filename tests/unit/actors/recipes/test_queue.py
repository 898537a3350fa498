"""Queues: order, claims that come back, and that nothing is lost or acknowledged twice."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread
from lab.patience import PATIENCE
from raykeeper import Client, InvalidArgument, LeaseLost, LockLost, Op, codec
from raykeeper.actors.recipes import queue as queue_module

Until = Callable[..., None]


def waiting(kv: Client, name: str = "q") -> int:
    """Workers in line."""
    folder = (kv.prefix + name.encode()).replace(b"/", b"%2F") + b"/w/"
    return kv.reserved("queue").range(prefix=folder, count_only=True).count


def test_items_come_in_order_and_by_priority(kv: Client) -> None:
    queue = kv.queue("q")
    for item, priority in [("b1", 0), ("b2", 0), ("c", 5), ("a1", -3), ("b3", 0), ("a2", -3)]:
        queue.put(item, priority)
    assert len(queue) == 6
    taken = []
    for _ in range(6):
        claim = queue.claim(timeout=0)
        assert claim is not None
        taken.append(claim.item)
        claim.ack()
    assert taken == [b"a1", b"a2", b"b1", b"b2", b"b3", b"c"]
    assert len(queue) == 0
    assert queue.claim(timeout=0) is None
    assert queue.claim(timeout=0.05) is None


def test_a_claimed_item_is_nobody_elses_until_it_is_given_back(kv: Client) -> None:
    queue = kv.queue("q")
    queue.put("x")
    queue.put("y")
    claim = queue.claim()
    assert claim is not None
    other = kv.queue("q").claim()
    assert other is not None
    assert (claim.item, other.item) == (b"x", b"y")
    assert queue.claim(timeout=0) is None
    claim.nack()
    claim.nack()
    again = queue.claim()
    assert again is not None
    assert again.item == b"x"
    assert again.token > claim.token
    with pytest.raises(InvalidArgument):
        claim.ack()
    again.ack()
    with pytest.raises(InvalidArgument):
        again.ack()
    other.ack()
    assert len(queue) == 0


def test_a_forgotten_claim_comes_back(kv: Client) -> None:
    queue = kv.queue("q", ttl=1)
    queue.put("x")
    queue.claim()
    gc.collect()
    again = kv.queue("q").claim(timeout=PATIENCE)
    assert again is not None
    again.ack()


@pytest.mark.parametrize("there_is_one", [True, False])
def test_a_kept_lease_that_somebody_revoked_costs_nothing(kv: Client, until: Until, there_is_one: bool) -> None:
    """A claim that is acknowledged leaves its lease to the next one, who cannot know what became of it."""
    queue = kv.queue("q", ttl=30)
    queue.put("x")
    first = queue.claim(timeout=PATIENCE)
    assert first is not None
    first.ack()
    kept = queue._queue._spare[0]
    kv.txn([], [Op.revoke(kept.id)])
    if there_is_one:
        queue.put("y")
    waiting_for_it = in_thread(lambda: queue.claim(timeout=PATIENCE))
    if not there_is_one:
        until(lambda: waiting(kv) == 1)
        queue.put("y")
    second = waiting_for_it.result()
    assert second is not None
    assert second.item == b"y"
    second.ack()
    assert kept.lost.is_set(), "it is kept alive no longer"


def test_who_cannot_keep_a_lease_is_told_so(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = kv.queue("q", ttl=30)
    queue.put("x")
    leased = queue_module.leased_txn_or_nothing

    async def and_it_ends(*arguments: Any) -> Any:
        lease, result = await leased(*arguments)
        assert lease is not None
        kv.txn([], [Op.revoke(lease.id)])
        return lease, result

    monkeypatch.setattr(queue_module, "leased_txn_or_nothing", and_it_ends)
    with pytest.raises(LeaseLost, match="the lease of a claim from 'q' has ended"):
        queue.claim(timeout=PATIENCE)
    monkeypatch.undo()
    claim = queue.claim(timeout=PATIENCE)
    assert claim is not None


def test_a_lost_claim_is_not_acknowledged(member: OneMember, kv: Client) -> None:
    queue = kv.queue("q", ttl=6)
    queue.put("x")
    claim = queue.claim()
    assert claim is not None
    guard = claim.guard()
    guard.put("k", "1")
    member.cut = True
    try:
        assert claim.lost.wait(PATIENCE)
        assert not threading.Event().wait(1.0)
    finally:
        member.cut = False
    again = kv.queue("q").claim(timeout=PATIENCE)
    assert again is not None
    assert again.item == b"x"
    with pytest.raises(LockLost):
        claim.ack()
    with pytest.raises(LockLost):
        guard.put("k", "2")
    again.guard().put("k", "3")
    again.ack()
    assert len(queue) == 0


def test_workers_that_wait_get_items_in_the_order_in_which_they_came(kv: Client, until: Until) -> None:
    got: dict[int, bytes] = {}

    def work(number: int) -> None:
        claim = kv.queue("q").claim()
        assert claim is not None
        got[number] = claim.item
        claim.ack()

    workers = []
    for number in range(4):
        workers.append(in_thread(lambda number=number: work(number)))
        until(lambda number=number: waiting(kv) == number + 1)
    kv.compact(kv.put("k", "1").revision)
    for item in ("a", "b", "c", "d"):
        kv.queue("q").put(item)
    for worker in workers:
        worker.result()
    assert got == {0: b"a", 1: b"b", 2: b"c", 3: b"d"}
    assert waiting(kv) == 0


def test_a_waiting_worker_hears_of_an_item_that_comes_back(kv: Client, until: Until) -> None:
    queue = kv.queue("q")
    queue.put("x")
    claim = queue.claim()
    assert claim is not None
    other = in_thread(lambda: kv.queue("q").claim())
    until(lambda: waiting(kv) == 1)
    claim.nack()
    again = other.result()
    assert again.item == b"x"
    again.ack()


def test_every_item_is_done_once(kv: Client) -> None:
    total = 40
    done: Counter[bytes] = Counter()
    mutex = threading.Lock()

    def work(number: int) -> None:
        queue = kv.queue("q")
        step = 0
        while done.total() < total:
            claim = queue.claim(timeout=0.2)
            if claim is None:
                continue
            step += 1
            if (step + number) % 5 == 0:
                claim.nack()
                continue
            with mutex:
                done[claim.item] += 1
            claim.ack()

    workers = [in_thread(lambda number=number: work(number)) for number in range(4)]
    for number in range(total):
        kv.queue("q").put(f"{number}")
    for worker in workers:
        worker.result(PATIENCE)
    assert done == Counter({f"{number}".encode(): 1 for number in range(total)})
    assert len(kv.queue("q")) == 0


def test_as_a_context_manager(kv: Client) -> None:
    queue = kv.with_codec(codec.JSON).queue("q")
    queue.put({"n": 1})
    with pytest.raises(RuntimeError), queue.claim() as claim:  # type: ignore[union-attr]
        raise RuntimeError("the work went wrong")
    with queue.claim() as claim:  # type: ignore[union-attr]
        assert claim.item == {"n": 1}
    assert len(queue) == 0
    assert bool(queue)


def test_the_same_request_puts_once(kv: Client) -> None:
    queue = kv.queue("q")
    for _ in range(3):
        queue.put("x", request_id=f"{kv.prefix!r}-1")
    assert len(queue) == 1
    with pytest.raises(TypeError):
        pickle.dumps(queue.claim())
    for priority in (2**31, 1.5, "1", True):
        with pytest.raises(InvalidArgument):
            queue.put("x", priority)  # type: ignore[arg-type]


def test_asyncio(kv: Client) -> None:
    async def main() -> None:
        queue = kv.aio.queue("q")
        got = []

        async def work() -> None:
            while len(got) < 12:
                claim = await queue.claim(timeout=0.2)
                if claim is None:
                    continue
                async with claim:
                    await claim.guard().put(b"done/" + claim.item, "1")
                    got.append(claim.item)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        for number in range(12):
            await queue.put(f"{number}")
        await asyncio.wait_for(asyncio.gather(*workers), PATIENCE)
        assert sorted(got) == sorted(f"{number}".encode() for number in range(12))
        assert await queue.size() == 0
        cancelled = asyncio.create_task(queue.claim())
        while not await asyncio.to_thread(waiting, kv):
            await asyncio.sleep(0.005)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await asyncio.to_thread(waiting, kv) == 0

    asyncio.run(main())
