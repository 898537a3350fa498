"""Ray nodes as hosts of their own, in network namespaces, and cables that are pulled: packets are lost, nothing else.

Each node is taken off the bridge that joins them, and put back. So Ray itself is cut off too, as in a real network: its
calls hang, its control store does not hear the node, and takes it for dead only much later.
"""

from __future__ import annotations

import sys

import pytest

from lab.ray.net_hosts import NetHosts

pytestmark = pytest.mark.survival


PROGRAM = """
import logging, subprocess, sys, threading, time
import ray
import raykeeper
from lab.ray.load import Load
from lab.ray.tools import leader, serving, wait_until

ray.init(address="10.77.0.1:6379", log_to_driver=False, logging_level=logging.ERROR)
pins = [f"place-{n}" for n in range(3)]
wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 4, 60)
cluster = raykeeper.launch(name="hosts", data_dir=sys.argv[1], placement=pins, timeout=120)
kv = cluster.client()
host = {member.id: member.id - 1 for member in cluster.members()}  # m1 lives at place-0

def cable(member, plugged):
    words = ["master", "br0"] if plugged else ["nomaster"]
    subprocess.run(["ip", "link", "set", f"v{host[member]}", *words], check=True)

load = Load(kv, threads=4, timeout=60)
load.wait(20)
lock = kv.lock("held", ttl=10)
lock.acquire()
for cut in ("leader", "follower", "leader"):
    lead = leader(cluster)
    target = lead.id if cut == "leader" else next(m.id for m in cluster.members() if m.id != lead.id)
    cable(target, False)
    began = time.monotonic()
    load.wait(20, 90)
    print(f"{cut} m{target} cut off: 20 writes after {time.monotonic() - began:.1f} s", flush=True)
    kv.put("x", cut, timeout=60)
    threading.Event().wait(4)
    cable(target, True)
    load.wait(20, 90)
    wait_until(lambda: serving(cluster), 90, "all serve again")
    now = leader(cluster)
    assert (now.id == lead.id) == (cut == "follower"), (cut, lead.id, now.id)
    assert cut != "follower" or now.term == lead.term
    assert kv.get("x").text == cut
print("writes:", load.check(), "longest:", round(load.longest, 1))
assert not lock.lost.is_set()
lock.guard().put("guarded", "1")
wait_until(lambda: len({m.applied_index for m in cluster.members()}) == 1, 60, "all are level")
cluster.shutdown()
print("done")
"""


def test_nodes_cut_off_the_network(hosts: NetHosts) -> None:
    said = hosts.execute(hosts.head, sys.executable, "-c", PROGRAM, str(hosts.folder / "data"))
    assert said.splitlines()[-1] == "done", said
    print(said)
