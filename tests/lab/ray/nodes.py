"""Programs over a Ray of several nodes on this machine, which a test loses and adds; each in a process of its own.

A program begins with ``COMMON``: a head and four nodes with a place each, a cluster of three members that are to be
replaced after 2 s, and a Ray that notices a dead node soon. A place is a resource that stands for a host's address; a
node has a disk of its own (its home), which it keeps when it comes back, in the same place or another one.
"""

from __future__ import annotations

from pathlib import Path

from lab.ray.programs import PATH, run_program

COMMON = """
import logging, os, random, signal, subprocess, sys, threading, time
import ray
from ray.cluster_utils import Cluster as RayCluster
from raykeeper.actors.cluster.observe import observe_cluster
from raykeeper.actors.naming import NAMESPACE
from raykeeper.actors.cluster.supervisor import Supervisor
from raykeeper.actors.cluster.supervisor_handle import supervisor_name
from raykeeper.actors.cluster.supervisor_spec import SupervisorSpec
from raykeeper.actors.cluster.failure_tracker import lacks_pins
from lab.ray.tools import leader, serving, wait_until
import msgspec
import raykeeper
REPLACE_AFTER = float(os.environ.get("REPLACE_AFTER", "2"))

disks, temporary = sys.argv[1:]
os.environ["HOME"] = os.path.join(disks, "head")
os.makedirs(os.environ["HOME"])
data_dir = "~/data"
pins = ("place-a", "place-b", "place-c", "place-d", "place-e", "place-f", "place-g")
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    **small, "include_dashboard": False, "temp_dir": temporary, "_system_config": {
        "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}})
places = {}

def home(pin):
    return os.path.join(disks, pin)

def add(pin, disk=None):
    # A node in that place, with its own disk, with one that was taken out, or with a new one.
    if disk or os.path.exists(home(pin) + "-out"):
        os.rename(disk or home(pin) + "-out", home(pin))
    os.makedirs(home(pin), exist_ok=True)
    places[pin] = nodes.add_node(resources={pin: 1}, env_vars={"HOME": home(pin)}, **small)

for pin in pins[:4]:
    add(pin)
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
wait_until(lambda: len([n for n in ray.nodes() if n["Alive"]]) == 5)

cluster = raykeeper.launch(
    name="heal", data_dir=data_dir, placement=list(pins),
    timings={"replace_after": REPLACE_AFTER, "election_timeout": 0.6, "heartbeat_interval": 0.1})
kv = cluster.client(timeout=60)
kv.put("a", "1")
wait_until(lambda: not lacks_pins(observe_cluster("heal")), what="each member has told where it lives")

def members():
    return {m.id: m.role for m in cluster.members()}

def where(id):
    node = next(m.node_id for m in cluster.members() if m.id == id)
    return next(p for n in ray.nodes() for p in pins if n["NodeID"] == node and p in n["Resources"])

def whole(ids):
    found = members()
    return set(found) == ids and sorted(found.values()) == ["follower"] * (len(ids) - 1) + ["leader"]

def lose(id):
    # Its disk is to be seen no more, as that of a host is that is gone; it lies in home(pin) + "-out".
    pin = where(id)
    nodes.remove_node(places.pop(pin), allow_graceful=False)
    os.rename(home(pin), home(pin) + "-out")
    return pin

def folder_of(pin, id):
    return os.path.join(home(pin), "data", "heal", f"m{id}")

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
        print("it does:", ray.get(supervisor().activity.remote(), timeout=5))
    except Exception as error:
        print("it does not say what it does:", repr(error))
    print(cluster.status())
    seen = observe_cluster("heal")
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
        pass  # Ray is just restarting it

def done():
    cluster.destroy()
    assert supervisor() is None
    print("done")
    ray.shutdown()
    nodes.shutdown()
"""


def run(
    program: str, steps: list[str], tmp_path: Path, scratch: Path, timeout: float = 270.0, replace_after: float = 2.0
) -> str:
    """Run a program that begins with ``COMMON``, and says these steps and no others; all that it said."""
    folders = str(tmp_path / "disks"), str(scratch / tmp_path.name[:20])
    more = {"PYTHONPATH": PATH, "REPLACE_AFTER": str(replace_after)}
    said = run_program("-c", COMMON + program, *folders, seconds=timeout, **more)
    print(said)
    assert [line for line in said.splitlines() if line in steps] == steps
    return said
