"""etcd's clients at a proxy of RayKeeper and at etcd: the same programs, the same calls, in one run.

The proxy is the command ``raykeeper proxy`` on the members' machine, as etcd's members are. The handle's own calls are
measured at the same cluster, right before: what a proxy adds is the difference.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import go_client
from accounting import come_to_rest
from crew import Crew
from faces import Address
from measures import Plan, Row, load
from systems import Etcd, RayKeeper, running
from targets import HANDLE, PROXY, PROXY_FROM_GO, VIA_PROXY

IN_FLIGHT = (1, 100)
OPS = ("put", "get")
START_S = 60.0
NOTES = (
    "Puts and linearizable gets by aetcd and by etcd's Go client, at one `raykeeper proxy` and at the leader of etcd. "
    "The proxy is a fourth process on the machine; etcd has three."
)


def at_proxy(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """The handle's calls, and those of etcd's clients through a proxy."""
    with running(RayKeeper(folder)) as system, proxy(system.address()) as port:
        yield from _cells(HANDLE, system.kind, system.address(), plan, say)
        yield from _cells(PROXY, Etcd.kind, {"ports": [port]}, plan, say)
        yield from _from_go(PROXY_FROM_GO, port, plan, say)


def at_etcd(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """Those of etcd's clients at etcd."""
    with running(Etcd(folder)) as system:
        yield from _cells(Etcd.name, Etcd.kind, system.address(), plan, say)
        yield from _from_go(go_client.NAME, system.address()["ports"][0], plan, say)


def _cells(
    name: str, kind: str, address: Address, plan: Plan, say: Callable[[str], None], ops: tuple[str, ...] = OPS
) -> Iterator[Row]:
    with Crew(kind, address, 1) as crew:
        crew.clients[0].do("prepare")
        come_to_rest()
        for op in ops:
            for together in IN_FLIGHT:
                say(f"{name}: {op}, {together} in flight")
                row = load(Row(name, op, "coroutines", 1, together), crew.clients, plan.seconds)
                row.measure = VIA_PROXY.format(op)
                yield row


def _from_go(name: str, port: int, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    program = go_client.build()
    for op in OPS:
        for together in IN_FLIGHT:
            say(f"{name}: {op}, {together} in flight")
            row = Row(name, VIA_PROXY.format(op), "coroutines", 1, together)
            yield go_client.load(program, row, f"127.0.0.1:{port}", op, plan.seconds)


@contextlib.contextmanager
def proxy(address: Address) -> Iterator[int]:
    """The command, at a running cluster; its port."""
    words = [sys.executable, "-m", "raykeeper", "proxy", "--cluster", address["name"], "--address", address["ray"]]
    process = subprocess.Popen(
        [*words, "--listen", "127.0.0.1:0", "-o", "json"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the coordinator
    )
    try:
        yield int(json.loads(_line(process, START_S))["url"].rpartition(":")[2])
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait(10)


def _line(process: subprocess.Popen[bytes], patience: float) -> bytes:
    """The first line that it prints."""
    assert process.stdout is not None
    line, end = b"", time.monotonic() + patience
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(f"the proxy does not serve within {patience:g} s")
        part = process.stdout.read1(4096)  # type: ignore[attr-defined]
        if not part:
            raise RuntimeError("the proxy has ended")
        line += part
    return line
