"""The rule for launching over what the disks hold, as tables (docs/architecture/launching.md)."""

from __future__ import annotations

import msgspec
import pytest

from raykeeper.actors.cluster.launch_rule import Bootstrap, Redo, StartMembers, decide
from raykeeper.actors.cluster.node_storage import FoundData, NodeInventory
from raykeeper.actors.cluster.ray_nodes import choose_nodes
from raykeeper.actors.naming import MemberSpec, member_name
from raykeeper.actors.ray_view import RayNode
from raykeeper.errors import ClusterMismatch, DataCorrupted, MembersMissing, SpecError, Unavailable
from raykeeper.raft.messages import Configuration
from raykeeper.schema.member_record import MemberRecord
from raykeeper.store.data_copies import Served
from raykeeper.store.data_dir import FirstMember, Identity
from raykeeper.store.membership_note import MembershipNote

A, B = 0xA, 0xB


def node(n: int, *resources: str) -> RayNode:
    return RayNode(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}", *resources}))


def pins(members: int = 3) -> tuple[FirstMember, ...]:
    return tuple(FirstMember(m, member_name(m), f"node:10.0.0.{m}") for m in range(1, members + 1))


def identity(member: int, cluster: int = A, name: str = "x", members: int = 3) -> Identity:
    return Identity(cluster_name=name, cluster=cluster, member=member, name=member_name(member), members=pins(members))


def found(member: int, cluster: int = A, *, inode: int | None = None, name: str = "x", members: int = 3) -> FoundData:
    return FoundData(
        member_name(member), f"/d/x/m{member}", (1, inode or member), identity(member, cluster, name, members)
    )


def reserved(member: int, cluster: int = A) -> FoundData:
    return FoundData(member_name(member), f"/d/x/m{member}", (0, 0), reserved=cluster)


def inventories(*holdings: list[FoundData], machines: tuple[str, ...] = ()) -> list[tuple[RayNode, NodeInventory]]:
    return [
        (node(n), NodeInventory("/d/x", machines[n - 1] if machines else f"machine{n}", tuple(held)))
        for n, held in enumerate(holdings, start=1)
    ]


def member_spec(member: int, cluster: int = A) -> MemberSpec:
    return MemberSpec("x", cluster, member, member_name(member), f"/d/x/m{member}", "")


def test_nothing_anywhere_is_a_bootstrap() -> None:
    assert decide("x", inventories([], [], []), {}) == Bootstrap()


def test_reservations_alone_count_for_nothing() -> None:
    assert decide("x", inventories([reserved(1)], [reserved(2)], []), {}) == Bootstrap()


def test_all_found_are_started_where_they_lie() -> None:
    decision = decide("x", inventories([found(3)], [found(1)], [found(2)]), {})
    assert isinstance(decision, StartMembers)
    assert decision.cluster == A
    assert [(place.member, place.node.address) for place in decision.places] == [
        (1, "10.0.0.2"),
        (2, "10.0.0.3"),
        (3, "10.0.0.1"),
    ]
    assert decision.missing == ()


def test_a_quorum_is_enough_and_the_rest_is_named() -> None:
    decision = decide("x", inventories([found(1)], [], [found(3)]), {})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [1, 3]
    assert [(missing.name, missing.pin) for missing in decision.missing] == [("m2", "node:10.0.0.2")]


def test_less_than_a_quorum_never_bootstraps_and_says_who_is_missing() -> None:
    with pytest.raises(Unavailable, match=r"m1 \(last at node:10\.0\.0\.1\), m3 \(last at node:10\.0\.0\.3\)"):
        decide("x", inventories([], [found(2)], []), {})


def test_members_that_run_count_as_found() -> None:
    decision = decide("x", inventories([], [found(2)], []), {1: member_spec(1)})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [2]
    assert [missing.member for missing in decision.missing] == [3]


