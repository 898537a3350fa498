"""Where a member's log lines land on a real Ray, and that a user's terminal stays quiet meanwhile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.ray.programs import PATH, run_program_with_stderr

PROGRAM = """
import os, sys, threading
import ray
import raykeeper
from lab.ray.tools import kill, leader, serving, wait_until

folder, temporary = sys.argv[1:]
# A driver that shows what its actors and tasks write to standard error, as any does unless it is told otherwise.
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024 * 1024,
         _temp_dir=temporary)
cluster = raykeeper.launch(name="jobs", data_dir=folder)
kv = cluster.client(timeout=60)
kv.put("k", "v")
logs = os.path.join(temporary, "session_latest", "logs")

def lines(member):
    with open(os.path.join(logs, f"raykeeper-jobs-{member}.log")) as file:
        return file.read().splitlines()

before = leader(cluster)
kill(before.pid)
kv.put("k", "2")
wait_until(lambda: serving(cluster), what="all members serve")
after = leader(cluster)
for said in ("suspects", "campaigns in term", "won the election and leads in term"):
    wait_until(lambda said=said: any(said in line for line in lines(after.name)), what=said)
wait_until(lambda: sum("serves; its log ends" in line for line in lines(before.name)) == 2, what="the file goes on")

# A file that cannot be written costs lines, and nothing else.
other = next(member for member in cluster.members() if member.id != after.id)
path = os.path.join(logs, f"raykeeper-jobs-{other.name}.log")
os.rename(path, path + ".1")
os.mkdir(path)
kv.compact(kv.revision())
wait_until(lambda: any("history is compacted" in line for line in lines(after.name)), what="a line")
kv.put("k", "3")
os.rmdir(path)
wait_until(lambda: serving(cluster), what="all members serve")
assert {member.id: member.pid for member in cluster.status().members}[other.id] == other.pid
kv.put("k", "4")
kv.compact(kv.revision())
wait_until(lambda: os.path.exists(path) and any("history is compacted" in line for line in lines(other.name)),
           what="the file is there again")

@ray.remote
def say():
    print("a task says so", file=sys.stderr, flush=True)

ray.get(say.remote())
threading.Event().wait(3)  # Ray's log monitor looks for new lines once in a while
cluster.shutdown()
for name in sorted(os.listdir(logs)):
    if name.startswith("raykeeper-"):
        print("FILE", name)
        with open(os.path.join(logs, name)) as file:
            print(file.read())
ray.shutdown()
"""

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) \d+ raykeeper\.(member|transport|supervisor) "
    r"cluster jobs, (m[123]|supervisor): .+"
)


@pytest.mark.survival
def test_each_member_has_a_log_file_and_the_driver_sees_no_elections(tmp_path: Path, scratch: Path) -> None:
    out, shown = run_program_with_stderr("-c", PROGRAM, str(tmp_path / "data"), str(scratch / "logs"), PYTHONPATH=PATH)
    drivers, *files = out.split("FILE ")
    names = {file.partition("\n")[0] for file in files}
    members = {f"raykeeper-jobs-{name}.log" for name in ("m1", "m2", "m3", "supervisor")}
    assert members <= names
    for file in files:
        for line in file.splitlines()[1:]:
            assert not line or LINE.fullmatch(line), line
    assert "a task says so" in shown + drivers, "this driver shows what is written to standard error"
    assert "leads in term" not in shown + drivers
    assert not re.search(r"(INFO|DEBUG) \d+ raykeeper", shown + drivers)
