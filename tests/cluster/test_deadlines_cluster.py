"""Administrative calls, and whole processes, end with their timeout while Ray's control service is frozen, and while
the members are stopped. What a handle does is tried without Ray, in ``unit/actors/client/test_deadlines.py``."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

import raykeeper
from lab.ray.tools import Made, pid_of, wait_until
from raykeeper import KeeperError
from raykeeper.actors.client import hub_pool
from raykeeper.limits import CLEANUP_GRACE_S

TIMEOUT = 1.0
SLACK = 8.0
"""Of a machine that does much else at the same time: what is wrong takes as long as the freeze, or a minute."""

Call = Callable[[], Any]

CLUSTER: dict[str, Callable[[Any, Path], Any]] = {
    "client": lambda cluster, tmp: cluster.client(timeout=TIMEOUT).get("k"),
    "status": lambda cluster, tmp: cluster.status(timeout=TIMEOUT),
    "members": lambda cluster, tmp: cluster.members(timeout=TIMEOUT),
    "move_leader": lambda cluster, tmp: cluster.move_leader(7, timeout=TIMEOUT),
    "add_member": lambda cluster, tmp: cluster.add_member(timeout=TIMEOUT),
    "promote": lambda cluster, tmp: cluster.promote(7, timeout=TIMEOUT),
    "remove_member": lambda cluster, tmp: cluster.remove_member(7, timeout=TIMEOUT),
    "upgrade": lambda cluster, tmp: cluster.upgrade(timeout=TIMEOUT),
    "supervise": lambda cluster, tmp: cluster.supervise(timeout=TIMEOUT),
    "unsupervise": lambda cluster, tmp: cluster.unsupervise(timeout=TIMEOUT),
    "configure": lambda cluster, tmp: cluster.configure(limits={"max_page_items": 9000}, timeout=TIMEOUT),
    "check": lambda cluster, tmp: cluster.check(timeout=TIMEOUT),
    "proxies": lambda cluster, tmp: cluster.proxies(timeout=TIMEOUT),
    "clients": lambda cluster, tmp: cluster.clients(timeout=TIMEOUT),
    "events": lambda cluster, tmp: cluster.events(timeout=TIMEOUT),
    "settings": lambda cluster, tmp: cluster.settings(timeout=TIMEOUT),
    "health": lambda cluster, tmp: cluster.health(timeout=TIMEOUT),
    "top": lambda cluster, tmp: cluster.top(timeout=TIMEOUT),
    "backup": lambda cluster, tmp: cluster.backup(tmp / "b", timeout=TIMEOUT),
    "shutdown": lambda cluster, tmp: cluster.shutdown(timeout=TIMEOUT),
    "destroy": lambda cluster, tmp: cluster.destroy(timeout=TIMEOUT),
}
MODULE: dict[str, Callable[[Any, Path], Any]] = {
    "connect": lambda cluster, tmp: raykeeper.connect(cluster.name, timeout=TIMEOUT),
    "attach": lambda cluster, tmp: raykeeper.attach(cluster.name, timeout=TIMEOUT),
    "launch": lambda cluster, tmp: raykeeper.launch(name="new", data_dir=str(tmp / "new"), timeout=TIMEOUT),
    "restore": lambda cluster, tmp: raykeeper.restore(
        tmp / "backup", name="copy", data_dir=str(tmp / "copy"), timeout=TIMEOUT
    ),
    "discard": lambda cluster, tmp: raykeeper.cluster.discard("none", data_dir=str(tmp / "none"), timeout=TIMEOUT),
}
ASK_NOBODY = {"end_actor_when_lost"}
"""It begins to wait elsewhere, and returns at once."""
ENDS_IT = {"shutdown", "destroy", "discard", "launch", "restore"}
"""Not to be tried while Ray works: they would have their effect."""


def test_every_administrative_call_is_in_the_table() -> None:
    calls = {name for name in dir(raykeeper.Cluster) if not name.startswith("_")}
    assert {name for name in calls if callable(getattr(raykeeper.Cluster, name))} == set(CLUSTER)
    functions = {name for name in raykeeper.__all__ if inspect.isfunction(getattr(raykeeper, name))}
    assert functions - ASK_NOBODY <= set(MODULE)


def late(calls: dict[str, Call]) -> list[str]:
    """Make all calls at the same time; those that took too long, or ended in what is not an answer."""
    wrong: list[str] = []

    def make(name: str, call: Call) -> None:
        begun = time.monotonic()
        outcome: object = None
        try:
            outcome = call()
        except KeeperError as error:
            outcome = error
        except BaseException as error:
            wrong.append(f"{name}: {error!r}")
        took = time.monotonic() - begun
        if took > TIMEOUT + 2 * CLEANUP_GRACE_S + SLACK:
            wrong.append(f"{name}: {took:.1f} s, {outcome!r}")

    threads = {name: threading.Thread(target=make, args=(name, call), daemon=True) for name, call in calls.items()}
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + TIMEOUT + 2 * SLACK
    for name, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            wrong.append(f"{name}: does not come back")
    return wrong


CONNECTING = """
import sys, time, raykeeper
from raykeeper.actors.ray_session import join_ray  # what a process loads is not counted
import raykeeper.actors.transport.client_actor
print("loaded", flush=True)
sys.stdin.readline()
begun = time.monotonic()
try:
    raykeeper.connect(sys.argv[1], timeout=1)
    print("connected", time.monotonic() - begun)
