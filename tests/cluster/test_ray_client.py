"""A process outside the Ray cluster, over Ray Client (``ray://``): there Ray takes everything in on one thread of its
own, so a call to Ray on that thread waits for itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from lab.ray.tools import Made, wait_until

PROGRAM = """
import asyncio, faulthandler, os, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
import raykeeper

before = {thread.ident for thread in threading.enumerate()}
kv = raykeeper.connect(sys.argv[1], timeout=60)
for number in range(5):
    kv.put("k", str(number))
assert kv.get("k").value == b"4"
assert kv.range(prefix="").count == 1
watch = kv.watch("k")
kv.put("k", "seen")
assert watch.next(timeout=30).kv.value == b"seen"
with kv.lock("l", ttl=30) as lock:
    lock.guard().put("guarded", "v")
with kv.lease(30) as lease:
    kv.put("leased", "v", lease=lease)
assert kv.get("leased") is None
with kv.cached("k") as copy:
    assert copy.get("k").value == b"seen"

async def play():
    await asyncio.gather(*(kv.aio.put(f"many/{number}", "v") for number in range(50)))
    return (await kv.aio.range(prefix="many/", count_only=True)).count

assert asyncio.run(play()) == 50
print("all is well", flush=True)
sys.stdin.readline()  # the member is stopped meanwhile
begun = time.monotonic()
try:
    kv.put("k", "late", timeout=1)
    print("it was answered")
except raykeeper.KeeperError as error:
    print(type(error).__name__, time.monotonic() - begun, flush=True)
sys.stdin.readline()  # and goes on
kv.put("k", "after", timeout=60)
print("done", flush=True)
os._exit(0)
"""


@pytest.fixture
def client_server(local_ray: Path) -> Iterator[str]:
    """The address of a Ray Client server of the tests' Ray."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.util.client.server", "--mode", "legacy", "--address", address]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=quiet, stderr=quiet)
    try:
        wait_until(lambda: server.poll() is not None or listens(port), what="the Ray Client server")
        assert server.poll() is None
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("lanes", ["on", "off"])
def test_everything_works_over_ray_client(
    lanes: str, clusters: Made, client_server: str, stopped: list[int], tmp_path: Path
) -> None:
    cluster = clusters.launch(members=1, lanes=lanes)
    with (tmp_path / "stderr").open("w") as errors:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, cluster.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "RAY_ADDRESS": client_server},
        )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        said = program.stdout.readline()
        assert said == "all is well\n", (tmp_path / "stderr").read_text()
        pid = cluster.members()[0].pid
        stopped.append(pid)
        os.kill(pid, signal.SIGSTOP)
        program.stdin.write("stopped\n")
        program.stdin.flush()
        kind, took = program.stdout.readline().split()
        assert kind in ("Unavailable", "RequestTimeout")
        assert float(took) < 10.0
        os.kill(pid, signal.SIGCONT)
        program.stdin.write("goes on\n")
        program.stdin.flush()
        assert program.stdout.readline() == "done\n", (tmp_path / "stderr").read_text()
    finally:
        program.kill()
        program.communicate()
