"""Ray's head is lost, as the runbook has it: without GCS fault tolerance the whole Ray goes with it, and a new one
finds the data; with it, members serve on, and the head comes back to them.

Each Ray node has an address, a home, and so a disk of its own. All that an operator does is done by the shell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.ray.programs import PATH, run_program
from lab.ray.redis import INSTALL, Redis

pytestmark = pytest.mark.survival

COMMON = """
import atexit, json, os, signal, socket, subprocess, sys
import ray
from ray.cluster_utils import Cluster as RayCluster
from lab.ray.tools import is_alive, start_of, wait_until

folder, temporary = sys.argv[1:]
spec, acknowledged = f"{folder}/cluster.yaml", f"{folder}/acknowledged"
with open(spec, "w") as file:
    file.write("name: jobs\\ndata_dir: ~/data\\nbootstrap: never\\n")
with socket.create_server(("127.0.0.1", 0)) as taken:
    gcs_port = taken.getsockname()[1]
nodes = RayCluster()
workers = {}

def node(last):
    home = f"{folder}/{last}"
    os.makedirs(home, exist_ok=True)
    return {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024, "node_ip_address": f"127.0.0.{last}",
            "env_vars": {"HOME": home}}

def head():
    nodes.add_node(**node(9), include_dashboard=False, temp_dir=temporary, gcs_server_port=gcs_port, _system_config={
        "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3})

def lose_head():
    # As a host that loses its power. What an external store holds of it stays.
    nodes.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    nodes.head_node = None

def join(*lasts):
    for last in lasts:
        workers[last] = nodes.add_node(**node(last))

def shell(*arguments, status=0):
    done = subprocess.run([sys.executable, "-m", "raykeeper", *arguments], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "RAY_ADDRESS": f"127.0.0.9:{gcs_port}", "HOME": f"{folder}/9",
                               "RAYKEEPER_CLUSTER": "jobs", "RAYKEEPER_RUNTIME_DIR": f"{folder}/run"})
    assert status is None or done.returncode == status, (arguments, done)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if done.returncode == 0 else done.stderr + done.stdout

def told():
    # The members as the shell tells them, once all are there.
    def whole():
        said = shell("status", "-o", "json", status=None)
        found = json.loads(said) if said.startswith("{") else {"members": []}
        return found if found["members"] and not any(each["why_not_serving"] for each in found["members"]) else None
    return wait_until(whole, 240, "all members serve")

WRITER = '''
import logging, sys
import ray, raykeeper
ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False, _node_ip_address="127.0.0.2")
kv = raykeeper.connect("jobs", timeout=60)
number = 0
with open(sys.argv[2], "w") as acknowledged:  # Ray writes to stdout, too
    while True:
        kv.put(f"w/{number:06}", str(number))
        print(number, file=acknowledged, flush=True)
        number += 1
'''

def start_writer():
    open(acknowledged, "w").close()
    process = subprocess.Popen([sys.executable, "-c", WRITER, f"127.0.0.9:{gcs_port}", acknowledged],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    return process

def written():
    # How many writes were acknowledged.
    with open(acknowledged) as file:
        return sum(line.endswith("\\n") for line in file)

def nothing_is_lost():
    found = json.loads(shell("get", "w/", "--prefix", "-o", "json", "--timeout", "60"))["items"]
    values = {each["key"]: each["value"] for each in found}
    count = written()
    missing = [number for number in range(count) if values.get(f"w/{number:06}") != str(number)]
    assert count and not missing, (count, missing[:20])
    return count

head()
join(2, 3, 4)
shell("up", spec, status=1)  # as the spec says
shell("up", spec, "--bootstrap", "auto")
before = told()
pids = {each["name"]: each["pid"] for each in before["members"]}
started = {pid: start_of(pid) for pid in pids.values()}
lease = shell("lease", "grant", "600").split()[1]
writer = start_writer()
wait_until(lambda: written() > 200, 120, "writes")
print("made")
"""

WITHOUT = """
lose_head()
wait_until(lambda: not any(is_alive(pid, started[pid]) for pid in pids.values()), 120, "all of Ray has gone with it")
wait_until(lambda: not any(each.any_processes_alive() for each in workers.values()), 120, "the nodes, too")
writer.kill()
writer.wait()
print("gone")

for each in workers.values():
    nodes.remove_node(each, allow_graceful=False)
workers.clear()
head()
said = shell("up", spec, status=1)
for part in ("m1 (last at", "m2 (last at", "m3 (last at", "It is known by a marker"):
    assert part in said, (part, said)
print("waits")

join(2, 3)
assert "no member leads" not in shell("up", spec, status=None)
count = nothing_is_lost()
remaining = json.loads(shell("lease", "timetolive", lease, "-o", "json"))["remaining"]
assert 0 < remaining < 600, remaining
print("a majority serves")

join(4)
after = told()
assert after["id"] == before["id"], (before, after)
assert [each["name"] for each in after["members"]] == ["m1", "m2", "m3"]
assert nothing_is_lost() == count
shell("put", "after", "1")
print("whole")
shell("down", "--destroy", "--yes")
nodes.shutdown()
"""

WITH = """
LANES = '''
import logging, sys
import ray
from lab.ray.tools import wait_until
from raykeeper.actors.discovery import member_actors
ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False, _node_ip_address="127.0.0.2")
actors = member_actors("jobs")

def open_to(host):
    return host.member._loop.transport.with_lane()

def lanes():
    found = {id: actor.__ray_call__.remote(open_to) for id, actor in actors.items()}
    return {id: sorted(ray.get(reference, timeout=120)) for id, reference in found.items()}

wait_until(lambda: lanes() == {1: [2, 3], 2: [1, 3], 3: [1, 2]}, 120, lambda: f"all lanes are open: {lanes()}")
'''

lead = next(each for each in told()["members"] if each["role"] == "leader")
# Of each member to each other one: without the head nobody could be asked for one.
subprocess.run([sys.executable, "-c", LANES, f"127.0.0.9:{gcs_port}"], check=True, timeout=300,
               stdout=subprocess.DEVNULL)
lose_head()
count = written()
wait_until(lambda: written() > count + 200, 120, "members serve on, while there is no head")
os.kill(lead["pid"], signal.SIGKILL)
wait_until(lambda: not is_alive(lead["pid"], started[lead["pid"]]), 60)
count = written()
wait_until(lambda: written() > count + 200, 120, "they elect another leader, while there is no head")
head()
after = told()
now = {each["name"]: each["pid"] for each in after["members"]}
changed = [name for name in pids if now[name] != pids[name]]
assert changed == [lead["name"]], (before, after)
pids = now
started = {pid: start_of(pid) for pid in pids.values()}
print("back")

# The supervisor is at work again.
victim = next(each for each in after["members"] if each["role"] == "follower")
os.kill(victim["pid"], signal.SIGKILL)
wait_until(lambda: not is_alive(victim["pid"], started[victim["pid"]]), 60)
wait_until(lambda: {each["name"]: each["pid"] for each in told()["members"]} != pids, 120, "it has another process")
assert writer.poll() is None, "it goes on as if nothing had been"
writer.kill()
writer.wait()
nothing_is_lost()
print("whole")
shell("down", "--destroy", "--yes")
nodes.shutdown()
"""


def run(program: str, steps: list[str], tmp_path: Path, scratch: Path, **more: str) -> None:
    folders = str(tmp_path), str(scratch / tmp_path.name[-20:])
    said = run_program("-c", COMMON + program, *folders, PYTHONPATH=PATH, **more)
    assert [line for line in said.splitlines() if line in steps] == steps  # Ray has its say too


def test_without_fault_tolerance_a_new_ray_finds_the_data(tmp_path: Path, scratch: Path) -> None:
    """The nodes give up after 5 s instead of a minute."""
    steps = ["made", "gone", "waits", "a majority serves", "whole"]
    run(WITHOUT, steps, tmp_path, scratch, RAY_gcs_rpc_server_reconnect_timeout_s="5")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis."""
    if not Redis.available():
        pytest.skip(INSTALL)
    server = Redis(tmp_path)
    yield server.address
    server.close()


def test_with_fault_tolerance_members_serve_on_and_the_head_comes_back(
    tmp_path: Path, scratch: Path, redis: str
) -> None:
    """Also if the leader dies while there is none. The nodes wait for the head for longer than by default: the machine
    may be slow."""
    more = {"RAY_REDIS_ADDRESS": redis, "RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    run(WITH, ["made", "back", "whole"], tmp_path, scratch, **more)
