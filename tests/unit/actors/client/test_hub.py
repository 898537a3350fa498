"""The hub of a process: shared, freed with its last handle, not inherited by children, quiet when idle."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import pytest

from lab.client.cluster import FakeCluster, connect, hub_of, serve, wait_until
from lab.patience import PATIENCE, failure
from raykeeper import ClusterNotFound, KeeperError, Unavailable
from raykeeper.actors.client import hub_pool
from raykeeper.actors.transport import client_actor, directory
from raykeeper.schema.frames import Close, Open


def test_all_handles_share_one_hub_and_one_session(cluster: FakeCluster) -> None:
    a, b = connect(), connect().namespace("n/")
    assert hub_of(a) is hub_of(b)
    a.put("k", "v")
    b.put("k", "v")
    assert cluster.count(Open) == 1
    assert cluster.transports == 1, "connect asks again what the cluster's id is, on the way that there is"


def test_the_hub_goes_with_the_last_handle_and_closes_its_session(cluster: FakeCluster) -> None:
    a = connect()
    b = a.namespace("n/")
    a.put("k", "v")
    hub = weakref.ref(hub_of(a))
    a.close()
    b.put("k", "v")
    assert cluster.count(Close) == 0
    del b
    gc.collect()
    wait_until(lambda: cluster.count(Close) == 1)
    wait_until(lambda: gc.collect() >= 0 and hub() is None)
    with connect() as c:
        c.put("k", "v")
        assert cluster.count(Open) == 2


def test_two_clusters_have_two_hubs(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    a = connect()
    other = FakeCluster(cluster=0x99)
    monkeypatch.setattr(hub_pool, "make_transport", other.transport)
    cluster.name = "other"  # no cluster has the old name now
    cluster.members = {}
    b = connect()
    cluster.members = other.members
    assert hub_of(a) is not hub_of(b)
    assert (a.cluster_id, b.cluster_id) == (0x77, 0x99)
    a.put("k", "old")
    b.put("k", "new")
    assert a.get("k").value == b"old"  # type: ignore[union-attr]


def test_an_idle_hub_without_a_session_never_wakes(cluster: FakeCluster) -> None:
    kv = connect()
    kv.get("k")
    hub = hub_of(kv)
    wait_until(lambda: hub._timer.wakes_at in (float("inf"), float("-inf")) or hub._dispatch_core.next_wakeup() is None)
    wait_until(lambda: hub._dispatch_core.next_wakeup() is None)


def test_a_thousand_threads(cluster: FakeCluster) -> None:
    kv = connect(timeout=60.0)
    errors: list[KeeperError] = []

    def work(i: int) -> None:
        try:
            kv.put(f"k{i}", "v")
            assert kv.get(f"k{i}") is not None
        except KeeperError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert kv.range(prefix="", count_only=True).count == 1000


def test_an_interrupt_gives_the_call_up(cluster: FakeCluster) -> None:
    kv = connect(timeout=PATIENCE)
    kv.put("k", "v")
    cluster.gate.clear()
    main = threading.get_ident()

    def interrupt() -> None:
        wait_until(lambda: hub_of(kv)._dispatch_core.pending == 1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            kv.put("k", "w")
    finally:
        thread.join()
        cluster.gate.set()
    assert hub_of(kv)._dispatch_core.pending == 0
    kv.put("k", "x")


def test_members_are_looked_up_again_while_nobody_answers(cluster: FakeCluster) -> None:
    kv = connect()
    kv.put("k", "v")
    cluster.broken = {1, 2, 3}
    done = threading.Event()

    def put() -> None:
        kv.put("k", "w", timeout=PATIENCE)
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    wait_until(lambda: cluster.refreshes > 0)
    cluster.members = {4: "m4"}
    cluster.broken, cluster.leader = set(), 4
    thread.join(PATIENCE)
    assert done.is_set()


def test_a_cluster_that_was_out_of_sight_is_found_again(cluster: FakeCluster) -> None:
    """As when a process leaves Ray and joins it again."""
    kv = connect()
    kv.put("k", "v")
    members, cluster.members = cluster.members, {}
    cluster.broken = {1, 2, 3}
    failure(lambda: kv.put("k", "w", timeout=0.5), Unavailable, "no member")
    cluster.members, cluster.broken = members, set()
    kv.put("k", "x", timeout=PATIENCE)


def test_a_hub_whose_process_left_ray_joins_none_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(client_actor, "join_ray", lambda: joined.append(True))
    monkeypatch.setattr(directory, "member_actors", lambda name: {1: None})
    monkeypatch.setattr(client_actor, "in_time", lambda call: "here")
    transport = client_actor.ActorTransport("test")
    transport.refresh()
    assert joined == [True]
    assert transport.members() == {1: "m1"}
    told: list[bytes | Exception] = []
    transport.send(1, b"", told.append)
    wait_until(lambda: told)
    assert isinstance(told[0], ClusterNotFound)
    with pytest.raises(LookupError):
        transport.send(2, b"", lambda reply: None)


def test_closing_at_exit_ends_open_calls(cluster: FakeCluster) -> None:
    kv = connect(timeout=PATIENCE)
    kv.put("k", "v")
    cluster.gate.clear()
    outcome: list[KeeperError] = []

    def put() -> None:
        try:
            kv.put("k", "w")
        except KeeperError as error:
            outcome.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    wait_until(lambda: hub_of(kv)._dispatch_core.pending == 1)
    hub_pool._close_all()
    thread.join(PATIENCE)
    assert outcome[0].applied is None
    cluster.gate.set()


def test_a_forked_child_has_a_hub_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    serve(monkeypatch, cluster)
    kv = connect()
    kv.put("k", "parent")
    parents = hub_of(kv)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # nothing else would end it if it hangs
            hub_pool.make_transport = FakeCluster().transport  # the parent's threads are not here
            kv.put("k", "child")
            found = kv.get("k")
            fresh = hub_of(kv) is not parents and found is not None and found.version == 1
            os.write(write, b"yes" if fresh else b"no")
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 1000)
    os.close(read)
    os.waitpid(child, 0)
    assert said == b"yes"
    kv.put("k", "parent again")
    assert hub_of(kv) is parents
