"""Which node a new member gets."""

from __future__ import annotations

import pytest

from raykeeper.actors.cluster.placement import choose_placement, shared_hosts
from raykeeper.actors.ray_view import RayNode


def node(name: str, address: str = "", *resources: str) -> RayNode:
    address = address or f"10.0.0.{ord(name) - 96}"
    return RayNode(name, address, frozenset({f"node:{address}", *resources}))


def chosen(*args: object, **options: object) -> tuple[str, str] | None:
    chosen = choose_placement(*args, **options)  # type: ignore[arg-type]
    return None if chosen is None else (chosen.node.id, chosen.pin)


def test_a_node_without_members_and_on_a_machine_without_them_if_there_is_one() -> None:
    nodes = [node("a"), node("b", "10.0.0.1"), node("c")]
    assert chosen(nodes, (), {1: "a"}) == ("c", "node:10.0.0.3")
    assert chosen(nodes, (), {1: "a", 2: "c"}) == ("b", "node:10.0.0.1")


def test_beside_another_member_only_where_that_is_usual_or_asked_for() -> None:
    nodes = [node("a"), node("b")]
    assert chosen(nodes, (), {1: "a", 2: "b"}) is None
    assert chosen(nodes, (), {1: "a", 2: "b"}, vacated="b") == ("b", "node:10.0.0.2")
    assert chosen(nodes, (), {1: "a", 2: "a", 3: "b"}) == ("b", "node:10.0.0.2")
    assert chosen(nodes, (), {1: "a", 2: "b"}, crowded=True) is not None


def test_another_node_rather_than_the_one_whose_disk_was_lost() -> None:
    assert chosen([node("a"), node("b")], (), {}, vacated="a") == ("b", "node:10.0.0.2")


def test_only_resources_that_the_spec_names() -> None:
    nodes = [node("a", "", "disk"), node("b"), node("c", "", "disk", "fast")]
    assert chosen(nodes, ("fast", "disk"), {}) == ("c", "fast")
    assert chosen(nodes, ("fast", "disk"), {1: "c"}) == ("a", "disk")
    assert chosen(nodes, ("disk",), {1: "a", 2: "c"}) is None
    assert chosen([], (), {}) is None


SPREAD, DISKS = (), ("disk",)


@pytest.mark.parametrize(
    ("voters", "nodes", "placement", "hosts"),
    [
        pytest.param({1: "n1", 2: "n2", 3: "n3"}, ("n1", "n2", "n3", "n4"), SPREAD, [], id="a host each"),
        pytest.param({1: "n1", 2: "n1", 3: "n2"}, ("n1", "n2"), SPREAD, [], id="no host without a voter"),
        pytest.param({1: "n1", 2: "n1", 3: "n2"}, ("n1", "n2", "n3"), SPREAD, ["n1"], id="two on one"),
        pytest.param({1: "n1", 2: "n1", 3: "n1"}, ("n1", "n2", "n3"), SPREAD, ["n1"], id="all on the head"),
        pytest.param(
            {1: "n1", 2: "n1b", 3: "n2"}, ("n1", "n1b", "n2", "n3"), SPREAD, ["n1"], id="two Ray nodes, one host"
        ),
        pytest.param({1: "n1", 2: "n1", 3: "n2"}, ("n1", "n2", "n3"), DISKS, [], id="placement excludes the others"),
        pytest.param({1: "n1", 2: "n1", 3: "n2"}, ("n1", "n2", "d3"), DISKS, ["n1"], id="placement allows another"),
        pytest.param({1: "gone", 2: "gone", 3: "n2"}, ("n2", "n3"), SPREAD, [], id="where a node is gone"),
    ],
)
def test_voters_that_share_a_host_although_others_are_there(
    voters: dict[int, str], nodes: tuple[str, ...], placement: tuple[str, ...], hosts: list[str]
) -> None:
    alive = [
        RayNode(name, f"10.0.0.{name[1]}", frozenset({f"node:10.0.0.{name[1]}", "disk" if name[0] == "d" else "cpu"}))
        for name in nodes
    ]
    lines = shared_hosts(voters, alive, placement)
    assert len(lines) == len(hosts)
    for line in lines:
        assert "share the host 10.0.0.1" in line
        assert "raykeeper member add 10.0.0." in line
