"""A process keeps its hub for a while after the last handle, so that one task after another uses the same session."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.client.cluster import FakeCluster, connect, hub_of, serve, wait_until
from lab.patience import PATIENCE
from raykeeper import Client, KeeperError
from raykeeper.actors.client import hub_pool
from raykeeper.limits import MAX_IDLE_HUBS
from raykeeper.schema.frames import Close, Open


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    serve(monkeypatch, cluster)
    monkeypatch.setattr(hub_pool, "linger", 60.0)
    return cluster


def task(pickled: bytes) -> int:
    """What a Ray task does on a warm worker: it gets a handle, uses it, and forgets it."""
    kv: Client = pickle.loads(pickled)
    return kv.put("k", "v").revision


def test_tasks_on_a_warm_worker_share_one_session_and_one_transport(cluster: FakeCluster) -> None:
    with connect() as kv:
        pickled = pickle.dumps(kv)
    for _ in range(20):
        task(pickled)
        gc.collect()
    assert cluster.count(Open) == 1
    assert cluster.count(Close) == 0
    assert cluster.transports == 1


def test_tasks_that_connect_by_name_share_them_too(cluster: FakeCluster) -> None:
    for _ in range(20):
        with connect() as kv:
            kv.put("k", "v")
        del kv
        gc.collect()
    assert cluster.count(Open) == 1
    assert cluster.transports == 1


def test_an_idle_hub_goes_when_its_time_is_over(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_pool, "linger", 0.2)
    kv = connect()
    kv.put("k", "v")
    del kv
    gc.collect()
    wait_until(lambda: cluster.count(Close) == 1)
    assert not hub_pool._hubs


def test_a_hub_that_is_used_again_in_time_stays(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = connect()
    kv.put("k", "v")
    hub = hub_of(kv)
    pickled = pickle.dumps(kv)
    del kv
    gc.collect()
    again: Client = pickle.loads(pickled)
    again.put("k", "w")
    assert hub_of(again) is hub
    monkeypatch.setattr(hub_pool, "linger", 0.0)  # the time of the first handle is over
    hub.wake()
    wait_until(lambda: not hub._unused)
    again.put("k", "x")
    assert cluster.count(Open) == 1
    assert cluster.count(Close) == 0


def test_of_many_clusters_only_the_latest_hubs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = {f"c{number}": FakeCluster(f"c{number}", number) for number in range(1, MAX_IDLE_HUBS + 4)}
    serve(monkeypatch, FakeCluster())
    monkeypatch.setattr(hub_pool, "make_transport", lambda name: clusters[name].transport(name))
    monkeypatch.setattr(hub_pool, "linger", 60.0)
    for name in clusters:
        with connect(name) as kv:
            kv.put("k", "v")
        del kv
        gc.collect()
    wait_until(lambda: len(hub_pool._hubs) <= MAX_IDLE_HUBS)
    closed = [each.count(Close) for each in clusters.values()]
    wait_until(lambda: sum(each.count(Close) for each in clusters.values()) == len(clusters) - MAX_IDLE_HUBS)
    assert closed[-MAX_IDLE_HUBS:] == [0] * MAX_IDLE_HUBS


def test_the_end_of_the_process_closes_an_idle_hub(cluster: FakeCluster) -> None:
    kv = connect()
    kv.put("k", "v")
    del kv
    gc.collect()
    hub_pool._close_all()
    wait_until(lambda: cluster.count(Close) == 1)


def test_a_hundred_threads_of_a_fresh_process_open_one_hub(cluster: FakeCluster) -> None:
    """Each would else ask all members, and open lanes to them: a storm, if a job's processes begin together."""
    with connect() as kv:
        pickled = pickle.dumps(kv)
    hub_pool._close_all()
    cluster.transports = 0
    begin = threading.Barrier(100)

    def put() -> int:
        mine: Client = pickle.loads(pickled)
        begin.wait(PATIENCE)
        return mine.put("k", "v").revision

    with ThreadPoolExecutor(100) as threads:
        revisions = [each.result() for each in [threads.submit(put) for _ in range(100)]]
    assert len(set(revisions)) == 100
    assert cluster.transports == 1
    assert cluster.count(Open) <= 2  # and one of the handle that was pickled


def test_a_hundred_coroutines_of_a_fresh_process_open_one_hub(cluster: FakeCluster) -> None:
    with connect() as kv:
        pickled = pickle.dumps(kv)
    hub_pool._close_all()
    cluster.transports = 0

    async def main() -> None:
        mine: Client = pickle.loads(pickled)
        await asyncio.gather(*(mine.aio.put(f"k{number}", "v") for number in range(100)))

    asyncio.run(main())
    assert cluster.transports == 1


def test_whoever_waits_for_another_to_connect_waits_no_longer_than_it_may(cluster: FakeCluster) -> None:
    cluster.broken = {1, 2, 3}
    found: list[hub_pool.HubShare] = []
    patient = threading.Thread(target=lambda: found.append(hub_pool.open_hub("test", 60.0)))
    patient.start()

    def try_to(timeout: float) -> None:
        with pytest.raises(KeeperError) as raised:
            hub_pool.open_hub("test", timeout)
        assert raised.value.applied is False

    with ThreadPoolExecutor(20) as threads:
        for each in [threads.submit(try_to, 0.1) for _ in range(20)]:
            each.result()
    assert patient.is_alive(), "nobody had to wait for it"
    cluster.broken = set()
    share = hub_pool.open_hub("test", 60.0)
    patient.join()
    assert found[0].hub is share.hub