def test_the_newest_configuration_counts_not_the_first() -> None:
    five = Configuration(voters=(1, 2, 3, 4, 5))
    with pytest.raises(Unavailable, match="needs more than half"):
        decide("x", inventories([found(1)], [found(2)], []), {}, five)
    decision = decide("x", inventories([found(1)], [found(2)], []), {4: member_spec(4)}, five)
    assert isinstance(decision, StartMembers)


def test_a_joint_configuration_needs_a_quorum_of_both_halves() -> None:
    joint = Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3))
    assert isinstance(decide("x", inventories([found(1)], [found(2)], []), {}, joint), StartMembers)
    with pytest.raises(Unavailable):
        decide("x", inventories([found(1)], [], []), {4: member_spec(4)}, joint)


def test_two_cluster_ids_under_one_name_are_refused_by_both() -> None:
    with pytest.raises(ClusterMismatch, match=r"id a: /d/x/m1 .*; id b: /d/x/m2 "):
        decide("x", inventories([found(1)], [found(2, B)], []), {})
    with pytest.raises(ClusterMismatch, match=r"id a: .*; id b: the running member m2"):
        decide("x", inventories([found(1)], [], []), {2: member_spec(2, B)})


def test_data_of_a_cluster_of_another_name_is_refused_by_name() -> None:
    with pytest.raises(ClusterMismatch, match=r"m1 of cluster x, but holds m1 of cluster other \(id a\)"):
        decide("x", inventories([found(1, name="other")], [], []), {})


def test_data_that_cannot_be_read_is_no_reason_to_bootstrap() -> None:
    damaged = FoundData("m1", "/d/x/m1", (1, 1), damage="identity.json is cut off")
    with pytest.raises(DataCorrupted, match=r"cut off.* `raykeeper down --cluster x --destroy --data-dir /d`"):
        decide("x", inventories([damaged], [], []), {}, data_dir="/d")
    unreadable = [(node(1), NodeInventory("/d/x", "machine1", problem="/d/x: Permission denied")), *inventories([])]
    with pytest.raises(SpecError, match="Permission denied"):
        decide("x", unreadable, {})


def test_a_node_that_does_not_answer_is_no_reason_to_bootstrap_nor_to_wait_for_it() -> None:
    silent = [(node(3), NodeInventory("", "", problem="Ray node 10.0.0.3 did not answer", silent=True))]
    with pytest.raises(Unavailable, match=r"cannot tell whether .* did not answer"):
        decide("x", [*inventories([], []), *silent], {})
    with pytest.raises(Unavailable, match=r"needs more than half.* did not answer"):
        decide("x", [*inventories([found(1)], []), *silent], {})
    assert isinstance(decide("x", [*inventories([found(1)], [found(2)]), *silent], {}), StartMembers)


def test_a_bootstrap_interrupted_half_way_may_be_redone_if_all_its_places_are_found() -> None:
    decision = decide("x", inventories([found(1)], [reserved(2)], [reserved(3)]), {})
    assert isinstance(decision, Redo)
    assert sorted(place.name for place in decision.places) == ["m1", "m2", "m3"]
    assert decision.instead is None
    decision = decide("x", inventories([found(1)], [found(2)], [reserved(3)]), {})
    assert isinstance(decision, Redo)
    assert isinstance(decision.instead, StartMembers)


def test_a_bootstrap_is_not_redone_if_a_place_of_it_is_not_found() -> None:
    with pytest.raises(Unavailable):
        decide("x", inventories([found(1)], [reserved(2)], []), {})
    with pytest.raises(Unavailable):
        decide("x", inventories([found(1)], [reserved(2, B)], [reserved(3, B)]), {})
    decision = decide("x", inventories([found(1)], [found(2)], []), {})
    assert isinstance(decision, StartMembers), "two of three are a quorum: it may have served"


def test_a_bootstrap_with_a_member_that_runs_is_not_redone() -> None:
    decision = decide("x", inventories([found(1)], [found(2)], [reserved(3)]), {1: member_spec(1)})
    assert isinstance(decision, StartMembers)


