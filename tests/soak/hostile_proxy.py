"""A proxy's port left alone with clients that do harm, for as long as is asked: ``python -m soak.hostile_proxy``.

etcd's services over one member, on a port of all addresses of this machine, in a process of their own. Rounds follow
each other: all attacks at once (``lab.http2.attacks``), and then a calm, in which the history of what the attacks have
put is compacted. Two honest clients put all the while, by the
address that other machines know this one by: one on a connection that it keeps, and one that makes a new one each time.
Each round is one line. It fails if the process dies, an honest put fails, memory, threads or descriptors exceed their
bounds, a new connection of an honest client waits for too long, or a calm does not give back what an attack took. The
summary at the end compares the calms of the first and the last quarter of the rounds: what leaks a little in each round
shows in a night.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from lab.http2.attacks import CALLS
from lab.http2.http_client import request
from lab.http2.port_process import FOR_PROGRAMS, PortProcess, memory, most_memory, peak_memory, port_process
from raykeeper.limits import MAX_PROXY_SILENT, MAX_PROXY_WAITING

HELD_BYTES = 128 * 1024 * 1024
"""What the port may keep for its clients."""
GIVEN_BACK_BYTES = 100 * 1024 * 1024
"""Memory that a calm may have more than those of the warm-up: the allocator keeps some."""
WARM_UP = 4
"""Rounds until the database's buffers and the allocator have what they will keep."""
MORE_THREADS, MORE_DESCRIPTORS = 16, 32
"""The same of these, against the beginning."""
MAX_DESCRIPTORS = 4096 + MAX_PROXY_SILENT + MAX_PROXY_WAITING
NEW_S, NEW_FACTOR = 1.0, 5.0
"""The median of puts on new connections may be this long, and so many times that on one that is kept: the rest is the
machine's..."""
SLOW_ROUNDS = 0.25
"""... which may do something else for a while: so many of the rounds may be slower, and one in any case."""
ATTACK_S, LEAST_CALM_S, CALM_S = 30.0, 5.0, 60.0
"""A calm takes a moment, ends as soon as everything is given back, and fails after this."""
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
        self.median = 0.0
        """Of those that were taken last."""
        self.slowest = 0.0
        """Of all."""
        self.puts = 0
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
            self.slowest = max(self.slowest, self.times[-1])
            self.puts += 1

    def taken(self) -> str:
        """Of the puts since the last call: median and slowest."""
        times, self.times = self.times, []
        self.median = statistics.median(times) if times else 0.0
        if not times:
            return "none done"
        return f"{len(times)} puts, median {statistics.median(times):.3f} s, slowest {max(times):.2f} s"

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def own_address() -> str:
    """The address that other machines know this one by."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:  # it does not know its own name
        return "127.0.0.1"


def kept_connection(endpoint: str) -> Callable[[], int]:
    """Puts on one connection."""
    client = http.client.HTTPConnection(endpoint, timeout=60)

    def put() -> int:
        client.request("PUT", "/kv/hostile/kept", VALUE)
        reply = client.getresponse()
        reply.read()
        return reply.status

    return put


class NewConnections:
    """Puts on a new connection each."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.slowest_connect = 0.0
        """Until the kernel of the other side had the connection; the rest of a put is the proxy's."""

    def put(self) -> int:
        client = http.client.HTTPConnection(self._endpoint, timeout=60)
        try:
            began = time.monotonic()
            client.connect()
            self.slowest_connect = max(self.slowest_connect, time.monotonic() - began)
            client.request("PUT", "/kv/hostile/fresh", VALUE)
            reply = client.getresponse()
            reply.read()
            return reply.status
        finally:
            client.close()


@dataclass
class Usage:
    """What the process has."""

    bytes: int
    threads: int
    descriptors: int

    def most(self, other: Usage) -> Usage:
        """The larger of each."""
        return Usage(
            max(self.bytes, other.bytes),
            max(self.threads, other.threads),
            max(self.descriptors, other.descriptors),
        )


def usage(pid: int) -> Usage:
    """Of this moment."""
    return Usage(memory(pid), len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))


def compact(endpoint: str) -> None:
    """Forget the history: the attacks put long values, and the disk is not what they are about."""
    asked = json.dumps({"key": base64.b64encode(b"hostile/kept").decode()}).encode()
    found = request(endpoint, "POST", "/v3/kv/range", asked)
    revision = json.loads(found.body)["header"]["revision"]
    request(endpoint, "POST", "/v3/kv/compaction", json.dumps({"revision": revision, "physical": True}).encode())


