"""Proxies that the cluster runs: on which nodes, under what addresses, and how they come back and end."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

import raykeeper
from lab.ray.programs import PATH, run_program
from lab.ray.tools import is_alive, kill, leader, wait_until
from raykeeper.actors.proxy.etcdpb.auth_pb2 import AuthenticateRequest, AuthenticateResponse
from raykeeper.actors.proxy.etcdpb.cluster_pb2 import (
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
)
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, PutResponse
from raykeeper.actors.proxy.proxy_registry import PROXIES


def put(url: str, key: bytes, value: bytes) -> int:
    """The revision of a put through a proxy."""
    with grpc.insecure_channel(url.removeprefix("http://")) as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Put", PutRequest.SerializeToString, PutResponse.FromString)
        revision: int = call(PutRequest(key=key, value=value), timeout=60).header.revision
        return revision


def only(cluster: Any) -> Any:
    """The cluster's proxy, once it serves."""

    def find() -> Any:
        found = cluster.proxies()
        return found[0] if len(found) == 1 and found[0].url else None

    return wait_until(find, what=lambda: f"one proxy among {cluster.proxies()}")


def test_a_launch_starts_proxies_and_a_shutdown_ends_them(clusters: Any) -> None:
    cluster = clusters.launch(proxy="all", proxy_listen="127.0.0.1:0", supervised=True)
    [proxy] = cluster.proxies()
    assert proxy.node == ray.get_runtime_context().get_node_id()
    assert proxy.member in {1, 2, 3}
    assert (proxy.connections, proxy.why_not_serving, is_alive(proxy.pid)) == (0, "", True)
    put(proxy.url, b"a", b"1")
    assert cluster.client().get("a").raw == b"1"
    assert cluster.status().proxies == cluster.proxies()
    cluster.shutdown()
    assert not is_alive(proxy.pid)
    again = clusters.launch(supervised=True)  # its settings are with the data
    assert only(again).url != ""
    put(only(again).url, b"a", b"2")
    assert again.client().get("a").raw == b"2"


def test_a_dead_proxy_comes_back_and_a_supervisor_replaces_one_that_is_gone_for_good(clusters: Any) -> None:
    cluster = clusters.launch(proxy="one", proxy_listen="127.0.0.1:0", supervised=True)
    first = only(cluster)
    kill(first.pid)
    second = wait_until(
        lambda: next((each for each in cluster.proxies() if each.pid not in (0, first.pid) and each.url), None)
    )
    put(second.url, b"a", b"1")
    ray.kill(second.actor, no_restart=True)
    third = wait_until(
        lambda: next((each for each in cluster.proxies() if each.pid not in (0, second.pid) and each.url), None)
    )
    put(third.url, b"a", b"2")
    assert cluster.client().get("a").raw == b"2"


def test_members_may_die_and_a_proxy_serves_on(clusters: Any) -> None:
    cluster = clusters.launch(proxy="one", proxy_listen="127.0.0.1:0")
    proxy = only(cluster)
    for round in range(2):
        kill(leader(cluster).pid)
        put(proxy.url, b"a", b"%d" % round)
    member = next(each for each in cluster.members() if each.id == only(cluster).member)
    if member.pid:
        kill(member.pid)
    put(proxy.url, b"a", b"last")
    assert only(cluster).pid == proxy.pid
    item = cluster.client().get("a", timeout=60)
    assert (item.raw, item.version) == (b"last", 3)


def test_a_running_cluster_is_told_to_have_proxies_others_or_none(clusters: Any) -> None:
    cluster = clusters.launch(supervised=True)
    assert cluster.proxies() == ()
    assert clusters.launch(supervised=True, proxy="all", proxy_listen="127.0.0.1:0").id == cluster.id
    first = only(cluster)
    cluster.configure(proxy_advertise="localhost")
    second = wait_until(lambda: next((each for each in cluster.proxies() if "localhost" in each.url), None))
    assert second.pid != first.pid
    assert clusters.launch(supervised=True).proxies() != (), "a spec that asks for none leaves those that run"
    clusters.launch(supervised=True, proxy="off")
    wait_until(lambda: cluster.proxies() == ())
    wait_until(lambda: not is_alive(second.pid))