def test_a_folder_seen_from_two_nodes_of_one_machine_is_one_place() -> None:
    held = [found(1), found(2), found(3)]
    decision = decide("x", inventories(held, held, machines=("same", "same")), {})
    assert isinstance(decision, StartMembers)
    assert [(place.member, place.node.address) for place in decision.places][:2] == [(1, "10.0.0.1"), (2, "10.0.0.2")]


def test_copies_of_a_member_in_two_places_are_refused() -> None:
    copies = inventories([], [], [], [found(1, inode=7)], [found(1, inode=8), found(2)])
    with pytest.raises(ClusterMismatch, match="several places"):
        decide("x", copies, {})


def test_of_two_copies_the_one_at_the_members_own_pin_counts() -> None:
    decision = decide("x", inventories([found(1, inode=7)], [found(1, inode=8), found(2)]), {})
    assert isinstance(decision, StartMembers)
    assert [(place.member, place.node.address) for place in decision.places] == [(1, "10.0.0.1"), (2, "10.0.0.2")]


@pytest.mark.parametrize(
    ("here", "there", "chosen"),
    [
        (Served(2, 9), Served(3, 9), 5),
        (Served(3, 9), Served(2, 9), 4),
        (Served(3, 9, copied=True), Served(3, 9), 5),
        (Served(4, 9, copied=True), Served(3, 9), 4),
    ],
    ids=["it has served there later", "and here", "the copy is here", "a copy without an original"],
)
def test_of_two_copies_the_newest_counts_wherever_it_is(here: Served, there: Served, chosen: int) -> None:
    """The member was pinned to the first node: its host was lost, and has come back with an old disk, perhaps."""
    old = msgspec.structs.replace(found(1, inode=7), served=here)
    new = msgspec.structs.replace(found(1, inode=8), served=there)
    decision = decide("x", inventories([], [found(2)], [], [old], [new]), {})
    assert isinstance(decision, StartMembers)
    assert [place.node for place in decision.places if place.member == 1] == [node(chosen)]


COPY = msgspec.structs.replace(found(3), served=Served(4, 9, copied=True))


@pytest.mark.parametrize(
    ("holdings", "live", "started"),
    [
        (([found(1)], [found(2)]), {}, [1, 2]),
        (([], []), {1: member_spec(1), 2: member_spec(2)}, []),
        (([found(1)], []), {}, [1, 3]),
        (([found(1)], [found(2)], []), {}, [1, 2, 3]),
        (([found(1)], [], []), {2: member_spec(2)}, [1, 3]),
    ],
    ids=["others", "others run", "it is needed", "its host has no more", "and so if others run"],
)
def test_a_copy_is_started_only_if_its_original_is_gone_or_nothing_else_makes_a_quorum(
    holdings: tuple[list[FoundData], ...], live: dict[int, MemberSpec], started: list[int]
) -> None:
    """What m3 has promised since the copy was made is not in it, and its host, 10.0.0.3, may only be away."""
    there = [*inventories(*holdings), (node(9), NodeInventory("/d/x", "machine9", (COPY,)))]
    decision = decide("x", there, live)
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == started
    assert [missing.member for missing in decision.missing] == sorted({1, 2, 3} - set(started) - set(live))


def test_spread_gives_each_node_a_member_before_any_gets_two() -> None:
    nodes = [node(1), node(2)]
    assert [chosen.address for chosen, _ in choose_nodes(3, "spread", nodes)] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    assert [pin for _, pin in choose_nodes(2, "spread", nodes)] == ["node:10.0.0.1", "node:10.0.0.2"]


def test_spread_prefers_other_machines_to_other_nodes_of_one() -> None:
    twin = RayNode("id1b", "10.0.0.1", frozenset({"node:10.0.0.1"}))
    addresses = [chosen.address for chosen, _ in choose_nodes(3, "spread", [node(1), twin, node(2)])]
    assert addresses == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]


def test_named_resources_are_used_in_turn() -> None:
    nodes = [node(1, "disk-a"), node(2, "disk-b")]
    chosen = choose_nodes(3, ("disk-b", "disk-a"), nodes)
    assert [(place.address, pin) for place, pin in chosen] == [
        ("10.0.0.2", "disk-b"),
        ("10.0.0.1", "disk-a"),
        ("10.0.0.2", "disk-b"),
    ]
    with pytest.raises(SpecError, match="disk-c"):
        choose_nodes(1, ("disk-c",), nodes)


