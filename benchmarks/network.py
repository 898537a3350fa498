"""Members on hosts of their own, with 1 ms between them: the row that a real cluster resembles.

Each of three members has a network namespace; the clients have a fourth. What goes from any of them to any other and
back takes 1 ms longer than the machine itself. Disk and cores are still shared. This program runs itself again in the
clients' namespace, which prints its rows as lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accounting import come_to_rest
from crew import Crew
from faces import Address
from measures import Plan, Row, distribution, load
from namespaces import NETWORK, CommandFailed, Hosts, run, why_not
from systems import Etcd, Missing, RayKeeper, System, running, until

MEASURE = "1 ms between members: {}"
ROUND_TRIP = MEASURE.format("bare round trip")
DELAY_S = 0.0005
"""One way."""
CELLS = (("put", 1), ("get", 1), ("put", 1000), ("get", 1000))
RAY_PORT = 6379
NOTES = (
    "Three members and the clients in network namespaces of their own; to any other and back takes 1 ms. The machine's "
    "disk and cores are shared, and CPU an operation is not counted."
)


class RayKeeperOnHosts(RayKeeper):
    """A Ray node on each host, and a member on each but the first."""

    def __init__(self, folder: str, hosts: list[str]) -> None:
        super().__init__(folder)
        self._hosts = hosts

    def start(self) -> None:
        import ray

        common = ["--disable-usage-stats", "--object-store-memory=100000000", "--num-cpus=2"]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start"]
        head = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={self.folder}/ray"]
        run(*start, *head, f"--node-ip-address={NETWORK}.1", *common)
        for number, host in enumerate(self._hosts[1:], 1):
            place = [f"--resources={json.dumps({f'place-{number}': 1})}", f"--node-ip-address={NETWORK}.{number + 1}"]
            run("ip", "netns", "exec", host, *start, f"--address={NETWORK}.1:{RAY_PORT}", *place, *common)
        ray.init(address=f"{NETWORK}.1:{RAY_PORT}", namespace="bench", log_to_driver=False, logging_level=logging.ERROR)
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == len(self._hosts), "all Ray nodes")
        self._launch()
        until(lambda: len(self.pids()) == 3, "three members")

    def _launch(self) -> None:
        import raykeeper

        places = [f"place-{number}" for number in range(1, len(self._hosts))]
        folder = f"{self.folder}/data"
        self._cluster = raykeeper.launch(name="bench", members=3, data_dir=folder, placement=places, timeout=120)


class EtcdOnHosts(Etcd):
    """A member on each host but the first."""

    def __init__(self, folder: str, hosts: list[str]) -> None:
        super().__init__(folder)
        self._names = hosts

    def _host(self, number: int) -> str:
        return f"{NETWORK}.{number + 2}"

    def _on(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", self._names[number + 1]]


ON_HOSTS: dict[str, Callable[[str, list[str]], System]] = {"raykeeper": RayKeeperOnHosts, "etcd": EtcdOnHosts}


def of(kind: type[System]) -> Callable[[str, Plan, Callable[[str], None]], Iterator[Row]]:
    """The part of a report for one system."""

    def rows(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
        kind(folder).check()
        reason = why_not()
        if reason:
            raise Missing(reason)
        with Hosts(4, DELAY_S) as hosts:
            say(f"the wire between the hosts is {hosts.wire}")
            yield from _inside(hosts, kind.kind, folder, plan.seconds, say)

    return rows


of_raykeeper, of_etcd = of(RayKeeper), of(Etcd)


def _inside(hosts: Hosts, kind: str, folder: str, seconds: float, say: Callable[[str], None]) -> Iterator[Row]:
    """Run this program on the first host, and take its rows as they come."""
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYKEEPER_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    environment |= {"RAY_raylet_start_wait_time_s": "120"}
    words = [*hosts.inside(0), sys.executable, __file__, kind, folder, str(seconds), *hosts.names]
    with Path(folder, "inside.log").open("wb") as log:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"{"):
                said: dict[str, Any] = json.loads(line)
                if "say" in said:
                    say(said["say"])
                else:
                    row = Row(**said)
                    if row.measure == ROUND_TRIP:
                        row.note = f"the wire is {hosts.wire}"
                    yield row
        if process.wait(60):
            raise CommandFailed(Path(folder, "inside.log").read_text()[-2000:])
    finally:
        process.kill()
        process.wait(10)


def _round_trip(address: str) -> list[float]:
    """How long a host takes to refuse a connection: one packet there, and one back."""
    times = []
    for _ in range(101):
        began = time.monotonic()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, 1), 5):
            pass
        times.append(time.monotonic() - began)
    return times


def _measure(system: System, seconds: float, say: Callable[[str], None]) -> Iterator[Row]:
    yield distribution(Row(system.name, ROUND_TRIP, "threads"), _round_trip(f"{NETWORK}.2"))
    address: Address = system.address()
    with Crew(system.kind, address, 1) as crew:
        crew.clients[0].do("prepare")
        come_to_rest()
        for op, together in CELLS:
            say(f"{op}, {together} in flight")
            row = load(Row(system.name, op, "coroutines", 1, together), crew.clients, seconds)
            row.measure, row.cpu_per_op = MEASURE.format(op), None
            yield row


def main() -> None:
    """On the first host: start a system on the others, measure it, and stop it."""
    kind, folder, seconds, *hosts = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def put(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    with running(ON_HOSTS[kind](folder, hosts)) as system:
        for row in _measure(system, float(seconds), lambda text: put(say=text)):
            put(**row.as_dict())


if __name__ == "__main__":
    main()
