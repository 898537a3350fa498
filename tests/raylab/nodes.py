"""Programs over a Ray of several nodes on this machine, which a test loses and adds; each in a process of its own.

A program begins with ``COMMON``: a head and four nodes with a place each, a cluster of three members that are to be
replaced after 2 s, and a Ray that notices a dead node soon.
"""

from __future__ import annotations

from pathlib import Path

from .programs import PATH, run_program

COMMON = """
import logging, os, random, signal, subprocess, sys, threading, time
import ray
from ray.cluster_utils import Cluster as RayCluster
from raykeeper.actors.outlook import look
from raykeeper.actors.seat import NAMESPACE
from raykeeper.actors.supervisor import Charge, Supervisor, lacks_pins, supervisor_name
from raylab.tools import leader, serving, wait_until
import msgspec
import raykeeper

data_dir, temporary = sys.argv[1:]
pins = ("place-a", "place-b", "place-c", "place-d", "place-e")
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    **small, "include_dashboard": False, "temp_dir": temporary, "_system_config": {
        "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}})
places = {pin: nodes.add_node(resources={pin: 1}, **small) for pin in pins[:4]}
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
wait_until(lambda: len([n for n in ray.nodes() if n["Alive"]]) == 5)

cluster = raykeeper.launch(
    name="heal", data_dir=data_dir, placement=list(pins),
    timings={"replace_after": 2.0, "election_timeout": 0.6, "heartbeat_interval": 0.1})
kv = cluster.client(timeout=60)
kv.put("a", "1")
wait_until(lambda: not lacks_pins(look("heal")), what="each member has told where it lives, and so where its data lies")

def members():
    return {m.id: m.role for m in cluster.members()}

def where(id):
    node = next(m.node_id for m in cluster.members() if m.id == id)
    return next(p for n in ray.nodes() for p in pins if n["NodeID"] == node and p in n["Resources"])

def whole(ids):
    found = members()
    return set(found) == ids and sorted(found.values()) == ["follower"] * (len(ids) - 1) + ["leader"]

def lose(id):
    pin = where(id)
    nodes.remove_node(places.pop(pin), allow_graceful=False)
    return pin

def add(pin):
    places[pin] = nodes.add_node(resources={pin: 1}, **small)

def supervisor():
    try:
        return ray.get_actor(supervisor_name("heal"), namespace=NAMESPACE)
    except ValueError:
        return None

def lines():
    try:
        return ray.get(supervisor().lines.remote(), timeout=5)
    except Exception as error:
        return [repr(error)]

def dump():
    # All that may tell why the cluster is not as it should be.
    print("supervisor:", *lines(), sep="\\n  ")
    try:
        print("it does:", ray.get(supervisor().doing.remote(), timeout=5))
    except Exception as error:
        print("it does not say what it does:", repr(error))
    print(cluster.status())
    seen = look("heal")
    print("nodes:", *sorted(pin for node in seen.nodes for pin in pins if pin in node.resources))
    print("actors", sorted(seen.actors), "of which cannot be called", sorted(seen.failed))
    for member, said in seen.statuses.items():
        print(f"m{member}: {said.role} of term {said.term}, voters {said.voters}, learners {said.learners}, "
              f"silent {said.silent}, caught up {said.caught_up}, table {said.table}, removed {said.removed}")
    listed = subprocess.run(["ps", "-eo", "pid,ppid,stat,etimes,args"], capture_output=True, text=True, timeout=20)
    ours = [line[:160] for line in listed.stdout.splitlines() if "ray::" in line or "raylet/raylet" in line]
    print(*ours, sep="\\n")

def until(condition, seconds, what):
    try:
        return wait_until(condition, seconds, what)
    except AssertionError:
        dump()
        raise

def kill_supervisor():
    try:
        os.kill(ray.get(supervisor().pid.remote(), timeout=5), signal.SIGKILL)
    except (ray.exceptions.RayError, TimeoutError, ProcessLookupError, AttributeError):
        pass  # Ray is just starting it anew

def done():
    cluster.destroy()
    assert supervisor() is None
    print("done")
    ray.shutdown()
    nodes.shutdown()
"""


def run(program: str, steps: list[str], tmp_path: Path, scratch: Path, timeout: float = 270.0) -> str:
    """Run a program that begins with ``COMMON``, and says these steps and no others; all that it said."""
    folders = str(tmp_path / "data"), str(scratch / tmp_path.name[:20])
    said = run_program("-c", COMMON + program, *folders, seconds=timeout, PYTHONPATH=PATH)
    print(said)
    assert [line for line in said.splitlines() if line in steps] == steps
    return said
