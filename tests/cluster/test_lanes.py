"""Lanes between real processes: with and without them all is the same; cut ones cost nothing but time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

import pytest
import ray

from lab.ray.load import Load
from lab.ray.tools import Made, leader, serving, wait_until
from raykeeper.actors.client import hub_pool
from raykeeper.actors.discovery import member_actors
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.lane import HELLO_BYTES, Hello, pack_hello

pytestmark = pytest.mark.survival


def transport(kv: Any) -> LaneTransport:
    """Of this process's hub."""
    found = hub_pool.open_hub(kv.cluster_name, 10.0, kv.cluster_id).hub.transport
    assert isinstance(found, LaneTransport)
    return found


def lanes_of(kv: Any) -> int:
    return len(transport(kv)._by_fd)


@pytest.mark.parametrize("lanes", [True, False], ids=["on", "off"])
def test_a_cluster_serves_with_lanes_and_without(clusters: Made, lanes: bool) -> None:
    cluster = clusters.launch(lanes=lanes)
    kv = cluster.client()
    with kv.watch("a") as watch:
        for n in range(50):
            kv.put("a", str(n))
            assert kv.get("a").text == str(n)
        seen = [watch.next(timeout=30).kv.value for _ in range(50)]
    assert seen == [str(n).encode() for n in range(50)]
    revision = kv.put("big", "x" * 1_000_000).revision
    assert len(kv.get("big", serializable=True, at_least=revision).value) == 1_000_000
    if lanes:
        wait_until(lambda: kv.put("a", "b") and lanes_of(kv) > 0, 30, "a lane is open")
        wait_until(lambda: kv.put("a", "b") and peers_have_lanes(cluster), 30, "lanes between members are open")
    else:
        assert lanes_of(kv) == 0
        assert not peers_have_lanes(cluster)


def peers_have_lanes(cluster: Any) -> bool:
    counters = [ray.get(actor.counters.remote()) for actor in member_actors(cluster.name).values()]
    return all(each.get("sent by lane") for each in counters)


def test_a_port_answers_nobody_without_the_token(clusters: Made) -> None:
    cluster = clusters.launch(members=1)
    kv = cluster.client()
    kv.put("a", "b")
    (actor,) = member_actors(cluster.name).values()
    offer = ray.get(actor.lane.remote(""))
    for hello in (pack_hello(Hello(b"?" * 16, 0, offer.cluster)), b"x" * HELLO_BYTES):
        with socket.create_connection((offer.host, offer.port), 30) as sock:
            sock.sendall(hello)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""
    assert kv.get("a").text == "b"


def test_a_port_is_opened_for_another_node_alone_and_within_the_range(clusters: Made) -> None:
    cluster = clusters.launch(lane_ports="28100-28140")
    kv = cluster.client()
    wait_until(lambda: kv.put("a", "b") and lanes_of(kv) > 0 and peers_have_lanes(cluster), 60, "lanes are open")
    here = ray.get_runtime_context().get_node_id()
    actors = member_actors(cluster.name).values()
    assert [ray.get(actor.lane.remote(here)).port for actor in actors] == [0, 0, 0]
    ports = [ray.get(actor.lane.remote("elsewhere")).port for actor in actors]
    assert len(set(ports)) == 3
    assert all(28100 <= port <= 28140 for port in ports)


def test_lanes_that_are_cut_lose_nothing_and_repeat_nothing(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    load = Load(kv)
    load.wait(20)
    route = transport(kv)
    for _ in range(5):
        wait_until(lambda: route._by_fd, 30, "a lane is open")
        for lane in list(route._by_fd.values()):
            lane.connection.shut_down(abruptly=True)
        load.wait(30)
    assert load.check()
    for n in range(20):
        kv.put("count", str(n))
    assert kv.get("count").version == 20


def test_followers_need_no_timeout_to_replace_a_leader_that_was_killed(clusters: Made) -> None:
    """With an election timeout longer than the test's patience only an early campaign can do it."""
    cluster = clusters.launch(timings={"election_timeout": 45.0, "session_ttl": 300.0, "replace_after": 300.0})
    wait_until(lambda: serving(cluster), 120)
    kv = cluster.client()
    for n in range(20):
        kv.put("a", str(n), timeout=120)
    wait_until(lambda: peers_have_lanes(cluster), 30)
    old = leader(cluster)
    os.kill(old.pid, signal.SIGKILL)
    assert kv.put("a", "b", timeout=40).revision
    assert leader(cluster).term > old.term


def test_clients_come_and_go(clusters: Made) -> None:
    cluster = clusters.launch(members=1)
    kv = cluster.client()
    kv.put("a", "b")
    (member,) = cluster.members()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{member.pid}/fd"))

    wait_until(lambda: kv.put("a", "b") and lanes_of(kv) == 1, 30)
    (actor,) = member_actors(cluster.name).values()
    assert ray.get(actor.lane.remote("")).port  # it listens from now on
    before = descriptors()
    for _ in range(2):
        offers = ray.get([actor.lane.remote("") for _ in range(50)])
        socks = []
        for offer in offers:
            sock = socket.create_connection((offer.host, offer.port), 30)
            sock.sendall(pack_hello(Hello(offer.token, 0, offer.cluster)))
            assert offer.proof in sock.recv(100)
            socks.append(sock)
        assert descriptors() >= before + 50
        for sock in socks:
            sock.close()
        wait_until(lambda: descriptors() <= before + 2, 30, "all are gone")
