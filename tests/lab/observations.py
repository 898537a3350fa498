"""What a supervisor may see of a cluster of three, m1 to m3 on the nodes a to c, with d to spare."""

from __future__ import annotations

from typing import Any

from raykeeper.actors.cluster.failure_tracker import FailureTracker
from raykeeper.actors.cluster.heal_plan import (
    ClusterView,
)
from raykeeper.actors.cluster.node_storage import FoundData, NodeInventory
from raykeeper.actors.cluster.observe import Observation
from raykeeper.actors.ray_view import RayNode
from raykeeper.limits import Settings, Timings, encode_settings
from raykeeper.schema.member_record import MemberRecord
from raykeeper.schema.operator_frames import MemberStatus
from raykeeper.store.data_dir import FirstMember, Identity

AFTER = 2.0
PINS = ("a", "b", "c", "d")
SETTINGS = encode_settings(Settings(timings=Timings(replace_after=AFTER)))


def node(pin: str) -> RayNode:
    return RayNode(f"node-{pin}", "10.0.0.1", frozenset({pin}))


def status(member: int, **fields: Any) -> MemberStatus:
    plain: dict[str, Any] = {
        "cluster_name": "heal",
        "cluster": 7,
        "member": member,
        "name": f"m{member}",
        "role": "follower",
        "term": 1,
        "leader": 1,
        "commit_index": 9,
        "applied_index": 9,
        "last_log_index": 9,
        "first_log_index": 1,
        "revision": 1,
        "compact_revision": 0,
        "voters": (1, 2, 3),
        "learners": (),
        "db_size": 0,
        "pid": 1,
        "node": f"node-{PINS[member - 1]}",
        "settings": SETTINGS,
    }
    return MemberStatus(**{**plain, **fields})


def known(member: int) -> MemberRecord:
    return MemberRecord(member, f"m{member}", PINS[member - 1], "/data", joined=True)


def observation(
    *, silent: float = 0.0, leading: float = 0.0, answers: bool = True, there: bool = True, registered: bool = True
) -> Observation:
    """Member 1 leads; of member 3 this is to be said. A call to it does not fail: it only is not answered."""
    leader = status(
        1,
        role="leader",
        silent={2: 0.0, 3: silent},
        leading_for=leading,
        caught_up=(1, 2, 3),
        table=(known(1), known(2), *((known(3),) if registered else ())),
    )
    statuses = {1: leader, 2: status(2), **({3: status(3)} if answers else {})}
    nodes = tuple(node(pin) for pin in PINS if there or pin != "c")
    return Observation(nodes, dict.fromkeys((1, 2, 3)), statuses, frozenset())


Disks = dict[str, tuple[FoundData, ...]]


def watched(
    *observations: Observation, first_pins: dict[int, str] | None = None, disks: Disks | None = None
) -> ClusterView:
    """What a supervisor knows after these observations, one second apart, if the nodes hold this, by node id."""
    tracker = FailureTracker(7, PINS)
    tracker.first_pins = first_pins or {}
    for now, each in enumerate(observations):
        view = after_search(tracker, each, float(now), disks or {})
    return view


def after_search(tracker: FailureTracker, shown: Observation, now: float, disks: Disks) -> ClusterView:
    """What a supervisor knows after one more observation, and a search if one is due."""
    due = tracker.nodes_to_search(tracker.view(shown, now))
    tracker.record_search({each.id: NodeInventory("/data/heal", each.id, disks.get(each.id, ())) for each in due}, now)
    return tracker.view(shown, now)


def data(*members: int, **fields: Any) -> tuple[FoundData, ...]:
    """Members' folders on a disk."""
    first = tuple(FirstMember(n, f"m{n}", PINS[n - 1]) for n in (1, 2, 3))
    return tuple(
        FoundData(
            f"m{member}",
            f"/data/heal/m{member}",
            (1, member),
            Identity(cluster_name="heal", cluster=7, member=member, name=f"m{member}", members=first),
            **fields,
        )
        for member in members
    )


LOST = [observation(silent=float(n), answers=False, there=False) for n in range(5)]
"""Member 3 and its node are gone, seen from the first second on."""
