"""Where members' data is, as tables: what the disks of some nodes hold, and what is made of that; without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from raykeeper.actors.cluster.data_locations import Search, Sighting, choose_home, locate_data, membership
from raykeeper.actors.cluster.node_storage import FoundData, NodeInventory, no_answer
from raykeeper.actors.ray_view import RayNode
from raykeeper.errors import Unavailable
from raykeeper.limits import SEARCH_MAX_PAUSE_S, SEARCH_MIN_PAUSE_S
from raykeeper.raft.messages import Configuration
from raykeeper.schema.member_record import MemberRecord
from raykeeper.store.data_copies import Served
from raykeeper.store.data_dir import FirstMember, Identity
from raykeeper.store.membership_note import MembershipNote

FIRST = tuple(FirstMember(n, f"m{n}", f"old-{n}") for n in (1, 2, 3))


def node(name: str, *pins: str, address: str = "") -> RayNode:
    address = address or f"10.0.0.{ord(name[0])}"
    return RayNode(f"node-{name}", address, frozenset({f"node:{address}", *pins}))


def found(member: int, inode: int = 0, *, cluster: int = 7, name: str = "", **fields: Any) -> FoundData:
    named = f"m{member}"
    identity = Identity(cluster_name="x", cluster=cluster, member=member, name=named, members=FIRST)
    return FoundData(name or named, f"/data/x/{named}", (1, inode or member), identity, **fields)


def seen(where: RayNode, member: int, inode: int = 0, machine: str = "", **fields: Any) -> Sighting:
    return Sighting(member, where, "/data/x", machine or where.address, found(member, inode, **fields))


A, B, C = node("a"), node("b"), node("c")


@pytest.mark.parametrize(
    ("sightings", "where", "doubt"),
    [
        ([], [], ""),
        ([seen(A, 1)], [A], ""),
        ([seen(A, 1, machine="m"), seen(B, 1, machine="m")], [A, B], ""),
        ([seen(A, 1, served=Served(3, 9)), seen(B, 1, served=Served(2, 9))], [A], ""),
        ([seen(A, 1, served=Served(2, 9)), seen(B, 1, served=Served(3, 9))], [B], ""),
        ([seen(A, 1, served=Served(3, 9, copied=True)), seen(B, 1, served=Served(3, 9))], [B], ""),
        ([seen(A, 1, served=Served(2, 9, copied=True)), seen(B, 1, served=Served(3, 9))], [B], ""),
        ([seen(A, 1, served=Served(3, 9, copied=True)), seen(B, 1, served=Served(2, 9))], [], "only a copy"),
        ([seen(A, 1, served=Served(3, 9, copied=True))], [], "/data/x/m1 on 10.0.0.97"),
        ([seen(A, 1, served=Served(3, 9)), seen(B, 1, served=Served(3, 9))], [], "in several places"),
        ([seen(A, 1), seen(B, 1)], [], "in several places"),
        ([seen(A, 1, refused=True, damage="no"), seen(B, 1, served=Served(3, 9))], [], "/data/x/m1 on 10.0.0.97 (no)"),
    ],
    ids=[
        "nothing",
        "one",
        "one folder of two nodes",
        "more often",
        "more often there",
        "no copy",
        "old copy",
        "copy of what served later",
        "only a copy",
        "twice",
        "twice, never served",
        "it may be in what cannot be read",
    ],
)
def test_the_newest_is_it_and_nothing_else_if_nobody_can_tell(
    sightings: list[Sighting], where: list[RayNode], doubt: str
) -> None:
    certain, doubts = locate_data(sightings)
    assert [each.node for each in certain.get(1, [])] == where
    assert (doubt in doubts[1]) if doubt else not doubts


def test_what_belongs_to_somebody_else_is_not_seen() -> None:
    search = Search(7)
    foreign, misnamed, empty = (
        found(2, cluster=8),
        found(3, name="m9"),
        FoundData("m4", "/data/x/m4", (0, 0), damage="bad"),
    )
    search.record(
        {A.id: NodeInventory("/data/x", "a", (found(1), foreign, misnamed, empty)), B.id: Unavailable("b")}, 0.0
    )
    assert [(each.member, each.node, each.base) for each in search.sightings([A, B, C])] == [(1, A, "/data/x")]


def test_folders_that_cannot_be_read_are_those_of_whom_they_are_named_for() -> None:
    search = Search(7)
    names = ("m4", "m5.lock", "m05", "m", "x", "m\u0664")
    nobodys = tuple(FoundData(name, f"/data/x/{name}", (0, 0), damage="no", refused=True) for name in names)
    others = (found(1), found(2, refused=True), found(3, cluster=8, refused=True))
    search.record({A.id: NodeInventory("/data/x", "a", (*nobodys, *others)), B.id: Unavailable("b")}, 5.0)
    assert [(each.member, each.node, each.at) for each in search.unread([A, B, C])] == [(4, A, 5.0), (2, A, 5.0)]


def test_nodes_that_say_nothing_may_hold_anything() -> None:
    search = Search(7)
    bad = NodeInventory("/data/x", "a", problem="/data/x: Input/output error")
    search.record({A.id: bad, B.id: Unavailable("b"), C.id: NodeInventory("/data/x", "c")}, 0.0)
    assert search.unlisted([A, B, C, node("d")]) == (A, B)
    search.record({A.id: no_answer("no such package", lacks_package=True), B.id: NodeInventory("/data/x", "b")}, 1.0)
    assert search.unlisted([A, B, C]) == ()


def test_who_is_looked_at_when() -> None:
    search = Search(7)
    assert search.nodes_due([A, B], 100.0) == [A, B]
    search.record({A.id: NodeInventory("/data/x", "a"), B.id: Unavailable("no answer is one, too")}, 100.0)
    assert search.nodes_due([A, B, C], 200.0) == [C], "a node without a missed member is not searched again"
    assert search.nodes_due([A, B], 101.0, since=99.0) == []
    assert search.nodes_due([A, B], 101.0, since=100.5) == [A, B], (
        "what was seen before a member was missed says nothing"
    )
    assert search.nodes_due([A, B], 100.0 + SEARCH_MIN_PAUSE_S, since=99.0) == [A, B]
    assert search.nodes_due([A, B], 100.0 + SEARCH_MIN_PAUSE_S, since=50.0) == [], "the longer, the more rarely"
    assert search.nodes_due([A, B], 100.0 + SEARCH_MIN_PAUSE_S, since=50.0, often=True) == [A, B], "one waits for it"
    assert search.nodes_due([A, B], 100.0 + SEARCH_MAX_PAUSE_S, since=-1e9) == [A, B]
    assert search.covers([A, B], since=99.0)
    assert not search.covers([A, B], since=100.5)
    assert not search.covers([A, C], since=99.0)
    search.forget(A.id)
    assert search.nodes_due([A, B], 101.0) == [A]
    search.sightings([A])
    assert search.nodes_due([A, B], 101.0) == [A, B], "a node that was away is searched again"


def test_the_disks_tell_who_takes_part() -> None:
    assert membership([]).configuration.voters == ()
    told = membership([seen(A, 1), seen(B, 2)])
    assert told.configuration.voters == (1, 2, 3)
    assert told.members == tuple(MemberRecord(n, f"m{n}", f"old-{n}") for n in (1, 2, 3))
    old = MembershipNote(Configuration(voters=(1, 2, 3), index=5), (MemberRecord(1, "m1", "p"),))
    new = MembershipNote(Configuration(voters=(1, 2, 4), index=9), (MemberRecord(4, "m4", "q"),))
    assert membership([seen(A, 1, note=new), seen(B, 2, note=old), seen(C, 3)]) == new


@pytest.mark.parametrize(
    ("nodes", "placement", "homes", "chosen", "pin"),
    [
        ([A, B], (), [], A, "node:10.0.0.97"),
        ([A, B], (), ["node-a"], B, "node:10.0.0.98"),
        ([A, B], (), ["node-a", "node-b", "node-b"], A, "node:10.0.0.97"),
        ([node("a", "x"), node("b", "y")], ("x", "y"), ["node-a"], node("b", "y"), "y"),
        ([node("a", "all"), node("b", "all")], ("all",), [], node("a", "all"), "node:10.0.0.97"),
    ],
    ids=["first", "spread", "fewest", "resource", "a resource that others have, too"],
)
def test_it_is_started_where_there_is_room_and_pinned_where_it_is(
    nodes: list[RayNode], placement: tuple[str, ...], homes: list[str], chosen: RayNode, pin: str
) -> None:
    place, pinned = choose_home([seen(each, 1) for each in nodes], nodes, placement, homes)
    assert (place.node, pinned) == (chosen, pin)
