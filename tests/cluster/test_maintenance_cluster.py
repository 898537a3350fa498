"""A cluster that looks after itself, on real processes: room on its disks, and equal contents."""

from __future__ import annotations

import random
import time
from typing import Any

import msgspec
import pytest

from lab.ray.tools import Made, wait_until
from raykeeper import Cluster, NoSpace
from raykeeper.actors.leader_call import administer, expect
from raykeeper.limits import Limits, Settings, Timings, encode_settings
from raykeeper.schema.commands import Configure
from raykeeper.store.data_dir import DataDir
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.mvcc import RECORD

pytestmark = pytest.mark.survival


def alarms(cluster: Cluster) -> tuple[str, ...]:
    return cluster.status().alarms


def filled(kv: Any, most: int = 400) -> int:
    """Put until the cluster refuses for lack of space; how many were taken."""
    for n in range(most):
        try:
            kv.put(f"big/{n:04}", random.Random(n).randbytes(100_000))  # which no compression makes smaller
        except NoSpace:
            return n
    raise AssertionError(f"{most} puts were all taken")


def test_over_its_quota_the_cluster_takes_no_puts_until_there_is_room(clusters: Made) -> None:
    cluster = clusters.launch(limits={"quota_bytes": 4_000_000})
    kv = cluster.client()
    lease = kv.lease(5.0)
    kv.put("leased", "v", lease=lease.id)
    taken = filled(kv)
    assert taken >= 35, "the alarm came long before the quota was reached"
    said = alarms(cluster)
    assert said
    assert all("NOSPACE: its data takes" in line and "quota of 4.0 MB" in line for line in said)

    for refused in (lambda: kv.put("k", "v"), lambda: kv.lease(5.0), lambda: kv.counter("c").add(1)):
        with pytest.raises(NoSpace) as refusal:
            refused()
        assert refusal.value.applied is False
    assert kv.get("big/0000").value == random.Random(0).randbytes(100_000)
    assert kv.delete(prefix="big/").deleted == taken
    kv.compact(kv.revision())
    assert not lease.lost.is_set()
    wait_until(lambda: not alarms(cluster), what="the alarms have ended by themselves")
    wait_until(lambda: _puts(kv), 5.0, what="puts are taken again")
    assert kv.get("leased") is not None
    wait_until(lambda: cluster.check().equal, what="equal contents")


def _puts(kv: Any) -> bool:
    try:
        kv.put("k", "v")
        return True
    except NoSpace:
        return False


def test_a_disk_that_is_nearly_full_stops_puts_before_it_is_full(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("k", "v")

    def reserve(size: int) -> None:
        settings = encode_settings(Settings(limits=Limits(reserve_bytes=size)))
        expect(administer(cluster.name, cluster.id, Configure(settings), time.monotonic() + 10))

    reserve(1 << 60)
    wait_until(lambda: not _puts(kv), 10.0, what="puts are refused")
    wait_until(lambda: len(alarms(cluster)) == 3, what="each member's alarm")
    assert all("MB are free on its disk" in line for line in alarms(cluster))
    assert kv.delete("k").deleted == 1
    reserve(Limits().reserve_bytes)
    wait_until(lambda: _puts(kv), 10.0, what="puts are taken again")
    wait_until(lambda: not alarms(cluster), what="no alarm")


def tamper(folder: str) -> None:
    """Change one value in a stopped member's state, as a bug or a cosmic ray would that no checksum sees."""
    opened = DataDir.open(RocksDisk(), folder)
    with opened.state.reading() as engine:
        key, record = next(iter(engine.iterate("keys", b"u")))
        engine.write([("keys", key, record[: RECORD.size] + b"forged")])
        engine.flush()
    opened.close()


def test_a_member_whose_content_is_odd_is_named_and_mends_itself(clusters: Made) -> None:
    timings = {"check_interval": 600.0}
    cluster = clusters.launch(timings=timings)
    kv = cluster.client()
    for n in range(50):
        kv.put(f"k{n}", f"v{n}")
    compared = cluster.check()
    assert compared.equal
    assert sorted(compared.hashes) == [1, 2, 3]
    assert not compared.silent
    cluster.shutdown()
    tamper(str(clusters.folder(2)))

    cluster = clusters.launch(timings=timings)
    compared = cluster.check()
    assert (compared.odd, compared.certain) == ((2,), True)
    assert cluster.status().leader
    settings = Settings(timings=msgspec.structs.replace(Timings(), check_interval=1.0))
    # The leader compares by itself; the settings that it began with count, so it starts over.
    expect(administer(cluster.name, cluster.id, Configure(encode_settings(settings)), time.monotonic() + 10))
    cluster.shutdown()
    cluster = clusters.launch()
    kv = cluster.client()

    def mended() -> bool:
        compared = cluster.check()
        return compared.equal and len(compared.hashes) == 3 and not alarms(cluster)

    wait_until(mended, 90.0, what="the odd member has its state from the others, and no alarm")
    for n in range(50):
        for _ in range(3):
            assert kv.get(f"k{n}", serializable=True).text == f"v{n}"
