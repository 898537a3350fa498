"""A hundred thousand keys go in one revision, by a delete and with a lease, while members go on hearing each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from lab.ray.contents import content
from lab.ray.tools import Made, leader, wait_until
from raykeeper import Op

pytestmark = pytest.mark.survival

COUNT = 100_000
STEP = 125
PATIENCE = 120.0


def fill(kv: Any, prefix: str, lease: Any = None) -> None:
    """``COUNT`` keys, by eight threads."""

    def write(first: int) -> None:
        kv.txn(
            success=[Op.put(f"{prefix}{n:06}", b"v" * 40, lease=lease) for n in range(first, first + STEP)],
            timeout=PATIENCE,
        )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(0, COUNT, STEP)))


@contextmanager
def others_at_work(kv: Any, prefix: str) -> Iterator[tuple[set[int], list[float]]]:
    """Look at a prefix at any member, and write elsewhere, all the time: what the looks have counted, and how long each
    write took. Both have begun when the block does, and none has failed when it has ended."""
    counts: set[int] = set()
    took: list[float] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            counts.add(kv.range(prefix=prefix, count_only=True, serializable=True, timeout=PATIENCE).count)

    def write() -> None:
        while not stop.wait(0.01):
            began = time.monotonic()
            kv.put("elsewhere", "x", timeout=PATIENCE)
            took.append(time.monotonic() - began)

    with ThreadPoolExecutor(2) as threads:
        working = [threads.submit(work) for work in (look, write)]
        try:
            wait_until(lambda: counts and took, what="the others are at work")
            yield counts, took
        finally:
            stop.set()
        for each in working:
            each.result()


def goes_at_once(cluster: Any, kv: Any, prefix: str, end: Callable[[], object]) -> None:
    """All keys of the prefix go by what ``end`` does: at one revision, and nobody sees some of them gone."""
    lead, term = leader(cluster).id, cluster.status().term
    with others_at_work(kv, prefix) as (counts, took), kv.watch(prefix=prefix) as watch:
        began = time.monotonic()
        end()
        lasted = time.monotonic() - began
        batch = next(iter(watch.batches()))
    assert counts <= {COUNT, 0}
    assert len(batch.events) == COUNT
    assert len({event.kv.mod_revision for event in batch.events}) == 1
    assert {event.type for event in batch.events} == {"delete"}
    assert kv.range(prefix=prefix, count_only=True).count == 0
    assert (leader(cluster).id, cluster.status().term) == (lead, term), "there was an election"
    print(f"\n{prefix}: {COUNT} keys went in {lasted:.2f} s; the slowest of {len(took)} puts took {max(took):.2f} s")


def test_a_hundred_thousand_keys_go_in_one_revision(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client(timeout=PATIENCE)
    fill(kv, "range/")
    goes_at_once(cluster, kv, "range/", lambda: kv.delete(prefix="range/", timeout=PATIENCE))
    with kv.lease(600.0) as lease:
        fill(kv, "leased/", lease)
        goes_at_once(cluster, kv, "leased/", lease.revoke)

    def equal() -> bool:
        return len({content(member) for member in cluster.members()}) == 1

    wait_until(equal, PATIENCE, "all members are equal")