def test_a_taken_port_is_said_and_two_clusters_share_a_range(clusters: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = clusters.launch(proxy="all", proxy_listen=f"127.0.0.1:{port}", supervised=True)
        [proxy] = cluster.proxies()
        assert proxy.url == ""
        assert str(port) in proxy.why_not_serving
        assert "in use" in proxy.why_not_serving
        assert any(str(port) in alarm for alarm in cluster.status().alarms)
        last = min(port + 100, 65535)
        cluster.configure(proxy_listen=f"127.0.0.1:{port}-{last}")
        first = only(cluster)
        other = clusters.launch(
            name=f"{cluster.name}-2", proxy="all", proxy_listen=f"127.0.0.1:{port}-{last}", members=1
        )
        second = only(other)
        ports = [int(each.url.rpartition(":")[2]) for each in (first, second)]
        assert port not in ports
        assert len(set(ports)) == 2
        put(first.url, b"a", b"1")
        put(second.url, b"a", b"2")
        assert (cluster.client().get("a").raw, other.client().get("a").raw) == (b"1", b"2")


def test_a_member_is_added_through_a_proxy(clusters: Any) -> None:
    cluster = clusters.launch(proxy="one", proxy_listen="127.0.0.1:0", members=1)
    proxy = only(cluster)
    with grpc.insecure_channel(proxy.url.removeprefix("http://")) as channel:
        add = channel.unary_unary(
            "/etcdserverpb.Cluster/MemberAdd", MemberAddRequest.SerializeToString, MemberAddResponse.FromString
        )
        answer = add(MemberAddRequest(peerURLs=["http://any:1"]), timeout=120)
    assert "rocksdict" not in Path(f"/proc/{proxy.pid}/maps").read_text(), "it loads no server, whatever it does"
    assert answer.member.ID == 2
    assert [each.id for each in cluster.members()] == [1, 2]


def test_proxies_register_and_change_members_while_users_are_needed(clusters: Any) -> None:
    cluster = clusters.launch(proxy="all", proxy_listen="127.0.0.1:0", supervised=True, members=1)
    first = only(cluster)
    kv = cluster.client()
    kv.users.add("root", "secret")
    kv.users.grant_role("root", "root")
    kv.users.enable()
    ray.kill(first.actor, no_restart=True)
    second = wait_until(
        lambda: next((each for each in cluster.proxies() if each.pid not in (0, first.pid) and each.url), None)
    )
    with grpc.insecure_channel(second.url.removeprefix("http://")) as channel:

        def call(path: str, request: Any, kind: Any, **metadata: str) -> Any:
            method = channel.unary_unary(path, type(request).SerializeToString, kind.FromString)
            return method(request, timeout=120, metadata=tuple(metadata.items()))

        login = AuthenticateRequest(name="root", password="secret")
        token = call("/etcdserverpb.Auth/Authenticate", login, AuthenticateResponse).token

        def named() -> list[str]:
            ask = MemberListRequest(linearizable=True)
            listed = call("/etcdserverpb.Cluster/MemberList", ask, MemberListResponse, token=token)
            return [url for each in listed.members for url in each.clientURLs]

        root = raykeeper.connect(cluster.name, user="root", password="secret")
        entries = root.reserved(PROXIES)
        wait_until(lambda: second.url.encode() in b"".join([item.raw for item in entries.range(prefix=b"")]))
        assert wait_until(lambda: named() == [second.url], what=named)
        add = MemberAddRequest(peerURLs=["http://any:1"])
        with pytest.raises(grpc.RpcError):
            call("/etcdserverpb.Cluster/MemberAdd", add, MemberAddResponse)
        assert call("/etcdserverpb.Cluster/MemberAdd", add, MemberAddResponse, token=token).member.ID == 2


def test_an_upgrade_restarts_proxies_too(clusters: Any) -> None:
    cluster = clusters.launch(proxy="one", proxy_listen="127.0.0.1:0", members=1)
    before = only(cluster)
    cluster.upgrade()
    after = only(cluster)
    assert after.pid != before.pid
    put(after.url, b"a", b"1")


PROGRAM = """
import logging, os, signal, socket, sys, time
import ray
from ray.cluster_utils import Cluster as RayCluster
from lab.ray.etcd_load import EtcdLoad
from lab.ray.tools import kill, leader, serving, wait_until
import raykeeper

disks, temporary = sys.argv[1:]
os.environ["HOME"] = os.path.join(disks, "head")
os.makedirs(os.environ["HOME"])
pins = ("place-a", "place-b", "place-c")
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
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
    return {pin_of(each.node): each for each in cluster.proxies() if each.url}
wait_until(lambda: proxies().keys() == {"head", *pins}, what=lambda: str(cluster.proxies()))
assert len({each.url for each in proxies().values()}) == 4
def at_home():
    # On each member's node the proxy speaks for that member.
    homes = {each.node: each.id for each in cluster.members()}
    return len(homes) == 3 and homes.items() <= {each.node: each.member for each in proxies().values()}.items()
wait_until(at_home, what=lambda: str(cluster.proxies()))
print("proxies everywhere")

a, b = proxies()["place-a"], proxies()["place-b"]
load = EtcdLoad([a.url, b.url])
load.await_progress()

kill(a.pid)
load.await_progress()
def restarted():
    found = proxies().get("place-a")
    return found is not None and found.pid != a.pid
wait_until(restarted, what=lambda: str(cluster.proxies()))
assert proxies()["place-a"].url == a.url
load.await_progress()
print("a proxy died")

kill(leader(cluster).pid)
load.await_progress()
wait_until(lambda: serving(cluster))
print("the leader died")

spoken_for = proxies()["place-b"].member
kill(next(each.pid for each in cluster.members() if each.id == spoken_for))
load.await_progress()
wait_until(lambda: serving(cluster))
print("a member that a proxy speaks for died")

nodes.remove_node(places["place-a"], allow_graceful=False)
load.await_progress()
wait_until(lambda: proxies().keys() == {"head", "place-b", "place-c"}, what=lambda: str(cluster.proxies()))
load.await_progress()
print("a node was lost")

add("place-a")
wait_until(lambda: "place-a" in proxies() and serving(cluster), what=lambda: str(cluster.status()))
load.await_progress()
print("a node joined")

load.finish()
print("nothing lost, nothing twice", len(load.acknowledged), len(load.unknown), load.watch_breaks)
print("its books are right")
cluster.shutdown()
assert not [each for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == "raykeeper"]
print("done")
ray.shutdown()
nodes.shutdown()
"""


def test_a_client_with_two_endpoints_survives_proxies_nodes_and_members(tmp_path: Path, scratch: Path) -> None:
    folders = str(tmp_path / "disks"), str(scratch / "nodes")
    said = run_program("-c", PROGRAM, *folders, PYTHONPATH=PATH)
    steps = [
        "proxies everywhere",
        "a proxy died",
        "the leader died",
        "a member that a proxy speaks for died",
        "a node was lost",
        "a node joined",
        "its books are right",
        "done",
    ]
    assert [line for line in said.splitlines() if line in steps] == steps  # Ray has its say too
