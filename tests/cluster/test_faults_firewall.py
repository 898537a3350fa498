"""A real packet filter between the nodes of a real Ray cluster, before the ports for lanes: calls go by Ray meanwhile.

Each node is a network namespace, and nftables filters what comes to it: packets are swallowed, or refused. Lanes that
are open are cut off as well, since the filter looks at every packet.
"""

from __future__ import annotations

import sys

import pytest

from lab.ray.net_hosts import NetHosts, why_no_filter, why_not

pytestmark = pytest.mark.survival


@pytest.fixture
def packet_filter() -> None:
    """The test is skipped where the machine has none. To be asked for before the hosts that it is for."""
    reason = why_not() or why_no_filter()
    if reason:
        pytest.skip(reason)


PROGRAM = """
import logging, os, re, subprocess, sys, threading, time
import ray
import raykeeper
from lab.patience import PATIENCE
from lab.ray.load import Load
from lab.ray.net_hosts import wall_down, wall_up
from lab.ray.tools import leader, serving, wait_until
from raykeeper.actors.client import hub_pool
from raykeeper.actors.discovery import member_actors
from raykeeper.limits import LANE_MAX_PAUSE_S, LANE_UNREACHABLE_ATTEMPTS, LANE_UNREACHABLE_PAUSE_S

data, temporary, verdict, *hosts = sys.argv[1:]
PORTS = "28100-28109"
LONG = 3 * PATIENCE
said_here = []

class Said(logging.Handler):
    def emit(self, record):
        said_here.append(record.getMessage())

logging.getLogger("raykeeper").addHandler(Said())
ray.init(address="10.77.0.1:6379", log_to_driver=False, logging_level=logging.ERROR)
pins = [f"place-{n}" for n in range(3)]
wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 4, LONG)
cluster = raykeeper.launch(name="walled", data_dir=data, placement=pins, timeout=120, lane_ports=PORTS)
kv = cluster.client(timeout=LONG)
ids = {member.id for member in cluster.members()}
actors = member_actors("walled")
lanes = hub_pool.open_hub("walled", 10.0, kv.cluster_id).hub.transport
logs = os.path.join(temporary, "session_latest", "logs")

def lines(member, text):
    with open(os.path.join(logs, f"raykeeper-walled-m{member}.log")) as file:
        return [line for line in file if text in line]

def open_to(host):
    return host.member._loop.transport.with_lane()

def pauses(host):
    # By peer: attempts in a row that led nowhere, and the seconds until the next one.
    links = host.member._loop.transport._lanes
    return {to: (link.retry._unreachable, link.retry.not_before - links._clock()) for to, link in links._routes.items()}

def asked(what, *arguments):
    found = {id: actor.__ray_call__.remote(what, *arguments) for id, actor in actors.items()}
    return {id: ray.get(reference, timeout=LONG) for id, reference in found.items()}

def wanted():
    # To whom each member keeps a lane: to all others, though followers say nothing to each other.
    return {id: ids - {id} for id in ids}

def all_open():
    found = asked(open_to)
    return all(set(found[id]) >= to for id, to in wanted().items()) and lanes._by_fd

def walled():
    return {member.id: set(member.without_lane) for member in cluster.members()}

def all_walled():
    found = walled()
    return all(found[id] >= to for id, to in wanted().items())

load = Load(kv, threads=4, timeout=LONG)
load.wait(50, LONG)
wait_until(all_open, LONG, lambda: str(asked(open_to)))
print("lanes are open", flush=True)
assert not any(walled().values())
for host in hosts:
    subprocess.run(wall_up(host, PORTS, verdict), check=True)
began = time.monotonic()
load.wait(50, LONG)
print(f"{verdict}: 50 writes after {time.monotonic() - began:.1f} s", flush=True)
wait_until(all_walled, LONG, lambda: str(walled()))
wait_until(lambda: not lanes._by_fd, LONG, "the client has no lane")
print(f"said after {time.monotonic() - began:.1f} s", flush=True)
command = [sys.executable, "-m", "raykeeper", "status", "--cluster", "walled", "--address", "10.77.0.1:6379"]
shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
assert len(re.findall("by actor calls to m", shown)) == 3, shown

# Pauses grow beyond those after any other failure, though attempts go on.
def grown():
    found = asked(pauses)
    return all(found[id][to][0] > LANE_UNREACHABLE_ATTEMPTS + 2 for id, peers in wanted().items() for to in peers)
wait_until(grown, LONG, lambda: str(asked(pauses)))
most = 0.0
def long_pause():
    global most
    most = max(most, *(pause for each in asked(pauses).values() for _, pause in each.values()))
    return most > 2 * LANE_MAX_PAUSE_S
wait_until(long_pause, LONG, lambda: str(asked(pauses)))
assert most <= LANE_UNREACHABLE_PAUSE_S
print(f"pauses of {most:.0f} s after {time.monotonic() - began:.1f} s", flush=True)
for id, peers in wanted().items():
    for peer in ids - {id}:
        told = lines(id, f"no lane to m{peer}:")
        assert len(told) == 1 or (peer not in peers and not told), told
told = [line for line in said_here if "no lane to member" in line]
assert len(told) == len(set(told)) <= len(ids), told
load.wait(50, LONG)

# One that would not try again for minutes does so as soon as its peer has come through.
def tire(host, peer):
    links, done = host.member._loop.transport._lanes, threading.Event()
    def change():
        links._routes[peer].retry.not_before = links._clock() + LANE_UNREACHABLE_PAUSE_S
        done.set()
    links._hand_over(change)
    return done.wait(PATIENCE)
one = leader(cluster).id
other = min(ids - {one})
opened, told = ({id: len(lines(id, text)) for id in ids} for text in ("is open", "no lane to"))
assert ray.get(actors[one].__ray_call__.remote(tire, other), timeout=LONG)
for host in hosts:
    subprocess.run(wall_down(host), check=True)
began = time.monotonic()
wait_until(all_open, LONG, lambda: str(asked(open_to)))
print(f"lanes are back after {time.monotonic() - began:.1f} s", flush=True)
wait_until(lambda: not any(walled().values()), LONG, lambda: str(walled()))
for id in ids:
    assert len(lines(id, "is open")) > opened[id]
    assert len(lines(id, "no lane to")) == told[id], "nothing more was said"
load.wait(50, LONG)
print("writes:", load.check(), "longest:", round(load.longest, 1))
assert not load.errors, load.errors[:3]
wait_until(lambda: serving(cluster), LONG, "all serve")
cluster.shutdown()
print("done")
"""


@pytest.mark.parametrize("verdict", ["drop", "reject", "reject with tcp reset"])
def test_a_firewall_before_the_lanes(packet_filter: None, hosts: NetHosts, verdict: str) -> None:
    where = str(hosts.folder / "data"), str(hosts.folder / "ray")
    said = hosts.execute(hosts.head, sys.executable, "-c", PROGRAM, *where, verdict, *hosts.nodes, seconds=500.0)
    print(said)
    assert said.splitlines()[-1] == "done", said
