"""Links between members that are cut, in every shape: the majority serves, the rest serves nothing stale."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import raykeeper
from lab.ray.direct import keep, read, replies, values
from lab.ray.faults import CLIENT, Faults, cut, rule
from lab.ray.load import Load
from lab.ray.tools import Made, leader, serving, wait_until

pytestmark = pytest.mark.survival


def others(cluster: Any, member: Any) -> list[int]:
    return [each.id for each in cluster.members() if each.id != member.id]


def whole(cluster: Any, members: int = 3) -> None:
    """All members serve, and have applied the same."""

    def level() -> bool:
        status = cluster.status()
        same = len({member.applied_index for member in status.members}) == 1
        return same and serving(cluster, members)

    wait_until(level, 60, "whole again")


@pytest.mark.parametrize("how", [pytest.param("drop", marks=pytest.mark.core), "hold"])
def test_a_leader_that_is_cut_off_is_replaced_and_serves_nothing_stale(
    clusters: Made, faults: Faults, how: str
) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    old = leader(cluster)
    kv.put("x", "old")
    load = Load(kv)
    load.wait(20)
    faults.set(cut([old.id], others(cluster, old), how))  # clients still reach it
    kv.put("x", "new", timeout=60)
    answers = [read(old, cluster.id, b"x", 2.0) for _ in range(20)]
    load.wait(50)
    faults.heal()
    answers += [read(old, cluster.id, b"x") for _ in range(20)]
    assert values(replies(answers)) <= {b"new"}
    whole(cluster)
    assert leader(cluster).id != old.id
    assert load.check()
    assert faults.counts()[how]


def test_a_follower_that_is_cut_off_disturbs_nobody(clusters: Made, faults: Faults) -> None:
    """Nor when it comes back: pre-votes and leader stickiness keep the leader."""
    cluster = clusters.launch(timings={"election_timeout": 2.0})
    load = Load(cluster.client())
    load.wait(20)
    lead = leader(cluster)
    for follower in [member for member in cluster.members() if member.id != lead.id]:
        faults.set(cut([follower.id], [*others(cluster, follower), CLIENT]))
        load.wait(50)
        wait_until(lambda f=follower: _role(cluster, f.id) == "pre-candidate", 30, "it campaigns")  # type: ignore[misc]
        faults.heal()
        whole(cluster)
    assert load.check()
    now = leader(cluster)
    assert (now.id, now.term) == (lead.id, lead.term)


def _role(cluster: Any, member: int) -> str:
    return next(each.role for each in cluster.members() if each.id == member)


def test_a_leader_with_a_minority_of_five(clusters: Made, faults: Faults) -> None:
    cluster = clusters.launch(members=5)
    load = Load(cluster.client())
    load.wait(20)
    old = leader(cluster)
    friend, *majority = others(cluster, old)
    faults.set(cut([old.id, friend], majority))
    wait_until(lambda: cluster.status().leader in majority, 60, "the majority has a leader")
    load.wait(50)
    faults.heal()
    whole(cluster, 5)
    assert load.check()


@pytest.mark.core
def test_no_majority_anywhere_means_no_answer_and_then_all_is_well(clusters: Made, faults: Faults) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("a", "1")
    lease = kv.lease(60, keep_alive=False)
    members = cluster.members()
    faults.set(cut([1], [2, 3]), cut([2], [3]))
    with pytest.raises((raykeeper.Unavailable, raykeeper.RequestTimeout)) as caught:
        kv.put("a", "2", timeout=3)
    assert caught.value.applied is None
    with pytest.raises((raykeeper.Unavailable, raykeeper.RequestTimeout)):
        kv.get("a", timeout=2)
    assert values(replies([read(member, cluster.id, b"a", 1.0) for member in members])) == set()
    kept = replies([keep(member, cluster.id, lease.id, 1.0) for member in members])
    assert {type(answer).__name__ for answer in kept} == {"Refused"}
    faults.heal()
    assert kv.put("a", "3", timeout=60).revision
    whole(cluster)
    lease.revoke()


@pytest.mark.parametrize(
    "deaf",
    [
        pytest.param(True, marks=pytest.mark.core, id="nothing arrives at it"),
        pytest.param(False, id="nothing of it arrives"),
    ],
)
def test_a_leader_with_one_way_links_gives_way(clusters: Made, faults: Faults, deaf: bool) -> None:
    """A leader that hears nobody stands down, though everybody hears it; one that nobody hears is replaced."""
    cluster = clusters.launch()
    load = Load(cluster.client())
    load.wait(20)
    old = leader(cluster)
    faults.set(rule("drop", other, old.id) if deaf else rule("drop", old.id, other) for other in others(cluster, old))
    wait_until(lambda: cluster.status().leader not in (0, old.id), 60, "another leader")
    load.wait(50)
    faults.heal()
    whole(cluster)
    assert load.check()


def test_links_that_flap_lose_nothing(clusters: Made, faults: Faults) -> None:
    cluster = clusters.launch()
    load = Load(cluster.client())
    load.wait(20)
    for n in range(3):
        target = leader(cluster) if n else cluster.members()[0]
        faults.set(cut([target.id], others(cluster, target), "drop", flap=[0.7, 0.5], seconds=[0.05, 0.2]))
        load.wait(30, 120)
        threading.Event().wait(2)
        faults.heal()
        whole(cluster)
    assert load.check()


def test_a_client_that_does_not_reach_the_leader(clusters: Made, faults: Faults) -> None:
    """It says so, rather than hang; and goes on when it does."""
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("a", "1")
    lead = leader(cluster)
    faults.set(cut([CLIENT], [lead.id]))
    with pytest.raises((raykeeper.Unavailable, raykeeper.RequestTimeout)):
        kv.put("a", "2", timeout=3)
    assert kv.get("a", timeout=30).text in ("1", "2")  # followers ask the leader for it
    assert leader(cluster).id == lead.id
    faults.heal()
    kv.put("a", "3", timeout=30)
    assert kv.get("a").text == "3"
