"""Metrics of a real cluster: of all members at one proxy, and in Ray's own.

Ray exports metrics only where it was installed as ``ray[default]``; elsewhere the second test is skipped.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from lab.http2.http_client import request
from lab.ray.programs import run_program
from lab.ray.tools import Made, wait_until

EXPORTS = all(importlib.util.find_spec(name) for name in ("opencensus", "aiohttp", "aiohttp_cors"))


def test_all_members_at_one_proxy(clusters: Made) -> None:
    cluster = clusters.launch(proxy="one", proxy_listen="127.0.0.1:0")
    cluster.client(timeout=60).put("k", "v")
    wait_until(lambda: [each for each in cluster.proxies() if each.url], what="a proxy")
    endpoint = next(each.url for each in cluster.proxies() if each.url).rpartition("/")[2]

    def figures(name: str) -> dict[str, float]:
        text = request(endpoint, "GET", "/metrics?members").body.decode()
        return {member: float(value) for member, value in re.findall(rf'^{name}{{member="(m\d)"}} (\S+)$', text, re.M)}

    def puts_are_everywhere() -> bool:
        puts = figures("etcd_mvcc_put_total")  # the proxy's registration is one, too
        return set(puts) == {"m1", "m2", "m3"} and len(set(puts.values())) == 1 and puts["m1"] >= 1

    wait_until(puts_are_everywhere, what="the put everywhere")
    assert sum(figures("etcd_server_is_leader").values()) == 1
    assert figures("raykeeper_member_up") == dict.fromkeys(("m1", "m2", "m3"), 1.0)
    assert all(check.ok for check in cluster.health())
    leader = cluster.status().leader
    text = request(endpoint, "GET", "/metrics?members").body.decode()
    peers = set(
        re.findall(rf'^etcd_network_peer_round_trip_time_seconds_count{{To="(\d)",member="m{leader}"}}', text, re.M)
    )
    assert peers == {"1", "2", "3"} - {str(leader)}


PROGRAM = """
import sys, time, urllib.request
import ray
import raykeeper

folder, temporary, port = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024 * 1024,
         _temp_dir=temporary, _metrics_export_port=int(port))
cluster = raykeeper.launch(name="jobs", data_dir=folder)
cluster.client(timeout=60).put("k", "v")
wanted = {f'cluster="jobs",member="{name}"' for name in ("m1", "m2", "m3", "supervisor")}
until = time.monotonic() + 120
while wanted:
    assert time.monotonic() < until, wanted
    time.sleep(0.5)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except OSError:
        continue
    shown = [line for line in text.splitlines()
             if line.startswith(("ray_etcd_server_has_leader{", "ray_raykeeper_supervisor_obstacles{"))]
    wanted = {each for each in wanted if not any(each in line for line in shown)}
cluster.shutdown()
ray.shutdown()
print("done")
"""


@pytest.mark.skipif(not EXPORTS, reason="Ray exports no metrics: it was not installed as ray[default]")
def test_figures_appear_where_ray_exports_its_own(tmp_path: Path, scratch: Path) -> None:
    from lab.etcd import free_ports

    assert "done" in run_program(
        "-c", PROGRAM, str(tmp_path / "data"), str(scratch / "exported"), str(free_ports(1)[0])
    )
