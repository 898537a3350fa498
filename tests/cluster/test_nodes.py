"""Members on several Ray nodes: spread, pinned, and started again where their data is."""

from __future__ import annotations

from pathlib import Path

from lab.ray.programs import PATH, run_program

PROGRAM = """
import logging, os, sys, time
import ray
from ray.cluster_utils import Cluster as RayCluster
from lab.ray.tools import leader, serving, wait_until
import raykeeper

disks, temporary = sys.argv[1:]
data_dir = "~/data"  # each node has a disk of its own
os.environ["HOME"] = os.path.join(disks, "head")
pins = ("place-a", "place-b", "place-c")
os.makedirs(os.environ["HOME"])
nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    "num_cpus": 1, "include_dashboard": False, "temp_dir": temporary, "object_store_memory": 100 * 1024 * 1024})
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
def add(pin):
    home = os.path.join(disks, pin)
    os.makedirs(home, exist_ok=True)
    return nodes.add_node(resources={pin: 1}, env_vars={"HOME": home}, **small)
places = {pin: add(pin) for pin in pins}
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
wait_until(lambda: len([n for n in ray.nodes() if n["Alive"]]) == 4)

cluster = raykeeper.launch(name="spread", data_dir=data_dir, placement=list(pins))
kv = cluster.client()
kv.put("a", "1")
where = {node["NodeID"]: pin for node in ray.nodes() for pin in pins if pin in node["Resources"]}
lived = {member.name: where[member.node_id] for member in cluster.members()}
assert lived == {"m1": "place-a", "m2": "place-b", "m3": "place-c"}, lived
print("spread")

@ray.remote(num_cpus=0)
def niceness():
    return os.getpriority(os.PRIO_PROCESS, 0)

if os.geteuid() == 0:  # who may, takes a daemon's place before the processor, where others get a worker's
    assert ray.get(niceness.remote()) == 15
    assert [os.getpriority(os.PRIO_PROCESS, member.pid) for member in cluster.members()] == [0, 0, 0]

lead = leader(cluster)
lost = where[lead.node_id]
nodes.remove_node(places[lost], allow_graceful=False)
kv.put("a", "2", timeout=60)
silent = wait_until(lambda: [m for m in cluster.members() if m.role == "silent"], 60)
assert [member.name for member in silent] == [lead.name]
print("lost")

add(lost)
wait_until(lambda: serving(cluster), 60)
assert {m.name for m in cluster.members()} == {"m1", "m2", "m3"}
assert kv.get("a").text == "2"
print("back")

cluster.shutdown()
again = raykeeper.launch(name="spread", data_dir=data_dir, placement=list(pins))
assert again.id == cluster.id
where = {node["NodeID"]: pin for node in ray.nodes() for pin in pins if pin in node["Resources"]}
assert {member.name: where[member.node_id] for member in again.members()} == lived
again.destroy()
print("done")
ray.shutdown()
nodes.shutdown()
"""


def test_members_live_where_their_data_is(tmp_path: Path, scratch: Path) -> None:
    folders = str(tmp_path / "disks"), str(scratch / "nodes")
    said = run_program("-c", PROGRAM, *folders, PYTHONPATH=PATH, RAY_worker_niceness="15")
    steps = ["spread", "lost", "back", "done"]
    assert [line for line in said.splitlines() if line in steps] == steps  # Ray has its say too
