"""Ray nodes as hosts of their own, in network namespaces, and cables that are pulled: packets are lost, nothing else.

Each node is taken off the bridge that joins them, and put back. So Ray itself is cut off too, as in a real network: its
calls hang, its control store does not hear the node, and takes it for dead only much later.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raykeeper

pytestmark = pytest.mark.survival
TESTS = Path(__file__).parent.parent
NODES = 3


def run(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, **options)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done


def why_not() -> str:
    """Why this machine cannot make namespaces; empty if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no iproute2"
    probe = f"rkprobe{os.getpid()}"
    try:
        made = run("ip", "netns", "add", probe, check=False)
        if made.returncode:
            return f"no network namespace may be made here: {made.stderr.strip()}"
        bridge = run("ip", "-n", probe, "link", "add", "br0", "type", "bridge", check=False)
        pair = run("ip", "-n", probe, "link", "add", "v0", "type", "veth", "peer", "name", "v1", check=False)
        failed = [each.stderr.strip() for each in (bridge, pair) if each.returncode]
        return f"no bridge or cable may be made here: {failed[0]}" if failed else ""
    finally:
        run("ip", "netns", "del", probe, check=False)


class Hosts:
    """A head and three nodes, each in a namespace of its own, joined by a bridge in the head's."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rkn-"))
        stem = f"rk{os.getpid() % 10_000}"
        self.head = f"{stem}h"
        self.nodes = [f"{stem}n{n}" for n in range(NODES)]
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        path = [str(TESTS), str(Path(raykeeper.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYKEEPER_"))}
        self.env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def make(self) -> None:
        for name in (self.head, *self.nodes):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        head = ("ip", "-n", self.head)
        run(*head, "link", "add", "br0", "type", "bridge")
        run(*head, "link", "set", "br0", "up")
        run(*head, "addr", "add", "10.77.0.1/24", "dev", "br0")
        for n, name in enumerate(self.nodes):
            run(*head, "link", "add", f"v{n}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run(*head, "link", "set", f"v{n}", "master", "br0")
            run(*head, "link", "set", f"v{n}", "up")
            run("ip", "-n", name, "addr", "add", f"10.77.0.1{n + 1}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        common = ("--disable-usage-stats", "--object-store-memory=100000000", "--num-cpus=2")
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start")
        self.execute(
            self.head, *ray, "--head", "--node-ip-address=10.77.0.1", "--port=6379", "--include-dashboard=false",
            f"--temp-dir={self.folder}/ray", *common,
        )  # fmt: skip
        for n, name in enumerate(self.nodes):
            place = f'--resources={{"place-{n}": 1}}'
            address = f"--node-ip-address=10.77.0.1{n + 1}"
            self.execute(name, *ray, "--address=10.77.0.1:6379", address, place, *common)

    def execute(self, where: str, *words: str) -> str:
        return run("ip", "netns", "exec", where, *words, env=self.env).stdout

    def end(self) -> None:
        for name in (*self.nodes, self.head):
            for pid in run("ip", "netns", "pids", name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    hosts = Hosts()
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.end()


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


def test_nodes_cut_off_the_network(hosts: Hosts) -> None:
    said = hosts.execute(hosts.head, sys.executable, "-c", PROGRAM, str(hosts.folder / "data"))
    assert said.splitlines()[-1] == "done", said
    print(said)
