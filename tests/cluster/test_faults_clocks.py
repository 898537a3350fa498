"""Clocks that jump by hours: no lease, lock or read breaks, and what nobody keeps still ends in time.

The wall clock of a member's process is Python's, as the switch sets it; its monotonic clock is set under the one place
from which a member takes time. (That a member reads no other clock is what ``test_clock`` and this test say together.)
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import ray

from lab.ray.direct import read, replies, values
from lab.ray.faults import Faults
from lab.ray.load import Load
from lab.ray.tools import Made, leader, serving, wait_until

pytestmark = pytest.mark.survival
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
HOUR = 3600.0


def wall_clock(_: Any) -> float:
    import time

    return time.time()


def off_by(member: Any) -> float:
    """How far a member's wall clock is off."""
    there: float = ray.get(member.actor.__ray_call__.remote(wall_clock), timeout=30)
    return abs(there - time.time())


@pytest.mark.parametrize("who", ["leader", "follower", pytest.param("everybody", marks=pytest.mark.core)])
def test_clocks_that_jump_break_nothing(clusters: Made, faults: Faults, who: str) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    lead = leader(cluster)
    members = cluster.members()
    victims = {
        "leader": [lead],
        "follower": [member for member in members if member.id != lead.id][:1],
        "everybody": list(members),
    }[who]
    load = Load(kv)
    with kv.lock("held", ttl=5) as lock, kv.lease(5) as lease:
        guarded = lock.guard()
        kv.put("leased", "1", lease=lease)
        sign = 1
        for hours in (1, -2, 30, -50):
            for member in victims:
                faults.clock(member.pid, sign * hours * HOUR, hours * HOUR)
                sign = -sign
                wait_until(lambda m=member: off_by(m) > HOUR / 2, 30, "the clock has jumped")  # type: ignore[misc]
            load.wait(30)
            guarded.put("guarded", f"{hours}")
            assert kv.get("leased", timeout=30) is not None
            kv.put("x", f"{hours}")
            assert values(replies([read(member, cluster.id, b"x") for member in cluster.members()])) == {
                f"{hours}".encode()
            }
            assert not lock.lost.is_set()
            assert not lease.lost.is_set()
    assert load.check()
    now = leader(cluster)
    assert (now.id, now.term) == (lead.id, lead.term), "not even the leader has changed"
    # What nobody keeps ends by the clock that passes, not by the one that jumps.
    kept = kv.lease(3, keep_alive=False)
    granted = time.monotonic()
    kv.put("unkept", "1", lease=kept)
    for member in victims:
        faults.clock(member.pid, 5 * HOUR, 7 * HOUR)
    wait_until(lambda: kv.get("unkept", timeout=30) is None, 30, "the lease has ended")
    assert time.monotonic() - granted > 2.9
    wait_until(lambda: serving(cluster), 30)
