"""Leases on a real cluster: never early, not late, kept through the death of leaders, freed by the death of holders."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.crowd import Crowd
from lab.ray.tools import Lateness, Made, kill, leader, serving, wait_until
from raykeeper import InvalidArgument, LeaseLost, LeaseNotFound, Op
from raykeeper.actors.client.adoption import adopted
from raykeeper.limits import LEASE_MIN_TTL_S

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def kv(shared: Any) -> Any:
    with shared.client() as client:
        yield client


@pytest.fixture
def late(kv: Any) -> Iterator[Lateness]:
    with Lateness(kv) as late:
        yield late


class Ends:
    """Notes when keys are deleted, as a watcher sees it."""

    def __init__(self, kv: Any, prefix: str) -> None:
        self.at: dict[bytes, float] = {}
        self.revisions: dict[bytes, int] = {}
        self.watch = kv.watch(prefix=prefix, only="delete")
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for event in self.watch:
            self.at[event.kv.key] = time.monotonic()
            self.revisions[event.kv.key] = event.kv.mod_revision

    def wait(self, key: str, seconds: float) -> float:
        wait_until(lambda: key.encode() in self.at, seconds, f"{key} is gone")
        return self.at[key.encode()]

    def close(self) -> None:
        self.watch.cancel()
        self.thread.join(10)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_lease_ends_neither_early_nor_more_than_a_second_late(kv: Any, late: Lateness) -> None:
    ends = Ends(kv, "ends/")
    asked: dict[str, tuple[float, float, float]] = {}
    for n, ttl in enumerate((1.0, 1.5, 2.0, 3.0, 4.0)):
        before = time.monotonic()
        lease = kv.lease(ttl, keep_alive=False)
        asked[f"ends/{n}"] = (before, time.monotonic(), ttl)
        kv.put(f"ends/{n}", "", lease=lease)
    for key, (before, after, ttl) in asked.items():
        at = ends.wait(key, 15)
        assert at >= before + ttl, "early"
        assert at <= after + ttl + 1.0 + late.tolerance, "late"
    ends.close()


def test_all_keys_of_a_lease_go_in_one_revision(kv: Any) -> None:
    ends = Ends(kv, "one/")
    lease = kv.lease(3.0, keep_alive=False)
    kv.txn(success=[Op.put(f"one/{n}", "", lease=lease) for n in range(20)])
    kv.put("one/3", "", lease=None)  # detached
    assert len(lease.keys()) == 19
    ends.wait("one/19", 10)
    assert len(set(ends.revisions.values())) == 1
    assert [item.key for item in kv.range(prefix="one/")] == [b"one/3"]
    ends.close()


def test_kept_alive_while_it_lives_revoked_at_the_end(kv: Any) -> None:
    with kv.lease(3.0) as lease:
        kv.put("kept", "", lease=lease)
        assert not lease.lost.wait(5.0)
        assert kv.get("kept") is not None
        assert 0 < lease.remaining() < 3.0
    assert kv.get("kept") is None
    assert lease.lost.is_set()
    assert lease.remaining() == 0
    with pytest.raises(LeaseLost):
        kv.put("kept", "", lease=lease)
    with pytest.raises(LeaseNotFound):
        kv.put("kept", "", lease=lease.id)
    lease.revoke()


def test_a_collected_lease_is_kept_alive_no_longer(kv: Any, late: Lateness) -> None:
    ends = Ends(kv, "collected/")
    lease = kv.lease(3.0)
    kv.put("collected/key", "", lease=lease)
    lost = lease.lost
    assert not lost.wait(4.0)
    del lease
    gc.collect()
    collected = time.monotonic()
    assert ends.wait("collected/key", 30) <= collected + 3.0 + 1.0 + late.tolerance
    assert lost.is_set()
    ends.close()


@ray.remote(num_cpus=0, max_retries=0)
def take_and_raise(name: str, key: str) -> int:
    kv = raykeeper.connect(name)
    lease = kv.lease(3.0)
    kv.put(key, str(os.getpid()), lease=lease)
    threading.Event().wait(3.5)  # so that it was kept alive at least once
    raise ValueError("a bug of the user's")


@ray.remote(num_cpus=0, max_retries=0)
def take_and_raise_in_a_cycle(name: str, key: str) -> None:
    kv = raykeeper.connect(name)
    lease = kv.lease(3.0)
    kv.put(key, str(os.getpid()), lease=lease)
    problem = None
    try:
        raise ValueError("a bug of the user's")
    except ValueError as error:
        problem = error  # this keeps the frame, with the lease in it, until the collector comes
    raise problem


def test_a_task_that_takes_a_lease_and_raises_frees_it_though_its_process_lives_on(kv: Any, late: Lateness) -> None:
    ends = Ends(kv, "raised/")
    task = take_and_raise.remote(kv.cluster_name, "raised/key")
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(task, timeout=60)
    raised = time.monotonic()
    process = int(kv.get("raised/key").text)
    assert ends.wait("raised/key", 30) <= raised + 3.0 + 1.0 + late.tolerance
    os.kill(process, 0)
    ends.close()


def test_even_if_the_lease_hangs_in_a_cycle(kv: Any) -> None:
    ends = Ends(kv, "cycle/")
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(take_and_raise_in_a_cycle.remote(kv.cluster_name, "cycle/key"), timeout=60)
    os.kill(int(kv.get("cycle/key").text), 0)
    ends.wait("cycle/key", 30)
    ends.close()


def test_a_dead_process_frees_its_lease(kv: Any, crowd: Crowd, late: Lateness) -> None:
    ends = Ends(kv, "dead/")
    (person,) = crowd.take(1)
    person.run(_take_forever, kv.cluster_name, "dead/key", 3.0)
    assert kv.get("dead/key") is not None
    person.kill()
    killed = time.monotonic()
    assert ends.wait("dead/key", 30) <= killed + 3.0 + 1.0 + late.tolerance
    ends.close()


def test_a_killed_process_lets_go_at_once_of_what_it_alone_has_used(kv: Any, crowd: Crowd) -> None:
    """The kernel says that it is dead. Its lease that another process has kept alive, and one to which another has
    attached a key, end by their TTLs, which are far away."""
    ends = Ends(kv, "life/")
    (person,) = crowd.take(1)
    alone, kept, used = person.run(_take_three, kv.cluster_name, "life/", 600.0)
    with contextlib.closing(kv.namespace("")) as other:
        adopted(other, kept, keep_alive=False)
        other.put("life/of another", "", lease=used)
    person.kill()
    ends.wait("life/alone", 60)
    assert {lease.id for lease in kv.leases()} & {alone, kept, used} == {kept, used}
    left = [item.key for item in kv.range(prefix="life/")]
    assert left == [b"life/kept", b"life/of another", b"life/used"]
    for id in (kept, used):
        adopted(kv, id, keep_alive=False).revoke()
    ends.close()


def test_a_lock_of_a_killed_process_is_the_next_ones_and_its_guard_refuses_the_dead(kv: Any, crowd: Crowd) -> None:
    (person,) = crowd.take(1)
    token = person.run(_lock_forever, kv.cluster_name, "of the dead", 600.0)
    lock = kv.lock("of the dead", ttl=600)
    assert not lock.acquire(timeout=0)
    person.kill()
    assert lock.acquire(timeout=60)
    assert lock.token > token
    lock.release()


def _take_three(name: str, prefix: str, ttl: float) -> list[int]:
    kv = raykeeper.connect(name)
    leases = [kv.lease(ttl) for _ in range(3)]
    for lease, key in zip(leases, ("alone", "kept", "used"), strict=True):
        kv.put(prefix + key, "", lease=lease)
    sys.modules["kept forever"] = (kv, leases)  # type: ignore[assignment]
    _wait_for_monitor(kv)
    return [lease.id for lease in leases]


def _lock_forever(name: str, lock_name: str, ttl: float) -> int:
    kv = raykeeper.connect(name)
    lock = kv.lock(lock_name, ttl=ttl)
    lock.acquire()
    sys.modules["kept forever"] = (kv, lock)  # type: ignore[assignment]
    _wait_for_monitor(kv)
    return int(lock.token)


def _wait_for_monitor(kv: raykeeper.Client) -> None:
    """Until a member has said that it would notice the death of this process."""
    hub: Any = kv._hub(10.0)
    pause, deadline = threading.Event(), time.monotonic() + 60
    while not hub.monitor_core.monitored:
        assert time.monotonic() < deadline, "no member monitors this process"
        pause.wait(0.01)


def _take_forever(name: str, key: str, ttl: float) -> None:
    kv = raykeeper.connect(name)
    lease = kv.lease(ttl)
    kv.put(key, "", lease=lease)
    sys.modules["kept forever"] = (kv, lease)  # type: ignore[assignment]


def test_a_stopped_process_learns_of_its_loss_when_it_goes_on(kv: Any, crowd: Crowd) -> None:
    (person,) = crowd.take(1)
    person.run(_take_forever, kv.cluster_name, "stopped/key", 3.0)
    person.stop()
    wait_until(lambda: kv.get("stopped/key") is None, 30)
    person.go_on()
    assert person.run(_is_lost)


def _is_lost() -> bool:
    return bool(sys.modules["kept forever"][1].lost.is_set())  # type: ignore[index]


# --- leaders ---------------------------------------------------------------------------------------------------------


def test_leaders_that_die_neither_shorten_nor_keep(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    ends = Ends(kv, "k/")
    living = kv.lease(8.0)
    kv.put("k/living", "", lease=living)
    dead = kv.lease(6.0, keep_alive=False)
    granted = time.monotonic()
    kv.put("k/dead", "", lease=dead)
    for _ in range(2):
        kill(leader(cluster).pid)
        wait_until(lambda: serving(cluster), 60, "all members serve again")
    at = ends.wait("k/dead", 60)
    assert at >= granted + 6.0 - 0.5
    if not living.lost.is_set():  # on a machine that is very slow, elections may take longer than the TTL
        assert kv.get("k/living") is not None
    ends.close()


def test_who_is_cut_off_learns_of_the_loss_within_the_ttl(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    lease = kv.lease(3.0)
    kv.put("key", "", lease=lease)
    assert not lease.lost.wait(2.0)
    for member in cluster.members():
        stopped.append(member.pid)
        os.kill(member.pid, signal.SIGSTOP)
    cut = time.monotonic()
    assert lease.lost.wait(5.0)
    assert time.monotonic() - cut <= 3.0
    for member_pid in stopped:
        os.kill(member_pid, signal.SIGCONT)
    wait_until(lambda: kv.get("key", timeout=30) is None, 30, "and so does the cluster")


# --- questions -------------------------------------------------------------------------------------------------------


def test_time_to_live_and_listing(kv: Any) -> None:
    inner = kv.namespace("ttl/")
    with kv.lease(30.0) as lease, kv.lease(20) as other:
        inner.put("a", "", lease=lease)
        kv.put("ttl/b", "", lease=lease.id)
        kv.put("elsewhere", "", lease=lease)
        info = kv.time_to_live(lease)
        assert (info.id, info.ttl, info.keys) == (lease.id, 30.0, ())
        assert 20 < info.remaining <= 30
        assert sorted(kv.time_to_live(lease.id, keys=True).keys) == [b"elsewhere", b"ttl/a", b"ttl/b"]
        assert sorted(inner.time_to_live(lease, keys=True).keys) == [b"a", b"b"]
        assert {lease.id, other.id} <= {each.id for each in kv.leases()}
        assert kv.get("ttl/a").lease == lease.id
    with pytest.raises(LeaseNotFound):
        kv.time_to_live(lease)
    assert not {lease.id, other.id} & {each.id for each in kv.leases()}


@pytest.mark.parametrize("ttl", [0, -1, LEASE_MIN_TTL_S / 2, float("inf"), float("nan"), "10", None, True])
def test_impossible_ttls(kv: Any, ttl: Any) -> None:
    with pytest.raises(InvalidArgument):
        kv.lease(ttl)


def test_a_lease_does_not_pickle_and_says_what_to_do(kv: Any) -> None:
    with kv.lease(10) as lease, pytest.raises(TypeError, match=r"\.id"):
        pickle.dumps(lease)


def test_coroutines(kv: Any, late: Lateness) -> None:
    async def go() -> None:
        aio = kv.aio
        async with await aio.lease(10) as lease:
            await aio.put("aio/lease", "", lease=lease)
            assert await lease.keys() == [b"aio/lease"]
            assert (await aio.time_to_live(lease)).ttl == 10.0
            assert lease.id in {each.id for each in await aio.leases()}
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_wait(lease.lost), 0.1)
        assert await aio.get("aio/lease") is None
        short = await aio.lease(1.0, keep_alive=False)
        began = time.monotonic()
        await asyncio.wait_for(_wait(short.lost), 30)
        assert time.monotonic() - began <= 1.0 + late.tolerance

    async def _wait(lost: Any) -> None:
        await lost

    asyncio.run(go())


def test_keep_alives_of_a_process_travel_together(kv: Any) -> None:
    kv.revision()
    hub = kv._share.hub
    leases = [kv.lease(10.0) for _ in range(100)]
    sent = []
    send = hub.lease_core._send_keep_alives

    def count(now: float, out: list[Any]) -> None:
        before = len(out)
        send(now, out)
        sent.extend(out[before:])

    hub.lease_core._send_keep_alives = count
    threading.Event().wait(4.0)
    del hub.lease_core._send_keep_alives
    assert not any(lease.lost.is_set() for lease in leases)
    assert len(sent) < 40
    for lease in leases:
        lease.lost.set()
