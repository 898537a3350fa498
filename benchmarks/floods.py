"""What floods of connections without a token cost: on a port for lanes, and on a proxy's.

Puts go on meanwhile, by a handle on lanes that are open, and through the proxy on a connection that is. Each round has
three parts, in turn: quiet; beside the flood; and beside the same flood at a port of nobody, which costs what the
machine and the flooding process cost, as all of them run on its cores. The flood's own cost is between the last two.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import through_proxy
from accounting import come_to_rest
from crew import ClientProcess, Crew
from measures import Plan, Row, load
from systems import Etcd, RayKeeper, running

RATE = 2000
"""Connections that the flood begins each second: eight times as many as a member lets in."""
ROUNDS = 6
IN_FLIGHT = 10
NOTES = (
    f"Puts by one client process, {IN_FLIGHT} at a time, quiet, beside a flood of {RATE:,} connections a second, and "
    "beside the same flood at a port of nobody, in turn. The note of the flood has its ratios to the other two."
)
Say = Callable[[str], None]
Address = tuple[str, int]


@contextlib.contextmanager
def flood(address: Address) -> Iterator[list[float]]:
    """A flood meanwhile; afterwards: connections a second that were begun, accepted by the kernel, and closed."""
    command = [sys.executable, str(Path(__file__).with_name("flooder.py")), *map(str, address), str(RATE)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    said: list[float] = []
    try:
        yield said
        counts = [float(word) for word in process.communicate(timeout=30)[0].split()]
        said += [count / counts[-1] for count in counts[:-1]]
    finally:
        process.kill()
        process.communicate()


def compare(client: ClientProcess, where: str, address: Address, seconds: float, say: Say) -> Iterator[Row]:
    """One row for each part, of all rounds together."""
    parts = {name: Row(f"puts beside {name}", where, "coroutines", 1, IN_FLIGHT) for name in ("nothing", "it", "wall")}
    names = {"nothing": "quiet", "it": f"{RATE:,} connections a second", "wall": "as many at a port of nobody"}
    rates: dict[str, list[float]] = {name: [] for name in parts}
    latencies: dict[str, list[float]] = {name: [] for name in parts}
    said: list[float] = []
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nobody.listen(0)
        for number in range(ROUNDS):
            say(f"{where}, round {number + 1} of {ROUNDS}")
            for name in parts:
                with contextlib.ExitStack() as stack:
                    if name != "nothing":
                        counted = stack.enter_context(flood(address if name == "it" else nobody.getsockname()))
                    row = load(Row("", "put", "coroutines", 1, IN_FLIGHT), [client], seconds)
                if name == "it":
                    said = counted
                rates[name].append(row.per_second or 0.0)
                latencies[name].append(row.p99 or 0.0)
                parts[name].failed += row.failed
                parts[name].count += row.count
    for name, row in parts.items():
        row.system, row.per_second = names[name], middle(rates[name])
        row.p99 = middle(latencies[name])
    quiet, wall = (
        middle([one / other for one, other in zip(rates["it"], rates[base], strict=True)])
        for base in ("nothing", "wall")
    )
    parts["it"].note = f"x {quiet:.2f} of quiet, x {wall:.2f} of beside a port of nobody; " + (
        f"{said[0]:,.0f} begun, {said[2]:,.0f} closed a second"
    )
    yield from parts.values()


def middle(values: list[float]) -> float:
    """The median."""
    return sorted(values)[len(values) // 2]


def lane_port(cluster: str) -> Address:
    """Where the leader listens for lanes from other nodes: from now on, if it does not yet."""
    import ray

    from raykeeper.actors.discovery import ask_all, member_actors

    actors = member_actors(cluster)
    leader = next(number for number, status in ask_all(actors, "status").items() if status.role == "leader")
    offer = ray.get(actors[leader].lane.remote("elsewhere"))
    return offer.host, offer.port


def rows(folder: str, plan: Plan, say: Say) -> Iterator[Row]:
    """Both ports."""
    with running(RayKeeper(folder)) as system, through_proxy.proxy(system.address()) as port:
        with Crew(system.kind, system.address(), 1) as crew:
            crew.clients[0].do("prepare")
            come_to_rest()
            address = lane_port(system.address()["name"])
            yield from compare(crew.clients[0], "puts, flood of a port for lanes", address, plan.seconds, say)
        with Crew(Etcd.kind, {"ports": [port]}, 1) as crew:
            crew.clients[0].do("prepare")
            come_to_rest()
            yield from compare(crew.clients[0], "puts by a proxy, flood of it", ("127.0.0.1", port), plan.seconds, say)