@dataclass
class Soak:
    """The rounds so far."""

    port: PortProcess
    first: Usage
    calm: Usage | None = None
    """The most of the calms of the warm-up: how much the allocator keeps differs from round to round."""
    faults: list[str] = field(default_factory=list)
    calms: list[tuple[float, Usage]] = field(default_factory=list)
    """Of all rounds, with the hours since the beginning."""
    most: Usage = field(default_factory=lambda: Usage(0, 0, 0))
    began: float = field(default_factory=time.monotonic)
    slow: list[float] = field(default_factory=list)
    """Medians of puts on new connections that were too slow, in seconds."""

    def attack(self, seconds: float) -> Usage:
        """All attacks at once; the most that the process had meanwhile."""
        command = (sys.executable, "-m", "lab.http2.attacks", self.port.endpoint, str(seconds))
        most = usage(self.port.pid)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=FOR_PROGRAMS) as process:
            while process.poll() is None:
                time.sleep(0.5)
                now = usage(self.port.pid)
                most = most.most(now)
        return most

    def rest(self, seconds: float) -> Usage:
        """A calm: what the process has once it has closed what the attack left, or when the time is over."""
        until = time.monotonic() + seconds
        compact(self.port.endpoint)
        time.sleep(LEAST_CALM_S)
        while (now := usage(self.port.pid)).descriptors > self.first.descriptors + MORE_DESCRIPTORS:
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        return now

    def most_memory(self) -> int:
        """The bound of the process's memory."""
        return most_memory(self.first.bytes, HELD_BYTES, self.most.descriptors, CALLS)

    def check(self, most: Usage, calm: Usage) -> None:
        """Note what is beyond its bound."""
        if self.calm is None or len(self.calms) < WARM_UP:
            self.calm = calm if self.calm is None else self.calm.most(calm)
        self.calms.append(((time.monotonic() - self.began) / 3600, calm))
        self.most = self.most.most(most)
        for what, value, bound in (
            ("bytes", peak_memory(self.port.pid), self.most_memory()),
            ("descriptors", most.descriptors, MAX_DESCRIPTORS),
            ("threads", most.threads, self.first.threads + MORE_THREADS),
            ("bytes in a calm", calm.bytes, self.calm.bytes + GIVEN_BACK_BYTES),
            ("descriptors in a calm", calm.descriptors, self.first.descriptors + MORE_DESCRIPTORS),
            ("threads in a calm", calm.threads, self.first.threads + MORE_THREADS),
        ):
            if value > bound:
                self.faults.append(f"{value:,} {what}, and the bound is {bound:,}")

    def summary(self, kept: Honest, fresh: Honest) -> str:
        """What a night has shown, in a few lines."""
        part = max(1, len(self.calms) // 4)
        (first_at, first), (last_at, last) = (_middle(each) for each in (self.calms[:part], self.calms[-part:]))
        hours = last_at - first_at
        lines = [
            f"{'':14}{'at first':>10}{'at most':>10}{'calm, first quarter':>22}{'last quarter':>15}{'an hour':>10}",
        ]
        for name, unit in (("bytes", 1 << 20), ("threads", 1), ("descriptors", 1)):
            begin, most, early, late = (getattr(each, name) / unit for each in (self.first, self.most, first, last))
            slope = f"{(late - early) / hours:+.1f}" if hours else ""
            title = "memory (MiB)" if unit > 1 else name
            lines.append(f"{title:14}{begin:10.0f}{most:10.0f}{early:22.0f}{late:15.0f}{slope:>10}")
        for title, client in (("a connection that is kept", kept), ("new connections", fresh)):
            failed = f"{len(client.failures)} failed" if client.failures else "none failed"
            lines.append(f"puts by {title}: {client.puts:,}, {failed}, slowest {client.slowest:.2f} s")
        return "\n".join(lines)


def _middle(calms: list[tuple[float, Usage]]) -> tuple[float, Usage]:
    """The median of each figure."""
    usages = [calm for _, calm in calms]
    figures = ([getattr(each, name) for each in usages] for name in ("bytes", "threads", "descriptors"))
    return statistics.median(at for at, _ in calms), Usage(*(int(statistics.median(each)) for each in figures))


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
def main(minutes: float) -> None:
    """Attack a proxy's port until the time is over, one round at least."""
    number = 0
    with port_process(HELD_BYTES, "0.0.0.0") as port:
        public = f"{own_address()}:{port.endpoint.rpartition(':')[2]}"
        for key in range(8):
            request(public, "PUT", f"/kv/hostile/{key}", bytes(500_000))
        kept = Honest(kept_connection(public))
        new = NewConnections(public)
        fresh = Honest(new.put)
        time.sleep(2)
        soak = Soak(port, usage(port.pid))
        until = time.monotonic() + 60 * minutes
        try:
            while not number or (time.monotonic() < until and not soak.faults):
                number += 1
                most = soak.attack(ATTACK_S)
                said = f"kept connection: {kept.taken()}; new ones: {fresh.taken()}"
                if fresh.median > NEW_S + NEW_FACTOR * kept.median:
                    soak.slow.append(fresh.median)
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
    if len(soak.slow) > max(1.0, SLOW_ROUNDS * number):
        middle = statistics.median(soak.slow)
        soak.faults.append(f"puts on new connections took {middle:.1f} s in the middle of {len(soak.slow)} rounds")
    if soak.calms:
        print(soak.summary(kept, fresh))
        print(f"the slowest connection took {new.slowest_connect:.2f} s to be made")
    for fault in soak.faults[:20]:
        print(fault)
    print(f"{number} rounds; {'failed' if soak.faults else 'all is well'}")
    sys.exit(bool(soak.faults))


def _shown(seen: Usage) -> str:
    return f"{seen.bytes >> 20} MiB, {seen.threads} threads, {seen.descriptors} descriptors"


if __name__ == "__main__":
    main()
