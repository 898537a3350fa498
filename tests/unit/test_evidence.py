"""Whatever tells of a cluster forbids a bootstrap, and the error says what is missing and what to do: as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from raykeeper.actors.evidence import Evidence, foreign, marker_of_seat, newest_marker
from raykeeper.actors.markers import MarkedMember, Marker
from raykeeper.actors.placement import Node
from raykeeper.actors.raft.messages import Configuration
from raykeeper.actors.recovery import Bootstrap, Redo, Start, decide
from raykeeper.actors.seat import Seat, member_name
from raykeeper.actors.sites import Found, Site
from raykeeper.errors import ClusterMismatch, MembersMissing, Unavailable
from raykeeper.store.folder import FirstMember, Identity

A, B = 0xA, 0xB


def node(n: int, *resources: str) -> Node:
    return Node(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}", *resources}))


def marked(member: int) -> MarkedMember:
    return MarkedMember(member, member_name(member), f"node:10.0.0.{member}", "/d/x", f"10.0.0.{member}")


def marker(cluster: int = A, version: int = 0, members: Sequence[int] = (1, 2, 3), **fields: Any) -> Marker:
    return Marker("x", cluster, tuple(marked(member) for member in members), version, **fields)


def site(*holds: Found | Marker, problem: str = "", silent: bool = False) -> Site:
    found = tuple(each for each in holds if isinstance(each, Found))
    markers = tuple(each for each in holds if isinstance(each, Marker))
    return Site("/d/x", "", found, problem, silent, markers=markers)


def data(member: int, cluster: int = A) -> Found:
    first = tuple(FirstMember(m, member_name(m), f"node:10.0.0.{m}") for m in (1, 2, 3))
    identity = Identity(cluster_name="x", cluster=cluster, member=member, name=member_name(member), members=first)
    return Found(member_name(member), f"/d/x/m{member}", (1, member), identity)


def reserved(member: int, cluster: int = A, listed: Sequence[int] = (1, 2, 3)) -> Found:
    return Found(f"m{member}", f"/d/x/m{member}", (0, 0), reserved=cluster, listed=tuple(map(marked, listed)))


def on(**holds: Site) -> list[tuple[Node, Site]]:
    """What nodes hold: n1=..., n9=...; node 9 is one that never had a member."""
    return [(node(int(name[1:])), held) for name, held in holds.items()]


def seat(member: int, cluster: int = A) -> Seat:
    return Seat("x", cluster, member, member_name(member), f"/d/x/m{member}", f"node:10.0.0.{member}")


EVERYWHERE = "m1 (last at node:10.0.0.1, in /d/x/m1), m2 (last at node:10.0.0.2, in /d/x/m2), m3 (last at node:10.0.0.3"
WAY_OUT = "`raykeeper down --cluster x --destroy --id a --data-dir /d`"


@pytest.mark.parametrize(
    ("sites", "evidence", "named"),
    [
        pytest.param(
            on(n9=site(marker())), Evidence(), [EVERYWHERE, "a marker on 10.0.0.9", WAY_OUT, "(10.0.0.9)"], id="marker"
        ),
        pytest.param(
            on(n9=site(Marker("x", A))), Evidence(), ["a marker on 10.0.0.9", WAY_OUT], id="marker that cannot be read"
        ),
        pytest.param(
            on(n1=site(), n9=site(marker())), Evidence(), [EVERYWHERE], id="a member's node is back without its disk"
        ),
        pytest.param(
            on(n9=site()),
            Evidence(("m1", "m2", "m3")),
            ["Missing: m1 (last at an unknown place), m2", "actors that Ray still lists (m1, m2, m3)"],
            id="members' actors that wait for their nodes",
        ),
        pytest.param(
            on(n9=site()), Evidence(("supervisor",)), ["still lists (supervisor)"], id="the supervisor's actor"
        ),
        pytest.param(
            on(n9=site()),
            Evidence(("m1", "supervisor"), {"supervisor": marker(version=7)}),
            [EVERYWHERE, "the supervisor, which still runs", WAY_OUT],
            id="what the supervisor knows",
        ),
        pytest.param(
            on(n1=site()),
            Evidence(("m1",), {"m1": marker_of_seat(seat(1))}),
            ["m1 (last at node:10.0.0.1, in /d/x/m1)", "m1, which runs without data", WAY_OUT],
            id="a member that runs, and whose data was deleted",
        ),
        pytest.param(
            on(n3=site(reserved(3)), n9=site()),
            Evidence(),
            [EVERYWHERE, "a reservation on 10.0.0.3", WAY_OUT],
            id="a reservation whose other places are not to be seen: they may have served without this one",
        ),
        pytest.param(
            on(n1=site(problem="/d/x: Permission denied"), n9=site(marker())),
            Evidence(),
            [EVERYWHERE, "Permission denied"],
            id="marker, and a node that cannot say",
        ),
        pytest.param(
            on(n1=site(problem="Ray node 10.0.0.1 did not answer", silent=True), n9=site(marker())),
            Evidence(),
            [EVERYWHERE, "did not answer"],
            id="marker, and a node that says nothing",
        ),
    ],
)
def test_whatever_tells_of_a_cluster_forbids_a_bootstrap(
    sites: list[tuple[Node, Site]], evidence: Evidence, named: list[str]
) -> None:
    with pytest.raises(MembersMissing) as caught:
        decide("x", sites, {}, evidence=evidence, data_dir="/d")
    for part in named:
        assert part in str(caught.value)
    assert "--destroy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sites",
    [
        pytest.param(on(n1=site(), n9=site()), id="nothing"),
        pytest.param(on(n1=site(reserved(1)), n2=site(reserved(2)), n3=site(reserved(3))), id="all reserved"),
        pytest.param(on(n1=site(reserved(1)), n2=site(), n3=site()), id="interrupted while it reserved"),
        pytest.param(on(n9=site(marker(destroyed=True))), id="destroyed"),
        pytest.param(on(n1=site(data(1), marker()), n9=site(marker(destroyed=True))), id="destroyed while 1 was away"),
        pytest.param(on(n1=site(marker()), n9=site(marker(destroyed=True))), id="its marker was away"),
    ],
)
def test_what_never_was_a_cluster_or_was_destroyed_is_no_evidence(sites: list[tuple[Node, Site]]) -> None:
    assert decide("x", sites, {}, data_dir="/d") == Bootstrap()


def test_traces_of_two_clusters_are_told_apart() -> None:
    with pytest.raises(ClusterMismatch) as caught:
        decide("x", on(n8=site(marker(A)), n9=site(marker(B))), {}, data_dir="/d")
    for part in ("id a (by a marker on 10.0.0.8)", "id b (by a marker on 10.0.0.9)", "--id a", "--id b"):
        assert part in str(caught.value)


def test_data_of_two_clusters_is_refused_with_the_way_out() -> None:
    sites = on(n1=site(data(1)), n2=site(data(2)), n9=site(data(1, B), data(2, B), data(3, B)))
    with pytest.raises(ClusterMismatch) as caught:
        decide("x", sites, {}, data_dir="/d")
    for part in ("--id a", "--id b", "operations.md"):
        assert part in str(caught.value)


def test_a_cluster_that_serves_is_not_poisoned_by_data_of_another() -> None:
    sites = on(n1=site(data(1)), n2=site(data(2)), n3=site(data(3)), n4=site(data(1, B), marker(B)))
    live = {1: seat(1), 2: seat(2)}
    decision = decide("x", sites, live, Configuration(voters=(1, 2, 3)), data_dir="/d")
    assert isinstance(decision, Start)
    assert [place.member for place in decision.places] == [3]
    [line] = decision.foreign
    assert "id b: /d/x/m1 on 10.0.0.4" in line
    assert "--id b" in line


def test_a_cluster_over_its_data_is_not_held_up_by_a_marker_of_another() -> None:
    sites = on(n1=site(data(1)), n2=site(data(2)), n9=site(marker(B)))
    decision = decide("x", sites, {}, data_dir="/d")
    assert isinstance(decision, Start)
    assert len(decision.foreign) == 1


def test_what_is_left_of_a_destroyed_cluster_is_said_and_not_used() -> None:
    sites = on(n1=site(data(1)), n2=site(data(2)), n3=site(data(3, B)), n9=site(marker(B, destroyed=True)))
    decision = decide("x", sites, {}, data_dir="/d")
    assert isinstance(decision, Start)
    assert (decision.cluster, [missing.member for missing in decision.missing]) == (A, [3])
    assert "destroyed while this node was away" in decision.foreign[0]


def test_less_than_a_quorum_names_where_the_data_was_last_by_the_newest_marker() -> None:
    moved = Marker("x", A, (marked(1), MarkedMember(2, "m2", "disk_b", "/d/x", "10.0.0.7"), marked(3)), version=9)
    with pytest.raises(MembersMissing) as caught:
        decide("x", on(n1=site(data(1), marker()), n9=site(moved)), {}, data_dir="/d")
    assert "m2 (last at disk_b on 10.0.0.7, in /d/x/m2)" in str(caught.value)
    assert WAY_OUT in str(caught.value)


def test_a_bootstrap_that_was_interrupted_while_it_wrote_is_redone_as_before() -> None:
    sites = on(n1=site(data(1)), n2=site(reserved(2)), n3=site(reserved(3)))
    assert isinstance(decide("x", sites, {}, data_dir="/d"), Redo)


def test_nodes_that_placement_excludes_are_not_waited_for_and_heard_nevertheless() -> None:
    silent = site(problem="Ray node 10.0.0.4 cannot load RayKeeper", silent=True)
    sites = [(node(1, "disk"), site()), (node(4), silent), (node(5), site(problem="/d/x: Permission denied"))]
    assert decide("x", sites, {}, placement=("disk",)) == Bootstrap()
    with pytest.raises(Unavailable, match="cannot load RayKeeper"):
        decide("x", sites, {})
    with pytest.raises(MembersMissing):
        decide("x", [*sites, (node(6), site(marker()))], {}, placement=("disk",))


def test_the_newest_marker_says_who_takes_part_and_older_ones_fill_its_gaps() -> None:
    old, new = marker(version=3), Marker("x", A, (MarkedMember(2, "m2"), MarkedMember(4, "m4", "r")), version=8)
    newest = newest_marker([new, old])
    assert newest is not None
    assert newest.members == (marked(2), MarkedMember(4, "m4", "r"))


def test_what_lies_about_of_other_clusters_is_one_line_each() -> None:
    sites = on(n1=site(data(1), marker()), n2=site(data(2, B)), n3=site(marker(B)), n4=site(marker(0xC)))
    lines = foreign("x", A, "/d", sites)
    assert [line.partition(":")[0][-4:] for line in lines] == ["id b", "id c"]
    assert "only a marker on 10.0.0.4" in lines[1]
    assert foreign("x", A, "/d", on(n1=site(data(1), marker()), n9=site(marker(B, destroyed=True)))) == []
