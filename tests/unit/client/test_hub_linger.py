"""A process keeps its hub for a while after the last handle, so that one task after another uses the same session."""

from __future__ import annotations

import gc
import pickle

import pytest

from clientlab.cluster import FakeCluster, connect, hub_of, serve, wait_until
from raykeeper import Client
from raykeeper.actors.client import registry
from raykeeper.actors.protocol import Close, Open
from raykeeper.limits import MAX_IDLE_HUBS


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    serve(monkeypatch, cluster)
    monkeypatch.setattr(registry, "linger", 60.0)
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
    monkeypatch.setattr(registry, "linger", 0.2)
    kv = connect()
    kv.put("k", "v")
    del kv
    gc.collect()
    wait_until(lambda: cluster.count(Close) == 1)
    assert not registry._hubs


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
    monkeypatch.setattr(registry, "linger", 0.0)  # the time of the first handle is over
    hub.wake()
    wait_until(lambda: not hub._let_go)
    again.put("k", "x")
    assert cluster.count(Open) == 1
    assert cluster.count(Close) == 0


def test_of_many_clusters_only_the_latest_hubs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = {f"c{number}": FakeCluster(f"c{number}", number) for number in range(1, MAX_IDLE_HUBS + 4)}
    serve(monkeypatch, FakeCluster())
    monkeypatch.setattr(registry, "make_transport", lambda name: clusters[name].transport(name))
    monkeypatch.setattr(registry, "linger", 60.0)
    for name in clusters:
        with connect(name) as kv:
            kv.put("k", "v")
        del kv
        gc.collect()
    wait_until(lambda: len(registry._hubs) <= MAX_IDLE_HUBS)
    closed = [each.count(Close) for each in clusters.values()]
    wait_until(lambda: sum(each.count(Close) for each in clusters.values()) == len(clusters) - MAX_IDLE_HUBS)
    assert closed[-MAX_IDLE_HUBS:] == [0] * MAX_IDLE_HUBS


def test_the_end_of_the_process_closes_an_idle_hub(cluster: FakeCluster) -> None:
    kv = connect()
    kv.put("k", "v")
    del kv
    gc.collect()
    registry._close_all()
    wait_until(lambda: cluster.count(Close) == 1)
