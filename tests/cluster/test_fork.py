"""A real process that uses Ray forks, as PyTorch's DataLoader does: the child is told at once what to do instead, and
what it is told works."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray

PROGRAM = """
import faulthandler, multiprocessing, sys, time
faulthandler.dump_traceback_later(200, exit=True)
import raykeeper


def attempt(call):
    begun = time.monotonic()
    try:
        call()
        said = "worked"
    except raykeeper.KeeperError as error:
        said = type(error).__name__
    return said, time.monotonic() - begun


def forked(said, kv, cluster, lock, lease, watch, name):
    said.put([attempt(call) for call in (
        lambda: kv.put("k", "child", timeout=5),
        lambda: kv.namespace("n/").get("k"),
        lambda: raykeeper.connect(name, timeout=5),
        lambda: raykeeper.attach(name),
        lambda: raykeeper.launch(name=name),
        lambda: cluster.status(),
        lambda: cluster.shutdown(),
        lambda: watch.next(timeout=5),
        lambda: lease.revoke(timeout=5),
        lambda: lock.guard().put("k", "child", timeout=5),
        lambda: kv.cached("k"),
    )])


def spawned(said, kv):
    said.put(attempt(lambda: kv.put("k", "spawned", timeout=60)))


if __name__ == "__main__":
    name = sys.argv[1]
    kv = raykeeper.connect(name, timeout=60)
    cluster = raykeeper.attach(name)
    kv.put("k", "parent")
    lock = kv.lock("l", ttl=60)
    lock.acquire()
    with kv.lease(60) as lease, kv.watch("k") as watch:
        for method, target, more in (
            ("fork", forked, (kv, cluster, lock, lease, watch, name)), ("spawn", spawned, (kv,))
        ):
            context = multiprocessing.get_context(method)
            said = context.SimpleQueue()
            child = context.Process(target=target, args=(said, *more))
            child.start()
            print(said.get(), flush=True)
            child.join()
            assert child.exitcode == 0
        assert not lock.lost.is_set()
    print(kv.get("k").text)
"""


def test_a_forked_child_is_refused_and_a_spawned_one_works(shared: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), shared.name],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    assert done.returncode == 0, done.stderr
    forked, spawned, now = done.stdout.splitlines()
    outcomes = ast.literal_eval(forked)
    assert {said for said, _ in outcomes} == {"ForkedProcess"}
    assert all(took < 5.0 for _, took in outcomes)
    assert "worked" in spawned
    assert now == "spawned"


ENDING = """
import os, signal, sys, tempfile, time
import raykeeper


def handler(*_):
    sys.exit(7)


def ended(child):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "it hangs"


signal.signal(signal.SIGTERM, handler)
with raykeeper.launch(members=1, data_dir=sys.argv[1]) as cluster:  # with a Ray of its own
    assert signal.getsignal(signal.SIGTERM) is handler
    kv = cluster.client()
    with kv.lock("l", ttl=30) as lock:
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                sys.exit(4)
            print(ended(grandchild), flush=True)
            sys.exit(3)
        print(ended(child), flush=True)
        child = os.fork()
        if child == 0:
            kv.put("k", "child")  # nobody catches what it raises
        print(ended(child), flush=True)
        kv.put("k", "v", timeout=30)
        assert not lock.lost.is_set()
        assert lock.holder() is not None
    print("the parent goes on", flush=True)
"""


def test_a_forked_child_that_ends_takes_nothing_of_its_parents_along(tmp_path: Path) -> None:
    """Ray would end itself with the child: its processes if the parent has started it, and else the child by a crash;
    and it would wait forever for somebody to tell of an exception that nobody catches. And Ray, started on the user's
    behalf, leaves the user's handler of SIGTERM."""
    program = tmp_path / "program.py"
    program.write_text(ENDING)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["4", "3", "1", "the parent goes on"], done.stderr
