"""Ten times the work that the cluster can do: it refuses the rest clearly, stays in shape, and is well soon after."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.crowd import Crowd, connect
from lab.ray.load import Load
from lab.ray.tools import Made, leader, serving, wait_until
from raykeeper.errors import KeeperError

pytestmark = pytest.mark.survival
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROCESSES, IN_FLIGHT = 3, 3000
TIGHT = {
    "max_key_bytes": 1024,
    "max_request_bytes": 16 * 1024,
    "max_batch_bytes": 32 * 1024,
    "max_uncommitted_bytes": 64 * 1024,
    "max_inbox_bytes": 128 * 1024,
    "max_inbox_batches": 8,
}
"""So little room that there is far too much work for it, however fast the machine."""
MEGABYTE = 1024 * 1024


def flood(cluster: str, seconds: float) -> tuple[int, dict[str, int], int, float]:
    """Thousands of writers without a pause: writes done, errors by name, those of unknown outcome, longest call."""
    kv = connect(cluster)
    done, unknown, longest = 0, 0, 0.0
    errors: dict[str, int] = {}

    async def write(n: int, until: float) -> None:
        nonlocal done, unknown, longest
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                await kv.aio.put(f"flood/{n}", b"x" * 1000, timeout=3)
                done += 1
            except KeeperError as error:
                errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
                unknown += error.applied is None
            longest = max(longest, time.monotonic() - began)

    async def all_of_them() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(write(n, until) for n in range(IN_FLIGHT)))

    asyncio.run(all_of_them())
    kv.close()
    return done, errors, unknown, longest


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


class Probe:
    """Asks the cluster for something simple now and then."""

    def __init__(self, members: Any) -> None:
        self._pids = [member.pid for member in members]
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, *map(memory, self._pids))

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self.most


def median_put(kv: Any) -> float:
    times = []
    for n in range(30):
        began = time.monotonic()
        kv.put("probe", str(n), timeout=30)
        times.append(time.monotonic() - began)
    return sorted(times)[len(times) // 2]


@pytest.mark.parametrize("limits", [{}, TIGHT], ids=["room for it", "no room for it"])
def test_ten_times_the_work(clusters: Made, crowd: Crowd, limits: dict[str, int]) -> None:
    # Members and clients share the machine's few cores here: an election must not be lost to the client's hunger.
    cluster = clusters.launch(limits=limits, timings={"election_timeout": 3.0})
    kv = cluster.client()
    people = crowd.take(PROCESSES)
    quiet = median_put(kv)
    lead = leader(cluster)
    load = Load(kv, threads=2, timeout=30)
    before = max(memory(member.pid) for member in cluster.members())
    probe = Probe(cluster.members())
    results = ray.get([person.start(flood, cluster.name, 8.0) for person in people], timeout=200)
    most = probe.end()
    assert most - before < 400 * MEGABYTE, f"a member grew from {before} to {most} bytes"
    assert all(done for done, *_ in results), results
    refused = sum(sum(errors.values()) for _, errors, *_ in results)
    kinds = {name for _, errors, *_ in results for name in errors}
    assert kinds <= {"Unavailable", "RequestTimeout"}, kinds
    if limits:
        assert refused, "nothing was refused: there was room for all of it"
    assert max(longest for *_, longest in results) < 30, "calls end near their timeout"
    now = leader(cluster)
    assert (now.id, now.term) == (lead.id, lead.term), "a leader was lost to the load"
    load.wait(5)
    assert load.check()
    wait_until(lambda: median_put(kv) < max(0.05, 5 * quiet), 20, "full speed again")
    wait_until(lambda: serving(cluster), 30)


@pytest.mark.core
def test_more_calls_than_a_process_may_have_open_are_refused_at_once(clusters: Made) -> None:
    cluster = clusters.launch(limits={"max_batch_requests": 50, "max_pending_requests": 100})
    kv = cluster.client()

    async def many() -> list[Any]:
        puts = [kv.aio.put(f"a/{n}", "x") for n in range(5000)]
        return await asyncio.gather(*puts, return_exceptions=True)

    outcomes = asyncio.run(many())
    refused = [each for each in outcomes if isinstance(each, raykeeper.Unavailable)]
    done = [each for each in outcomes if not isinstance(each, Exception)]
    assert len(refused) + len(done) == 5000
    assert done
    assert refused
    assert all(error.applied is False for error in refused)
    assert kv.range(prefix="a/", count_only=True).count == len(done)
