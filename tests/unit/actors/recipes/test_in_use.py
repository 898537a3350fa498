"""What is in use: names, holders, waiters in order, sizes, and what is stuck."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread
from raykeeper import Client, InUse, InvalidArgument
from raykeeper.actors.client.client_info import ClientInfo, Owner
from raykeeper.actors.client.leases import LeaseInfo
from raykeeper.actors.recipes import in_use
from raykeeper.actors.recipes.in_use import KINDS, why_stuck

Until = Callable[..., None]
TTL = 300.0
"""Nobody is to be taken for stuck, or lose anything, on a busy machine."""


def one(kv: Client, kind: Any) -> InUse:
    (found,) = kv.in_use(kind)
    return found


def test_nothing_is_in_use_at_first(kv: Client) -> None:
    for kind in KINDS:
        assert kv.in_use(kind) == []


def test_a_lock_with_its_holder_and_its_waiters(kv: Client, until: Until) -> None:
    with kv.lock("reports", ttl=TTL) as held:
        waiting = in_thread(lambda: kv.lock("reports", ttl=TTL).acquire())
        until(lambda: len(one(kv, "lock").waiters) == 1)
        found = one(kv, "lock")
        assert found.name.endswith(b"/reports")
        (holder,), (waiter,) = found.holders, found.waiters
        assert holder.token == held.token < waiter.token
        assert holder.owner is not None
        assert holder.owner.client.pid == os.getpid()
        assert holder.owner.since > 0
        assert {holder.lease, waiter.lease} <= {lease.id for lease in kv.leases()}
        assert holder.lease != waiter.lease
        assert (found.stuck, found.more, holder.ttl) == ("", False, TTL)
    waiting.result()


def test_names_are_found_one_by_one_within_the_namespace(kv: Client) -> None:
    names = ["a", "a/b", "a0", "ab", "%", "\udc80".encode(errors="surrogateescape"), "z" * 300]
    held = [kv.lock(name, ttl=TTL) for name in names]
    for lock in held:
        assert lock.acquire()
    other = kv.namespace("elsewhere/").lock("a", ttl=TTL)
    assert other.acquire()
    prefix = kv.prefix
    found = [each.name.removeprefix(prefix) for each in kv.in_use("lock")]
    expected = [name if isinstance(name, bytes) else name.encode() for name in [*names, "elsewhere/a"]]
    assert sorted(found) == sorted(expected)
    assert [each.name for each in kv.namespace("elsewhere/").in_use("lock")] == [prefix + b"elsewhere/a"]
    assert len(kv.in_use("lock", limit=3)) == 3
    for lock in [*held, other]:
        lock.release()
    assert kv.in_use("lock") == []


def test_readers_hold_together_and_a_writer_waits(kv: Client, until: Until) -> None:
    with kv.rwlock("t", ttl=TTL).read(), kv.rwlock("t", ttl=TTL).read():
        waiting = in_thread(lambda: kv.rwlock("t", ttl=TTL).write().acquire())
        until(lambda: len(one(kv, "rwlock").waiters) == 1)
        found = one(kv, "rwlock")
        assert [each.what for each in found.holders] == ["read", "read"]
        assert [each.what for each in found.waiters] == ["write"]
    waiting.result()


def test_a_semaphore_has_its_limit(kv: Client, until: Until) -> None:
    with kv.semaphore("s", 2, ttl=TTL), kv.semaphore("s", 2, ttl=TTL):
        waiting = in_thread(lambda: kv.semaphore("s", 2, ttl=TTL).acquire())
        until(lambda: len(one(kv, "semaphore").waiters) == 1)
        found = one(kv, "semaphore")
        assert (len(found.holders), found.size) == (2, 2)
    waiting.result()


def test_an_election_tells_what_its_leader_says(kv: Client) -> None:
    election = kv.election("e", ttl=TTL)
    assert election.campaign("10.0.0.1:5000")
    found = one(kv, "election")
    assert [each.what for each in found.holders] == ["10.0.0.1:5000"]
    election.resign()


def test_a_queue_has_items_claims_and_waiting_workers(kv: Client, until: Until) -> None:
    queue = kv.queue("q")
    queue.put("1")
    claim = queue.claim()
    assert claim is not None
    waiting = in_thread(lambda: kv.queue("q").claim())
    until(lambda: len(one(kv, "queue").waiters) == 1)
    found = one(kv, "queue")
    assert (len(found.holders), found.size) == (1, 1)
    claim.ack()
    queue.put("2")
    other = waiting.result()
    assert other is not None
    other.ack()
    assert kv.in_use("queue") == []


def test_a_queue_of_items_alone_is_in_use(kv: Client) -> None:
    kv.queue("q").put("1")
    found = one(kv, "queue")
    assert (found.holders, found.waiters, found.size) == ((), (), 1)


def test_parties_wait_at_a_barrier(kv: Client, until: Until) -> None:
    first = in_thread(lambda: kv.barrier("b", 2).wait())
    until(lambda: len(kv.in_use("barrier")) == 1)
    found = one(kv, "barrier")
    assert (len(found.waiters), found.holders, found.size) == (1, (), 2)
    assert kv.barrier("b", 2).wait()
    assert first.result()


def test_services_are_listed_by_topic(kv: Client) -> None:
    with kv.registry("search").register("ranker/2", "10.0.0.7:5000"):
        found = one(kv, "registry")
        assert [each.what for each in found.holders] == ["ranker/2 10.0.0.7:5000"]


def test_more_contenders_than_are_told(kv: Client, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "IN_USE_PARTICIPANTS", 2)
    slots = [kv.semaphore("s", 5, ttl=TTL) for _ in range(3)]
    for slot in slots:
        assert slot.acquire()
    found = one(kv, "semaphore")
    assert (len(found.holders), found.more) == (2, True)
    for slot in slots:
        slot.release()


def test_an_unknown_kind(kv: Client) -> None:
    for kind in ("locks", "", None, 7):
        with pytest.raises(InvalidArgument):
            kv.in_use(kind)  # type: ignore[arg-type]


def test_the_same_with_asyncio(member: OneMember) -> None:
    import asyncio

    async def play() -> None:
        async with member.client().aio as kv, kv.namespace("aio/").lock("a"):
            (found,) = await kv.namespace("aio/").in_use("lock")
            assert found.name == b"aio/a"

    asyncio.run(play())


def lease(remaining: float, open: bool = True) -> LeaseInfo:
    return LeaseInfo(1, 10.0, remaining, (), Owner(ClientInfo(1, open=open)))


def test_who_is_silent_for_most_of_its_lease_is_stuck() -> None:
    assert why_stuck(lease(9.5)) == ""
    assert why_stuck(lease(6.0)) == ""
    assert "silent for 7.0 s, its lease ends in 3.0 s" in why_stuck(lease(3.0))
    assert why_stuck(lease(-1.0))
