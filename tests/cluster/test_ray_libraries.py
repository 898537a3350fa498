"""The examples for Ray Data, Train, Serve and Jobs, with the real libraries, as a user would run them: ``make apps``.

Each kills what it kills, and says that all was right. A library that is not installed is skipped; ``make apps-install``
gets all of them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from lab.ray.programs import PATH, ROOT, run_program

pytestmark = pytest.mark.survival

EXAMPLES: list[tuple[str, tuple[str, ...], list[str], list[str]]] = [
    ("training_gang.py", (), ["--steps", "24"], ["the lost worker is replaced", "every step counts once"]),
    ("exactly_once_data.py", ("pandas", "pyarrow"), ["--files", "20"], ["some were tried again", "each once"]),
    (
        "ray_train.py",
        ("pandas", "pyarrow", "tensorboardX"),
        ["--steps", "30"],
        ["each step counts once"],
    ),
    ("serve_rollout.py", ("fastapi", "uvicorn"), [], ["is refused", "has done it", "all replicas are there again"]),
    ("jobs.py", ("aiohttp_cors", "colorful"), [], ["it has both", "the other did not", "each tick was done once"]),
]


def needs(*modules: str) -> None:
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} is not installed: make apps-install")


@pytest.mark.parametrize(("example", "modules", "arguments", "says"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_an_example_with_the_real_library(
    example: str, modules: tuple[str, ...], arguments: list[str], says: list[str]
) -> None:
    needs(*modules)
    said = run_program(f"examples/{example}", *arguments, seconds=500)
    assert "killed" in said
    assert [text for text in says if text not in said] == [], said


NODES = """
import json, logging, os, signal, subprocess, sys, threading, time
import ray
from ray.cluster_utils import Cluster as RayCluster
from lab.ray.tools import wait_until
import raykeeper
sys.path.insert(0, "examples")
from exactly_once_data import ExactlyOnceSink, make_input, writers

folder, temporary = sys.argv[1:]
FILES = 24
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    **small, "include_dashboard": False, "temp_dir": temporary, "_system_config": {
        "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}})
workers = [nodes.add_node(**small) for _ in range(2)]
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
wait_until(lambda: len([node for node in ray.nodes() if node["Alive"]]) == 3)
# The members live on the head's node alone: what is lost here are nodes that work.
cluster = raykeeper.launch(data_dir=f"{folder}/data", placement=["node:__internal_head__"])
sink = ExactlyOnceSink(cluster.client(), "squares", "")
make_input(f"{folder}/in", FILES)
os.makedirs(f"{folder}/out")

def driver():
    command = [sys.executable, "examples/exactly_once_data.py", "--pipeline", folder, "--pause", "1.0"]
    return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": nodes.address})

def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])

def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid

def writing_on(node):
    # Ray's workers are children of the raylet of their node.
    for pid in writers(sink).values():
        try:
            if parent(pid) == raylet_of(node):
                return pid
        except OSError:
            pass
    return 0

first = driver()
wait_until(lambda: len(sink.committed()) >= 3, 240)
wait_until(lambda: writing_on(workers[0]), 240)
nodes.remove_node(workers[0], allow_graceful=False)
print("lost a node in the middle of a write", flush=True)
at = len(sink.committed())
wait_until(lambda: len(sink.committed()) >= at + 3, 240)
first.send_signal(signal.SIGKILL)
first.wait()
assert len(sink.committed()) < FILES
print("killed the driver", flush=True)
second = driver()
at = len(sink.committed())
wait_until(lambda: len(sink.committed()) >= at + 2, 240)
wait_until(lambda: writing_on(workers[1]), 240)
nodes.remove_node(workers[1], allow_graceful=False)
print("lost another node", flush=True)
assert second.wait(400) == 0
assert sink.kv.counter("attempts").value() > FILES
parts = ExactlyOnceSink(cluster.client(), "squares", f"{folder}/out").parts()
numbers = [int(line.split(",")[0]) for part in parts for line in open(part).read().splitlines()[1:]]
assert sorted(numbers) == list(range(200 * FILES)), len(numbers)
print("each row once", flush=True)
cluster.destroy()
ray.shutdown()
nodes.shutdown()
"""


PARTS = """
import os, sys
import pyarrow as pa
import ray
import raykeeper
from exactly_once_data import ExactlyOnceSink, make_input, pipeline, read_whole, whole

