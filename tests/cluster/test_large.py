"""Large states: one moves to a new member, one is backed up and restored, both under load; a lost member's is replaced.

``make large`` runs this, with ``MEGABYTES=n`` of state (1024 by default), and prints what it measured. No leader is
deposed, and who writes hardly notices. Not part of ``make test``: it writes the size of the state dozens of times.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.contents import content
from lab.ray.nodes import run
from lab.ray.tools import Made, leader, serving, wait_until

pytestmark = pytest.mark.long
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

MEGABYTES = int(os.environ.get("RAYKEEPER_LARGE_MEGABYTES") or 1024)
VALUE = 256 * 1024


def fill(kv: Any, megabytes: int) -> None:
    """This many incompressible bytes, by eight threads."""
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


def test_a_backup_of_a_large_state_is_taken_while_others_write_and_restored(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    fill(kv, MEGABYTES)
    lead, term = leader(cluster).id, cluster.status().term
    writers = Writers(kv)
    start = time.monotonic()
    threading.Event().wait(10)
    begin = time.monotonic()
    try:
        info = cluster.backup(tmp_path / "large.rkbackup", timeout=900)
        end = time.monotonic()
    finally:
        writers.stop()
    print(f"\na backup of {info.bytes / 1e6:.0f} MB took {end - begin:.1f} s")
    print(f"before:    {writers.between(start, begin)}")
    print(f"meanwhile: {writers.between(begin, end)}")
    status = cluster.status()
    assert (status.leader, status.term) == (lead, term), "the leader was changed"
    clusters.end()
    name = f"{cluster.name}-again"
    clusters.also(name)
    begin = time.monotonic()
    again = raykeeper.restore(info.path, name=name, data_dir=str(tmp_path / "restored"), supervised=False, timeout=900)
    print(f"restored, and serves, after {time.monotonic() - begin:.1f} s")
    kv = again.client(timeout=60)
    count = MEGABYTES * (1 << 20) // VALUE
    assert kv.range(prefix="large/", count_only=True).count == count
    for n in random.Random(1).sample(range(count), min(count, 20)):
        assert kv.get(f"large/{n:06}").raw == random.Random(n).randbytes(VALUE)
    wait_until(lambda: serving(again), 60)
    assert len({content(member)[1] for member in again.members()}) == 1


REPLACED = """
from concurrent.futures import ThreadPoolExecutor

def write(n):
    kv.put(f"large/{n:06}", random.Random(n).randbytes(256 * 1024))

with ThreadPoolExecutor(8) as threads:
    list(threads.map(write, range(400)))
lost = next(m for m in cluster.members() if m.role == "follower")
lose(lost.id)
began = time.monotonic()
until(lambda: whole({1, 2, 3, 4} - {lost.id}), 300, "m4 in its place")
print(f"full strength {time.monotonic() - began:.1f} s after the loss of a node, with 100 MB of state")
assert kv.range(prefix="large/", count_only=True).count == 400
new = next(m for m in cluster.members() if m.id == 4)
assert new.db_size > 90_000_000, new.db_size
print("replaced")
done()
"""


def test_full_strength_after_the_loss_of_a_node_with_100_megabytes(tmp_path: Path, scratch: Path) -> None:
    said = run(REPLACED, ["replaced", "done"], tmp_path, scratch, timeout=600)
    assert "full strength" in said