def noted(
    member: int, index: int, *voters: int, learners: tuple[int, ...] = (), outgoing: tuple[int, ...] = ()
) -> FoundData:
    """Data of a member that knew of a configuration, and where each of its members lives."""
    configuration = Configuration(voters=voters, learners=learners, outgoing=outgoing, index=index)
    known = tuple(MemberRecord(m, member_name(m), f"rack{m}") for m in sorted(configuration.members))
    return msgspec.structs.replace(found(member), note=MembershipNote(configuration, known))


def test_the_newest_configuration_that_any_member_noted_counts() -> None:
    """Of the first three, 1 and 3 were replaced by 4 and 5; 3 has slept through it."""
    decision = decide("x", inventories([noted(2, 40, 2, 4, 5)], [noted(3, 7, 1, 2, 3)], [noted(4, 31, 2, 3, 4)]), {})
    assert isinstance(decision, StartMembers)
    assert [(place.member, place.pin) for place in decision.places] == [(2, "rack2"), (4, "rack4")]
    assert [(missing.name, missing.pin) for missing in decision.missing] == [("m5", "rack5")]


def test_a_quorum_of_the_newest_configuration_is_needed_not_of_the_first() -> None:
    with pytest.raises(Unavailable, match=r"m4 \(last at rack4\), m5 \(last at rack5\)"):
        decide("x", inventories([found(1)], [noted(2, 40, 2, 4, 5)], [found(3)]), {})


def test_both_halves_of_a_joint_configuration_are_needed() -> None:
    joint = noted(1, 9, 1, 2, 4, outgoing=(1, 2, 3))
    assert isinstance(decide("x", inventories([joint], [found(2)]), {}), StartMembers)
    with pytest.raises(Unavailable, match="m2 "):
        decide("x", inventories([joint], [found(4)]), {})


def test_whose_data_is_there_and_who_does_not_take_part_is_not_started() -> None:
    decision = decide("x", inventories([noted(1, 9, 1, 2)], [found(2)], [found(3)], [found(4)]), {})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [1, 2]


def test_a_cluster_that_has_changed_its_members_was_no_half_done_bootstrap() -> None:
    decision = decide("x", inventories([noted(1, 9, 1, 2, 3)], [found(2)], [reserved(3)]), {})
    assert isinstance(decision, StartMembers)


UNREAD = FoundData("m1", "/d/x/m1", (1, 7), damage="it cannot be read: no", refused=True)
REFUSED = msgspec.structs.replace(found(1, inode=7), damage="it cannot be read: no", refused=True)


@pytest.mark.parametrize("refused", [UNREAD, REFUSED], ids=["whose it is", "how new it is"])
def test_a_member_is_not_started_from_one_folder_while_another_one_cannot_be_read(refused: FoundData) -> None:
    other = msgspec.structs.replace(found(1), served=Served(3, 9))
    decision = decide("x", inventories([refused], [found(2)], [found(3)], [other]), {})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [2, 3]
    assert [missing.member for missing in decision.missing] == [1]
    with pytest.raises(MembersMissing, match=r"/d/x/m1 on 10\.0\.0\.1: it cannot be read: no"):
        decide("x", inventories([refused], [found(2)], [], [other]), {})


def test_a_member_whose_only_folder_is_refused_in_part_is_started_and_tries_again() -> None:
    decision = decide("x", inventories([REFUSED], [found(2)], []), {})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [1, 2]


def test_what_the_disk_refuses_to_read_is_no_reason_to_bootstrap() -> None:
    with pytest.raises(DataCorrupted, match="it cannot be read: no"):
        decide("x", inventories([UNREAD], [], []), {})


