"""A proxy's port left alone with clients that do harm, for as long as is asked: ``python -m soak.hostile_proxy``.

etcd's services over one member, on a port, in a process of their own. Rounds follow each other: all attacks at once
(``lab.http2.attacks``), and then a calm. Two honest clients put all the while, one on a connection that it keeps, and
one that makes a new one each time. Each round is one line. It fails if the process dies, an honest put fails, memory,
threads or descriptors exceed their bounds, or a calm does not give back what an attack took: what leaks a little in
each round shows in a night.
"""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from lab.http2.http_client import request
from lab.http2.port_process import FOR_PROGRAMS, PortProcess, memory, peak_memory, port_process
from raykeeper.limits import MAX_PROXY_LONG_READS, Limits

HELD_BYTES = 128 * 1024 * 1024
BESIDE_BYTES = 200 * 1024 * 1024 + MAX_PROXY_LONG_READS * 5 * Limits().max_page_bytes
"""What a member and a proxy take beside what is counted."""
GIVEN_BACK_BYTES = 100 * 1024 * 1024
"""Memory that a calm may have more than the first one: the allocator keeps some."""
MORE_THREADS, MORE_DESCRIPTORS = 16, 32
"""The same of these, against the beginning."""
MAX_DESCRIPTORS = 4096
ATTACK_S, CALM_S = 30.0, 60.0
"""A calm ends as soon as everything is given back, and fails after this."""
VALUE = bytes(1000)


class Honest:
    """A client that puts now and then.

    Args:
        put: one put; it raises ``OSError`` if that failed.
    """

    def __init__(self, put: Callable[[], int]) -> None:
        self._put = put
        self._over = threading.Event()
        self.times: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            try:
                if (status := self._put()) not in (200, 201):
                    self.failures.append(f"status {status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.times.append(time.monotonic() - began)

    def taken(self) -> str:
        """Of the puts since the last call: median and slowest."""
        times, self.times = self.times, []
        if not times:
            return "none done"
        return f"{len(times)} puts, median {statistics.median(times):.3f} s, slowest {max(times):.2f} s"

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def kept_connection(endpoint: str) -> Callable[[], int]:
    """Puts on one connection."""
    client = http.client.HTTPConnection(endpoint, timeout=60)

    def put() -> int:
        client.request("PUT", "/kv/hostile/kept", VALUE)
        reply = client.getresponse()
        reply.read()
        return reply.status

    return put


@dataclass
class Usage:
    """What the process has."""

    bytes: int
    threads: int
    descriptors: int


def usage(pid: int) -> Usage:
    """Of this moment."""
    return Usage(memory(pid), len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))


@dataclass
class Soak:
    """The rounds so far."""

    port: PortProcess
    first: Usage
    calm: Usage | None = None
    """Of the first calm."""
    faults: list[str] = field(default_factory=list)

    def attack(self, seconds: float) -> Usage:
        """All attacks at once; the most that the process had meanwhile."""
        command = (sys.executable, "-m", "lab.http2.attacks", self.port.endpoint, str(seconds))
        most = usage(self.port.pid)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=FOR_PROGRAMS) as process:
            while process.poll() is None:
                time.sleep(0.5)
                now = usage(self.port.pid)
                most = Usage(*map(max, *((each.bytes, each.threads, each.descriptors) for each in (most, now))))
        return most

    def rest(self, seconds: float) -> Usage:
        """A calm: what the process has once it has closed what the attack left, or when the time is over."""
        until = time.monotonic() + seconds
        while (now := usage(self.port.pid)).descriptors > self.first.descriptors + MORE_DESCRIPTORS:
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        return now

    def check(self, most: Usage, calm: Usage) -> None:
        """Note what is beyond its bound."""
        self.calm = self.calm or calm
        for what, value, bound in (
            ("bytes", peak_memory(self.port.pid), HELD_BYTES + BESIDE_BYTES),
            ("descriptors", most.descriptors, MAX_DESCRIPTORS),
            ("threads", most.threads, self.first.threads + MORE_THREADS),
            ("bytes in a calm", calm.bytes, self.calm.bytes + GIVEN_BACK_BYTES),
            ("descriptors in a calm", calm.descriptors, self.first.descriptors + MORE_DESCRIPTORS),
            ("threads in a calm", calm.threads, self.first.threads + MORE_THREADS),
        ):
            if value > bound:
                self.faults.append(f"{value:,} {what}, and the bound is {bound:,}")


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
def main(minutes: float) -> None:
    """Attack a proxy's port until the time is over, one round at least."""
    number = 0
    with port_process(HELD_BYTES) as port:
        for key in range(8):
            request(port.endpoint, "PUT", f"/kv/hostile/{key}", bytes(500_000))
        kept = Honest(kept_connection(port.endpoint))
        fresh = Honest(lambda: request(port.endpoint, "PUT", "/kv/hostile/fresh", VALUE).status)
        time.sleep(2)
        soak = Soak(port, usage(port.pid))
        until = time.monotonic() + 60 * minutes
        try:
            while not number or (time.monotonic() < until and not soak.faults):
                number += 1
                most = soak.attack(ATTACK_S)
                said = f"kept connection: {kept.taken()}; new ones: {fresh.taken()}"
                began = time.monotonic()
                calm = soak.rest(CALM_S)
                rest = time.monotonic() - began
                soak.check(most, calm)
                print(f"round {number}: most {_shown(most)}; calm {_shown(calm)}; {said}", flush=True)
                print(f"    in a calm of {rest:.1f} s: {kept.taken()}; {fresh.taken()}", flush=True)
                soak.faults += [*kept.failures, *fresh.failures]
        finally:
            kept.close()
            fresh.close()
    for fault in soak.faults[:20]:
        print(fault)
    print(f"{number} rounds; {'failed' if soak.faults else 'all is well'}")
    sys.exit(bool(soak.faults))


def _shown(seen: Usage) -> str:
    return f"{seen.bytes >> 20} MiB, {seen.threads} threads, {seen.descriptors} descriptors"


if __name__ == "__main__":
    main()