except raykeeper.KeeperError as error:
    print(type(error).__name__, time.monotonic() - begun)
sys.stdout.flush()
import os; os._exit(0)
"""


def control_service(scratch: Path) -> int:
    """The process id of the tests' own GCS."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if command.partition("\0")[0].endswith("/gcs_server") and str(scratch) in command:
            return int(process.parent.name)
    raise AssertionError("no control service runs")


def test_nothing_outlasts_its_timeout_while_ray_is_frozen(
    clusters: Made, scratch: Path, tmp_path: Path, stopped: list[int]
) -> None:
    cluster = clusters.launch(members=1)
    with cluster.client() as kv:
        kv.put("k", "v")
        cluster.backup(tmp_path / "backup")
    address = ray.get_runtime_context().gcs_address
    fresh = subprocess.Popen(
        [sys.executable, "-c", CONNECTING, cluster.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    assert fresh.stdin is not None
    assert fresh.stdout is not None
    assert fresh.stdout.readline() == "loaded\n"
    hub_pool._close_all()  # handles start over
    service = control_service(scratch)
    stopped.append(service)
    os.kill(service, signal.SIGSTOP)
    try:
        fresh.stdin.write("go\n")
        fresh.stdin.flush()
        table = {**CLUSTER, **MODULE}
        wrong = late({name: lambda call=call: call(cluster, tmp_path) for name, call in table.items()})
        said = fresh.stdout.readline().split()
    finally:
        os.kill(service, signal.SIGCONT)
        fresh.kill()
        fresh.communicate()
    assert not wrong
    assert said[0] in ("Unavailable", "RequestTimeout")
    assert float(said[1]) < TIMEOUT + SLACK
    # What was left behind does no harm: the cluster serves, and nobody has ended it.
    with wait_until(lambda: connected(cluster.name)) as kv:
        assert kv.get("k").value == b"v"


def connected(name: str) -> Any:
    try:
        return raykeeper.connect(name)
    except KeeperError:
        return None


def test_nothing_outlasts_its_timeout_while_the_members_are_stopped(
    clusters: Made, tmp_path: Path, stopped: list[int]
) -> None:
    cluster = clusters.launch(members=1, supervised=False)
    hub_pool._close_all()
    member = cluster.members()[0]
    pid = pid_of(member.actor)
    stopped.append(pid)
    os.kill(pid, signal.SIGSTOP)
    table = {**CLUSTER, **MODULE}
    calls = {name: call for name, call in table.items() if name not in ENDS_IT}
    wrong = late({name: lambda call=call: call(cluster, tmp_path) for name, call in calls.items()})
    assert not wrong