folder = sys.argv[1]
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
cluster = raykeeper.launch(members=1, data_dir=f"{folder}/data")
kv = cluster.client()
os.makedirs(f"{folder}/out")

def rows(sink):
    return sorted(int(line.split(",")[0]) for part in sink.parts() for line in open(part).read().splitlines()[1:])

# Two blocks of one file: neither is written, whether the other one comes or not; so the file is left.
sink = ExactlyOnceSink(kv, "cut", f"{folder}/out")
table = whole("/a/x.csv", pa.table({"number": list(range(10))}))
for cut in (table.slice(0, 4), table.slice(4)):
    try:
        sink.write([cut], None)
        raise AssertionError("a part was taken for the whole")
    except ValueError as error:
        assert "are not all" in str(error), error
assert (sink.left(["/a/x.csv"]), sink.parts(), os.listdir(f"{folder}/out")) == (["/a/x.csv"], [], [])
assert sink.write([table.slice(0, 4), table.slice(4)], None) == 1  # both in one task
# A file of the same name elsewhere, with the same rows, is another one.
sink.write([whole("/b/x.csv", pa.table({"number": list(range(10))}))], None)
assert sink.left(["/a/x.csv", "/b/x.csv", "/c/x.csv"]) == ["/c/x.csv"]
assert rows(sink) == sorted(2 * list(range(10)))
try:
    sink.write([whole("/a/x.csv", pa.table({"number": [1]}))], None)
    raise AssertionError("other rows were taken")
except ValueError as error:
    assert "other rows" in str(error), error
assert rows(sink) == sorted(2 * list(range(10)))
print("parts are refused", flush=True)

# Ray Data cuts the blocks, and each goes to a task of its own: refused, and all is left to do. The pipeline reads a
# file and writes it in one task, so it may be cut, too.
make_input(f"{folder}/in", 2)
files = sorted(f"{folder}/in/{name}" for name in os.listdir(f"{folder}/in"))
ray.data.DataContext.get_current().target_max_block_size = 1000
sink = ExactlyOnceSink(kv, "limit", f"{folder}/out")
named = ray.data.from_items([{"path": file} for file in files], override_num_blocks=2)
cut = named.map_batches(read_whole, batch_size=1, batch_format="pyarrow").materialize()
assert cut.num_blocks() > 2
try:
    cut.write_datasink(sink)
    raise AssertionError("cut blocks were taken")
except Exception as error:
    assert "are not all" in str(error), error
assert (sink.committed(), sink.left(files)) == ({}, files)
pipeline(kv, "limit", f"{folder}/in", f"{folder}/out", 0.0)
assert rows(sink) == list(range(400))
assert sink.left(files) == []
print("nothing is lost", flush=True)
cluster.destroy()
ray.shutdown()
"""


def test_a_file_that_comes_in_parts_is_refused_and_left(tmp_path: Path) -> None:
    needs("pandas", "pyarrow")
    workers = os.pathsep.join([PATH, str(ROOT / "examples")])  # Ray's workers import the example, too
    said = run_program("-c", PARTS, str(tmp_path), seconds=500, PYTHONPATH=workers)
    assert [line for line in said.splitlines() if line in ("parts are refused", "nothing is lost")] == [
        "parts are refused",
        "nothing is lost",
    ]


def test_blocks_are_written_once_though_nodes_and_the_driver_are_lost(tmp_path: Path, scratch: Path) -> None:
    needs("pandas", "pyarrow")
    said = run_program("-c", NODES, str(tmp_path), str(scratch / "nodes"), seconds=900, PYTHONPATH=PATH)
    steps = ["lost a node in the middle of a write", "killed the driver", "lost another node", "each row once"]
    assert [line for line in said.splitlines() if line in steps] == steps