OLD = msgspec.structs.replace(found(3), served=Served(3, 9))
BAD = NodeInventory("/d/x", "machine4", problem="/d/x: Input/output error")
SILENT = NodeInventory("", "", problem="Ray node 10.0.0.4 did not answer", silent=True)
NO_PACKAGE = msgspec.structs.replace(SILENT, lacks_package=True)


def moved_to_4(member: int) -> FoundData:
    """A member that knows that m3 has lived at 10.0.0.4 since."""
    known = tuple(MemberRecord(m, f"m{m}", f"node:10.0.0.{4 if m == 3 else m}") for m in (1, 2, 3))
    return msgspec.structs.replace(found(member), note=MembershipNote(Configuration(voters=(1, 2, 3), index=9), known))


@pytest.mark.parametrize("says", [BAD, SILENT], ids=["it cannot list its folder", "it does not answer"])
def test_a_member_that_was_last_on_a_node_that_says_nothing_waits_for_that_node(says: NodeInventory) -> None:
    """Its folder elsewhere is older. An actor where it was last can open nothing else."""
    there = [*inventories([moved_to_4(1)], [moved_to_4(2)], [OLD]), (node(4), says)]
    decision = decide("x", there, {})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [1, 2]
    assert [(missing.member, missing.pin) for missing in decision.missing] == [(3, "node:10.0.0.4")]
    assert decision.withheld == {}
    with pytest.raises(MembersMissing, match=r"/d/x/m3 on 10\.0\.0\.3 is not used: m3 was last at node:10\.0\.0\.4"):
        decide("x", there[1:], {})


@pytest.mark.parametrize(
    ("says", "placement", "live", "started"),
    [
        (BAD, (), (1, 2), []),
        (SILENT, (), (1, 2), []),
        (NO_PACKAGE, (), (1, 2), [3]),
        (BAD, ("disk",), (1, 2), [3]),
        (BAD, (), (1,), [2, 3]),
        (BAD, (), (), [1, 2, 3]),
    ],
    ids=["bad", "silent", "it has no package", "no member may live there", "it is needed", "all are"],
)
def test_where_a_newer_folder_may_be_hidden_a_member_is_started_only_if_it_is_needed(
    says: NodeInventory, placement: tuple[str, ...], live: tuple[int, ...], started: list[int]
) -> None:
    """A node without members whose disk is bad must not stop a cluster of which all data is there."""
    there = [*inventories([found(1)], [found(2)], [OLD]), (node(4), says)]
    decision = decide("x", there, {member: member_spec(member) for member in live}, placement=placement)
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == started
    assert set(decision.withheld) == {1, 2, 3} - set(started) - set(live)
    assert all(says.problem in why for why in decision.withheld.values())


@pytest.mark.parametrize(("address", "withheld"), [("10.0.0.3", set()), ("10.0.0.9", {3})], ids=["host", "container"])
def test_a_folder_that_does_not_tell_its_inode_is_one_for_all_nodes_of_its_address(
    address: str, withheld: set[int]
) -> None:
    """Two Ray nodes of a host see the same folder. Containers of one machine may each have one of that path."""
    unread = FoundData("m3", "/d/x/m3", (0, 0), damage="it cannot be read: no", refused=True)
    twin = RayNode("id3b", address, frozenset({f"node:{address}"}))
    there = inventories([found(1)], [found(2)], [unread])
    decision = decide("x", [*there, (twin, NodeInventory("/d/x", "machine3", (unread,)))], {})
    assert isinstance(decision, StartMembers)
    assert [place.member for place in decision.places] == [1, 2]
    assert [missing.member for missing in decision.missing] == [3]
    assert set(decision.withheld) == withheld


def test_no_actor_is_started_where_it_would_open_a_copy() -> None:
    """The node says nothing but that: perhaps the original is there, too."""
    copy = msgspec.structs.replace(found(3), served=Served(4, 9, copied=True))
    half = NodeInventory("/d/x", "machine3", (copy,), problem="/d/x: Input/output error")
    decision = decide("x", [*inventories([found(1)], [found(2)]), (node(3), half)], {})
    assert isinstance(decision, StartMembers)
    assert (set(decision.withheld), decision.copied) == ({3}, {})
