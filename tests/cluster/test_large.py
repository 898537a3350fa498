"""A large state moves to a new member under load: nobody is deposed, and those who write hardly notice.

``make large`` runs it, with ``MEGABYTES=n`` of state (1024 by default), and prints what it measured. Not part of
``make test``: it writes the state's size a dozen times to the disk.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from raylab.tools import Made, leader, serving, wait_until

pytestmark = pytest.mark.long
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

MEGABYTES = int(os.environ.get("RAYKEEPER_LARGE_MEGABYTES") or 1024)
VALUE = 256 * 1024


def fill(kv: Any, megabytes: int) -> None:
    """So many incompressible bytes, by eight threads."""
    count = megabytes * (1 << 20) // VALUE

    def write(n: int) -> None:
        kv.put(f"large/{n:06}", random.Random(n).randbytes(VALUE), timeout=120)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(count)))


class Writers:
    """Threads that write small values all the time, and how long each write took."""

    def __init__(self, kv: Any) -> None:
        self._kv = kv
        self._stopping = False
        self.took: list[tuple[float, float]] = []
        """(when it ended, seconds)"""
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        n = 0
        while not self._stopping:
            began = time.monotonic()
            self._kv.put(f"small/{number}/{n % 100}", b"x" * 100, timeout=60)
            ended = time.monotonic()
            self.took.append((ended, ended - began))
            n += 1

    def stop(self) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(120)

    def between(self, begin: float, end: float) -> str:
        """What the writes that ended then were like."""
        took = sorted(seconds for ended, seconds in self.took if begin <= ended < end)
        pick = lambda share: took[min(len(took) - 1, int(share * len(took)))] * 1000  # noqa: E731
        return (
            f"{len(took) / (end - begin):.0f} writes/s, p50 {pick(0.5):.1f} ms, p99 {pick(0.99):.1f} ms, "
            f"slowest {pick(1.0):.0f} ms"
        )


def _content(member: Any) -> tuple[int, str]:
    state = member._loop.server.state
    return state.applied_index, state.content_hash()


def content(member: Any) -> tuple[int, str]:
    """A member's applied index and the hash of its content."""
    return ray.get(member.actor.__ray_call__.remote(_content), timeout=300)  # type: ignore[no-any-return]


def test_a_large_state_moves_to_a_new_member_under_load(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    began = time.monotonic()
    fill(kv, MEGABYTES)
    print(f"\n{MEGABYTES} MB written in {time.monotonic() - began:.0f} s")
    lead, term = leader(cluster).id, cluster.status().term
    writers = Writers(kv)
    start = time.monotonic()
    threading.Event().wait(10)  # what they do when nothing else is going on
    joining = time.monotonic()
    try:
        new = cluster.add_member(timeout=900)
        joined = time.monotonic()
        wait_until(lambda: cluster.status().alarms == (), 60)
    finally:
        writers.stop()
    print(f"a new member has caught up and votes after {joined - joining:.1f} s")
    print(f"before:    {writers.between(start, joining)}")
    print(f"meanwhile: {writers.between(joining, joined)}")
    status = cluster.status()
    assert (status.leader, status.term) == (lead, term), "the leader was changed"
    wait_until(lambda: serving(cluster, 4), 60)

    def equal() -> bool:
        return len({content(member) for member in cluster.members()}) == 1

    wait_until(equal, 600, "all are equal")
    size = next(member.db_size for member in cluster.members() if member.id == new.id)
    assert size > MEGABYTES << 19
