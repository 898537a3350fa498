"""Hosts that are away, that come back, that were away while a cluster was destroyed, and one without the package.

Each Ray node has an address, a home, and so a disk of its own. A cluster is never lost to a new, empty one of its name.
"""

from __future__ import annotations

from pathlib import Path

from lab.ray.programs import PATH, run_program

PROGRAM = """
import glob, logging, os, subprocess, sys, time
import ray
from ray.cluster_utils import Cluster as RayCluster
from raykeeper.actors.discovery import listed_actors
from lab.ray.tools import serving, wait_until
import raykeeper

folder, temporary = sys.argv[1:]
data_dir = "~/data"

def node(last, **more):
    home = f"{folder}/{last}"
    os.makedirs(home, exist_ok=True)
    return {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024, "node_ip_address": f"127.0.0.{last}",
            "env_vars": {"HOME": home, **more}}

nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    **node(9), "include_dashboard": False, "temp_dir": temporary, "_system_config": {
        "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}})
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.9")
workers = {}

def alive():
    return sorted(n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"])

def join(*lasts, **more):
    for last in lasts:
        workers[last] = nodes.add_node(**node(last, **more))
    wait_until(lambda: len(alive()) == len(workers) + 1)

def lose(*lasts):
    for last in lasts:
        nodes.remove_node(workers.pop(last), allow_graceful=False)
    wait_until(lambda: len(alive()) == len(workers) + 1)

def disk(last):
    return sorted(os.path.basename(path) for path in glob.glob(f"{folder}/{last}/data/jobs/[cm]*[!k]"))

def launch(**fields):
    return raykeeper.launch(**{"name": "jobs", "data_dir": data_dir, "timeout": 120, **fields})

def refused(call, *arguments, **fields):
    try:
        call(*arguments, **fields)
    except raykeeper.KeeperError as error:
        assert "\\n" not in str(error), error
        return error
    raise AssertionError(f"{call} was not refused")
"""

LOST = """
join(2, 3, 4)
one = launch()
one.client(timeout=60).put("precious", "data")
mark = f"cluster-{one.id:x}.json"
assert disk(9) == [mark], disk(9)
assert [disk(last) for last in (2, 3, 4)] == [[mark, "m1"], [mark, "m2"], [mark, "m3"]]
assert one.status().alarms == (), one.status()
print("made")

lose(2, 3, 4)
for bootstrap in ("auto", "never"):
    error = refused(launch, bootstrap=bootstrap)
    assert isinstance(error, raykeeper.MembersMissing), repr(error)
    for part in ("m1 (last at node:127.0.0.2, in", "m3 (last at node:127.0.0.4, in", "a marker on 127.0.0.9",
                 "m1, m2, m3, supervisor", f"raykeeper down --cluster jobs --destroy --id {one.id:x} --data-dir"):
        assert part in str(error), (part, error)
assert disk(9) == [mark]
print("refused")

join(2, 3, 4)
back = launch()
assert back.id == one.id
assert back.client(timeout=60).get("precious").text == "data"
print("back")

lose(4)
wait_until(lambda: back.client(timeout=60).get("precious"))
back.destroy()
assert listed_actors("jobs") == []
two = launch()
assert two.id != one.id
kv = two.client(timeout=60)
assert kv.get("precious") is None
kv.put("b", "2")
new = f"cluster-{two.id:x}.json"
join(4)
wait_until(lambda: new in disk(4), what="the node that has joined gets the marker")
assert mark in disk(4) and "m3" in disk(4)
[alarm] = wait_until(lambda: [a for a in two.status().alarms if "another cluster" in a], what="an alarm")
for part in (f"id {one.id:x}", "destroyed while this node was away", "127.0.0.4", "raykeeper down --cluster jobs"):
    assert part in alarm, (part, alarm)
kv.put("b", "3")
two.shutdown()
again = launch()
assert again.id == two.id
assert again.client(timeout=60).get("b").text == "3"
print("not poisoned")

assert raykeeper.discard("jobs", one.id, data_dir=data_dir) == one.id
assert disk(4) == [new], (disk(4), open(f"{folder}/4/data/jobs/{mark}").read(), alive(), ray.nodes())
wait_until(lambda: serving(again))
assert again.client(timeout=60).get("b").text == "3"
assert isinstance(refused(raykeeper.discard, "jobs", one.id, data_dir=data_dir), raykeeper.ClusterNotFound)
raykeeper.attach("jobs").destroy()  # "~" is another folder on each node
assert [name for last in (2, 3, 4, 9) for name in disk(last) if name in (new, "m1", "m2", "m3")] == []
print("done")
ray.shutdown()
nodes.shutdown()
"""

BARE = """
with open(f"{folder}/sitecustomize.py", "w") as file:
    file.write('''
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "raykeeper":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
''')
join(7, PYTHONPATH=folder)
good = ["node:127.0.0.9"]

def shell(*arguments):
    done = subprocess.run([sys.executable, "-m", "raykeeper", *arguments], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "RAY_ADDRESS": nodes.address, "HOME": f"{folder}/9"})
    assert "Traceback" not in done.stderr + done.stdout, done
    return done

def names_it(said):
    for part in ("Ray node 127.0.0.7", "cannot load RayKeeper", "No module named 'raykeeper", "install the package"):
        assert part in said, (part, said)

names_it(str(refused(launch)))
one = launch(placement=good)
kv = one.client(timeout=60)
kv.put("a", "1")
names_it(str(refused(one.add_member, "127.0.0.7")))
wait_until(lambda: serving(one))
print("launched")

one.backup(f"{folder}/backup")
with open(f"{folder}/spread.yaml", "w") as file:
    file.write(f"name: copy\\ndata_dir: {data_dir}\\n")
with open(f"{folder}/good.yaml", "w") as file:
    file.write(f"name: copy\\ndata_dir: {data_dir}\\nplacement: {good}\\n")
for arguments in (("restore", f"{folder}/backup", f"{folder}/spread.yaml"), ("up", f"{folder}/spread.yaml"),
                  ("member", "add", "127.0.0.7", "--cluster", "jobs")):
    done = shell(*arguments)
    assert done.returncode == 1, done
    [line] = [line for line in done.stderr.splitlines() if line.startswith("raykeeper: ") and "warning" not in line]
    names_it(line)
done = shell("restore", f"{folder}/backup", f"{folder}/good.yaml")
assert done.returncode == 0, done
assert "warning: cluster copy: its 3 members are on 1 host" in done.stderr, done
for cluster in ("copy", "jobs"):
    done = shell("down", "--cluster", cluster, "--destroy", "--yes")
    assert done.returncode == 0, done
print("done")
ray.shutdown()
nodes.shutdown()
"""


def run(program: str, steps: list[str], tmp_path: Path, scratch: Path) -> None:
    said = run_program("-c", PROGRAM + program, str(tmp_path), str(scratch / tmp_path.name[-20:]), PYTHONPATH=PATH)
    assert [line for line in said.splitlines() if line in steps] == steps  # Ray has its say too


def test_hosts_that_are_away_are_waited_for_and_what_they_missed_does_no_harm(tmp_path: Path, scratch: Path) -> None:
    run(LOST, ["made", "refused", "back", "not poisoned", "done"], tmp_path, scratch)


def test_a_node_without_the_package_is_named_in_one_line(tmp_path: Path, scratch: Path) -> None:
    run(BARE, ["launched", "done"], tmp_path, scratch)
