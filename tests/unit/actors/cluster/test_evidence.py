"""Whatever tells of a cluster forbids a bootstrap, and the error says what is missing and what to do: as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from raykeeper.actors.cluster.evidence import Evidence, foreign_data, marker_of_member, newest_marker
from raykeeper.actors.cluster.launch_rule import Bootstrap, Redo, StartMembers, decide
from raykeeper.actors.cluster.markers import MarkedMember, Marker
from raykeeper.actors.cluster.node_storage import FoundData, NodeInventory
from raykeeper.actors.naming import MemberSpec, member_name
from raykeeper.actors.ray_view import RayNode
from raykeeper.errors import ClusterMismatch, MembersMissing, Unavailable
from raykeeper.raft.messages import Configuration
from raykeeper.store.data_dir import FirstMember, Identity

A, B = 0xA, 0xB


def node(n: int, *resources: str) -> RayNode:
    return RayNode(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}", *resources}))


def marked(member: int) -> MarkedMember:
    return MarkedMember(member, member_name(member), f"node:10.0.0.{member}", "/d/x", f"10.0.0.{member}")


def marker(cluster: int = A, version: int = 0, members: Sequence[int] = (1, 2, 3), **fields: Any) -> Marker:
    return Marker("x", cluster, tuple(marked(member) for member in members), version, **fields)


def inventory(*holds: FoundData | Marker, problem: str = "", silent: bool = False) -> NodeInventory:
    found = tuple(each for each in holds if isinstance(each, FoundData))
    markers = tuple(each for each in holds if isinstance(each, Marker))
    return NodeInventory("/d/x", "", found, problem, silent, markers=markers)


def data(member: int, cluster: int = A) -> FoundData:
    first = tuple(FirstMember(m, member_name(m), f"node:10.0.0.{m}") for m in (1, 2, 3))
    identity = Identity(cluster_name="x", cluster=cluster, member=member, name=member_name(member), members=first)
    return FoundData(member_name(member), f"/d/x/m{member}", (1, member), identity)


def reserved(member: int, cluster: int = A, listed: Sequence[int] = (1, 2, 3)) -> FoundData:
    return FoundData(f"m{member}", f"/d/x/m{member}", (0, 0), reserved=cluster, listed=tuple(map(marked, listed)))


def on(**holds: NodeInventory) -> list[tuple[RayNode, NodeInventory]]:
    """What nodes hold: n1=..., n9=...; node 9 is one that never had a member."""
    return [(node(int(name[1:])), held) for name, held in holds.items()]


def member_spec(member: int, cluster: int = A) -> MemberSpec:
    return MemberSpec("x", cluster, member, member_name(member), f"/d/x/m{member}", f"node:10.0.0.{member}")


EVERYWHERE = "m1 (last at node:10.0.0.1, in /d/x/m1), m2 (last at node:10.0.0.2, in /d/x/m2), m3 (last at node:10.0.0.3"
WAY_OUT = "`raykeeper down --cluster x --destroy --id a --data-dir /d`"


@pytest.mark.parametrize(
    ("inventories", "evidence", "named"),
    [
        pytest.param(
            on(n9=inventory(marker())),
            Evidence(),
            [EVERYWHERE, "a marker on 10.0.0.9", WAY_OUT, "(10.0.0.9)"],
            id="marker",
        ),
        pytest.param(
            on(n9=inventory(Marker("x", A))),
            Evidence(),
            ["a marker on 10.0.0.9", WAY_OUT],
            id="marker that cannot be read",
        ),
        pytest.param(
            on(n1=inventory(), n9=inventory(marker())),
            Evidence(),
            [EVERYWHERE],
            id="a member's node is back without its disk",
        ),
        pytest.param(
            on(n9=inventory()),
            Evidence(("m1", "m2", "m3")),
            ["Missing: m1 (last at an unknown place), m2", "actors that Ray still lists (m1, m2, m3)"],
            id="members' actors that wait for their nodes",
        ),
        pytest.param(
            on(n9=inventory()), Evidence(("supervisor",)), ["still lists (supervisor)"], id="the supervisor's actor"
        ),
        pytest.param(
            on(n9=inventory()),
            Evidence(("m1", "supervisor"), {"supervisor": marker(version=7)}),
            [EVERYWHERE, "the supervisor, which still runs", WAY_OUT],
            id="what the supervisor knows",
        ),
        pytest.param(
            on(n1=inventory()),
            Evidence(("m1",), {"m1": marker_of_member(member_spec(1))}),
            ["m1 (last at node:10.0.0.1, in /d/x/m1)", "m1, which runs without data", WAY_OUT],
            id="a member that runs, and whose data was deleted",
        ),
        pytest.param(
            on(n3=inventory(reserved(3)), n9=inventory()),
            Evidence(),
            [EVERYWHERE, "a reservation on 10.0.0.3", WAY_OUT],
            id="a reservation whose other places are not to be seen: they may have served without this one",
        ),
        pytest.param(
            on(n1=inventory(problem="/d/x: Permission denied"), n9=inventory(marker())),
            Evidence(),
            [EVERYWHERE, "Permission denied"],
            id="marker, and a node that cannot say",
        ),
        pytest.param(
            on(n1=inventory(problem="Ray node 10.0.0.1 did not answer", silent=True), n9=inventory(marker())),
            Evidence(),
            [EVERYWHERE, "did not answer"],
            id="marker, and a node that says nothing",
        ),
    ],
)
def test_whatever_tells_of_a_cluster_forbids_a_bootstrap(
    inventories: list[tuple[RayNode, NodeInventory]], evidence: Evidence, named: list[str]
) -> None:
    with pytest.raises(MembersMissing) as caught:
        decide("x", inventories, {}, evidence=evidence, data_dir="/d")
    for part in named:
        assert part in str(caught.value)
    assert "--destroy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inventories",
    [
        pytest.param(on(n1=inventory(), n9=inventory()), id="nothing"),
        pytest.param(
            on(n1=inventory(reserved(1)), n2=inventory(reserved(2)), n3=inventory(reserved(3))), id="all reserved"
        ),
        pytest.param(on(n1=inventory(reserved(1)), n2=inventory(), n3=inventory()), id="interrupted while it reserved"),
        pytest.param(on(n9=inventory(marker(destroyed=True))), id="destroyed"),
        pytest.param(
            on(n1=inventory(data(1), marker()), n9=inventory(marker(destroyed=True))), id="destroyed while 1 was away"
        ),
        pytest.param(on(n1=inventory(marker()), n9=inventory(marker(destroyed=True))), id="its marker was away"),
    ],
)
def test_what_never_was_a_cluster_or_was_destroyed_is_no_evidence(
    inventories: list[tuple[RayNode, NodeInventory]],
) -> None:
    assert decide("x", inventories, {}, data_dir="/d") == Bootstrap()


def test_traces_of_two_clusters_are_told_apart() -> None:
    with pytest.raises(ClusterMismatch) as caught:
        decide("x", on(n8=inventory(marker(A)), n9=inventory(marker(B))), {}, data_dir="/d")
    for part in ("id a (by a marker on 10.0.0.8)", "id b (by a marker on 10.0.0.9)", "--id a", "--id b"):
        assert part in str(caught.value)


def test_data_of_two_clusters_is_refused_with_the_way_out() -> None:
    inventories = on(n1=inventory(data(1)), n2=inventory(data(2)), n9=inventory(data(1, B), data(2, B), data(3, B)))
    with pytest.raises(ClusterMismatch) as caught:
        decide("x", inventories, {}, data_dir="/d")
    for part in ("--id a", "--id b", "operations.md"):
        assert part in str(caught.value)


def test_a_cluster_that_serves_is_not_poisoned_by_data_of_another() -> None:
    inventories = on(
        n1=inventory(data(1)), n2=inventory(data(2)), n3=inventory(data(3)), n4=inventory(data(1, B), marker(B))
    )
    live = {1: member_spec(1), 2: member_spec(2)}
    decision = decide("x", inventories, live, Configuration(voters=(1, 2, 3)), data_dir="/d")
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [3]
    [line] = decision.foreign
    assert "id b: /d/x/m1 on 10.0.0.4" in line
    assert "--id b" in line


def test_a_cluster_over_its_data_is_not_held_up_by_a_marker_of_another() -> None:
    inventories = on(n1=inventory(data(1)), n2=inventory(data(2)), n9=inventory(marker(B)))
    decision = decide("x", inventories, {}, data_dir="/d")
    assert isinstance(decision, StartMembers)
    assert len(decision.foreign) == 1


def test_what_is_left_of_a_destroyed_cluster_is_said_and_not_used() -> None:
    inventories = on(
        n1=inventory(data(1)), n2=inventory(data(2)), n3=inventory(data(3, B)), n9=inventory(marker(B, destroyed=True))
    )
    decision = decide("x", inventories, {}, data_dir="/d")
    assert isinstance(decision, StartMembers)
    assert (decision.cluster, [missing.member for missing in decision.missing]) == (A, [3])
    assert "destroyed while this node was away" in decision.foreign[0]


def test_less_than_a_quorum_names_where_the_data_was_last_by_the_newest_marker() -> None:
    moved = Marker("x", A, (marked(1), MarkedMember(2, "m2", "disk_b", "/d/x", "10.0.0.7"), marked(3)), version=9)
    with pytest.raises(MembersMissing) as caught:
        decide("x", on(n1=inventory(data(1), marker()), n9=inventory(moved)), {}, data_dir="/d")
    assert "m2 (last at disk_b on 10.0.0.7, in /d/x/m2)" in str(caught.value)
    assert WAY_OUT in str(caught.value)


def test_a_bootstrap_that_was_interrupted_while_it_wrote_is_redone_as_before() -> None:
    inventories = on(n1=inventory(data(1)), n2=inventory(reserved(2)), n3=inventory(reserved(3)))
    assert isinstance(decide("x", inventories, {}, data_dir="/d"), Redo)


def test_nodes_that_placement_excludes_are_not_waited_for_and_heard_nevertheless() -> None:
    silent = inventory(problem="Ray node 10.0.0.4 cannot load RayKeeper", silent=True)
    inventories = [
        (node(1, "disk"), inventory()),
        (node(4), silent),
        (node(5), inventory(problem="/d/x: Permission denied")),
    ]
    assert decide("x", inventories, {}, placement=("disk",)) == Bootstrap()
    with pytest.raises(Unavailable, match="cannot load RayKeeper"):
        decide("x", inventories, {})
    with pytest.raises(MembersMissing):
        decide("x", [*inventories, (node(6), inventory(marker()))], {}, placement=("disk",))


def test_the_newest_marker_says_who_takes_part_and_older_ones_fill_its_gaps() -> None:
    old, new = marker(version=3), Marker("x", A, (MarkedMember(2, "m2"), MarkedMember(4, "m4", "r")), version=8)
    newest = newest_marker([new, old])
    assert newest is not None
    assert newest.members == (marked(2), MarkedMember(4, "m4", "r"))


def test_what_lies_about_of_other_clusters_is_one_line_each() -> None:
    inventories = on(
        n1=inventory(data(1), marker()), n2=inventory(data(2, B)), n3=inventory(marker(B)), n4=inventory(marker(0xC))
    )
    lines = foreign_data("x", A, "/d", inventories)
    assert [line.partition(":")[0][-4:] for line in lines] == ["id b", "id c"]
    assert "only a marker on 10.0.0.4" in lines[1]
    assert (
        foreign_data("x", A, "/d", on(n1=inventory(data(1), marker()), n9=inventory(marker(B, destroyed=True)))) == []
    )
