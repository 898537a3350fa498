"""Clients of etcd, unmodified, at two proxies of a cluster in which leaders, members, proxies and nodes die.

What they do, and what is checked, is in ``lab/ray/client_workers.py``.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lab.etcd_clients import Command, api3, etcdctl_program
from lab.ray.client_workers import GONE, REFUSED, UNKNOWN, ClientWorkers, history
from lab.ray.programs import PATH, run_program
from lab.ray.proxies import Proxies
from lab.ray.tools import kill, leader
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import RangeRequest, RangeResponse

pytestmark = pytest.mark.survival


@pytest.fixture
def proxies(clusters: Any) -> Iterator[tuple[Any, Proxies]]:
    cluster = clusters.launch()
    made = Proxies(cluster)
    yield cluster, made
    made.end()


def spoken_for(cluster: Any, endpoint: str) -> int:
    """The process of the member that a proxy names in its answers."""
    with grpc.insecure_channel(endpoint) as channel:
        ask = channel.unary_unary("/etcdserverpb.KV/Range", RangeRequest.SerializeToString, RangeResponse.FromString)
        member = ask(RangeRequest(key=b"a"), timeout=60).header.member_id
    return next(each.pid for each in cluster.members() if each.id == member)


def test_nothing_is_lost_or_done_twice_whoever_dies(proxies: tuple[Any, Proxies]) -> None:
    cluster, made = proxies
    endpoints = [made.start(), made.start()]
    etcdctl = Command([etcdctl_program("3.5"), f"--endpoints={','.join(endpoints)}"], endpoints[0], api3())
    watching = etcdctl.start("watch", "", "--prefix", "--rev=1", "-w", "json")
    clients = ClientWorkers(cluster, endpoints)
    try:
        clients.await_progress()
        kill(leader(cluster).pid)
        clients.await_progress()
        for endpoint in endpoints:
            kill(spoken_for(cluster, endpoint))
            clients.await_progress()
        clients.check_errors(*UNKNOWN)
        for number in (signal.SIGKILL, signal.SIGTERM):
            for endpoint in endpoints:
                made.kill(endpoint, number)
                clients.await_progress()
                assert made.start(endpoint) == endpoint
                clients.await_progress()
        clients.finish()
        truth = history(cluster)
        seen: list[int] = []
        while not seen or seen[-1] < truth[-1][0]:
            events = json.loads(watching.line()).get("Events", ())
            seen += [each["kv"]["mod_revision"] for each in events]
    finally:
        watching.end()
        clients.end()
    assert seen == [revision for revision, _, _ in truth], "one watch of all keys has seen all, once"
    clients.check(truth)
    clients.check_errors(*UNKNOWN, *GONE, *REFUSED)
    if clients.missing:
        pytest.skip("; ".join(clients.missing))


PROGRAM = """
import logging, os, socket, sys
import ray
from ray.cluster_utils import Cluster as RayCluster
from lab.ray.client_workers import GONE, REFUSED, UNKNOWN, ClientWorkers, history
from lab.ray.tools import wait_until
import raykeeper

disks, temporary = sys.argv[1:]
pins = ("place-a", "place-b", "place-c")
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
os.environ["HOME"] = os.path.join(disks, "head")
os.makedirs(os.environ["HOME"])
nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    **small, "include_dashboard": False, "temp_dir": temporary})
def add(pin):
    home = os.path.join(disks, pin)
    os.makedirs(home, exist_ok=True)
    return nodes.add_node(resources={pin: 1}, env_vars={"HOME": home}, **small)
places = {pin: add(pin) for pin in pins}
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
wait_until(lambda: len([n for n in ray.nodes() if n["Alive"]]) == 4)
with socket.create_server(("127.0.0.1", 0)) as probe:
    first = min(probe.getsockname()[1], 60000)
cluster = raykeeper.launch(name="nodes", data_dir="~/data", placement=list(pins), proxy="all",
                           proxy_listen=f"127.0.0.1:{first}-{first + 50}")
def pin_of(node):
    return next((pin for n in ray.nodes() if n["NodeID"] == node for pin in pins if pin in n["Resources"]), "head")
def proxies():
    return {pin_of(each.node): each.url.removeprefix("http://") for each in cluster.proxies() if each.url}
wait_until(lambda: proxies().keys() >= set(pins), what=lambda: str(cluster.proxies()))
there = proxies()
clients = ClientWorkers(cluster, [there["place-a"], there["place-b"]])
try:
    clients.await_progress()
    for pin in ("place-a", "place-b"):
        nodes.remove_node(places[pin], allow_graceful=False)
        clients.await_progress(members=2)
        print(f"{pin} was lost")
        places[pin] = add(pin)
        wait_until(lambda: proxies().get(pin) == there[pin], 180, lambda: str(cluster.proxies()))
        clients.await_progress()
        print(f"{pin} is there again")
    clients.finish()
    truth = history(cluster)
finally:
    clients.end()
clients.check(truth)
clients.check_errors(*UNKNOWN, *GONE, *REFUSED)
print("their books are right", *clients.missing)
cluster.shutdown()
ray.shutdown()
nodes.shutdown()
"""


def test_nothing_is_lost_or_done_twice_when_nodes_are_lost(tmp_path: Path, scratch: Path) -> None:
    """With a node go its Ray, its member, and the proxy that half of the clients use."""
    said = run_program("-c", PROGRAM, str(tmp_path / "disks"), str(scratch / "nodes"), seconds=900, PYTHONPATH=PATH)
    lines = [line for line in said.splitlines() if line.startswith(("place-", "their books"))]
    assert lines[:4] == [f"place-{each} {what}" for each in "ab" for what in ("was lost", "is there again")]
    assert lines[4].startswith("their books are right")
    if missing := lines[4].removeprefix("their books are right").strip():
        pytest.skip(missing)
