"""Giving a cluster up: what of it is ended and deleted, what is left alone, and what is remembered; without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raykeeper.actors.cluster import destroy, node_storage
from raykeeper.actors.cluster.destroy import delete_data, discard
from raykeeper.actors.cluster.markers import MarkedMember, Marker, read_markers, write_marker
from raykeeper.actors.cluster.ray_nodes import PackageMissing
from raykeeper.actors.ray_view import RayNode
from raykeeper.errors import ClusterMismatch, ClusterNotFound, Unavailable
from raykeeper.store.data_dir import FirstMember, Identity
from raykeeper.store.data_lock import locked

A, B = 0xA, 0xB


class World:
    """Nodes with a disk each, and what Ray has to say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alive = [1, 2]
        self.listed: list[str] = []
        self.running: set[int] = set()
        self.stopped: list[str] = []
        self.errors: dict[int, Exception] = {}

    def base(self, n: int) -> str:
        return str(self.folder / str(n) / "x")

    def nodes(self) -> list[RayNode]:
        return [RayNode(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}"})) for n in self.alive]

    def every_node(self) -> list[dict[str, Any]]:
        return [{"NodeManagerAddress": f"10.0.0.{n}"} for n in self.ever]

    ever = (1, 2)

    def run(self, on: Mapping[str, RayNode], function: Any, arguments: Mapping[str, Any], timeout: float) -> Any:
        results: dict[str, Any] = {}
        for id in on:
            number = int(id[2:])
            try:
                if number in self.errors:
                    raise self.errors[number]
                results[id] = function(str(self.folder / str(number)), *arguments[id][1:])
            except Exception as error:
                results[id] = error
        return results

    def member(self, n: int, cluster: int) -> None:
        """Member n of a cluster of two, on node n, with its marker."""
        identity = Identity(
            cluster_name="x", cluster=cluster, member=n, name=f"m{n}", members=(FirstMember(n, f"m{n}"),)
        )
        node_storage.reserve_place(self.base(n), f"m{n}", Marker("x", cluster))
        node_storage.create_member(self.base(n), identity)
        self.mark(n, cluster)

    def mark(self, n: int, cluster: int, members: tuple[int, ...] = (1, 2)) -> None:
        listed = tuple(MarkedMember(m, f"m{m}", f"node:10.0.0.{m}", "/d/x", f"10.0.0.{m}") for m in members)
        write_marker(self.base(n), Marker("x", cluster, listed))

    def left(self, n: int) -> list[str]:
        folder = Path(self.base(n))
        return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(destroy, "alive_nodes", world.nodes)
    monkeypatch.setattr(destroy, "run_where_possible", world.run)
    monkeypatch.setattr(destroy, "in_time", lambda call: world.every_node())
    monkeypatch.setattr(destroy, "listed_actors", lambda name: world.listed)
    monkeypatch.setattr(destroy, "_running", lambda name: set(world.running))
    monkeypatch.setattr(destroy, "stop_members", world.stopped.append)
    return world


def test_of_a_cluster_whose_nodes_are_all_there_nothing_is_left(world: World) -> None:
    world.member(1, A)
    world.member(2, A)
    delete_data("x", A, "/d")
    assert (world.left(1), world.left(2)) == ([], [])


@pytest.mark.parametrize("how", ["a member's node is away", "Ray misses a node", "a node says nothing"])
def test_where_something_may_be_left_it_is_remembered_as_destroyed(world: World, how: str) -> None:
    world.member(1, A)
    world.mark(2, A)
    if how == "a member's node is away":
        world.alive = [1]
    elif how == "Ray misses a node":
        world.ever = (1, 2, 3)
    else:
        world.errors[2] = Unavailable("Ray node 10.0.0.2 did not answer")
    if world.errors:
        with pytest.raises(Unavailable, match="did not answer"):
            delete_data("x", A, "/d")
    else:
        delete_data("x", A, "/d")
    [marker] = read_markers(world.base(1), "x")
    assert (marker.cluster, marker.destroyed) == (A, True)
    assert world.left(1) == ["cluster-a.json"]
    # and when all are back, it is deleted for good
    world.alive, world.ever, world.errors = [1, 2], (1, 2), {}
    assert discard("x", A, "/d") == A
    assert (world.left(1), world.left(2)) == ([], [])


def test_a_node_that_cannot_list_its_folder_may_hold_something(world: World) -> None:
    world.member(1, A)
    folder = Path(world.base(2))
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.name)  # to itself: it fails like a sector that is bad
    with pytest.raises(Unavailable, match=r"10\.0\.0\.2 .*symbolic links"):
        discard("x", B, "/d")
    with pytest.raises(node_storage.UnusableFolder, match="symbolic links"):
        delete_data("x", A, "/d")
    [marker] = read_markers(world.base(1), "x")
    assert (marker.cluster, marker.destroyed) == (A, True)
    assert world.left(1) == ["cluster-a.json"]


def test_nodes_that_cannot_list_their_folders_do_not_keep_the_rest_from_being_given_up(world: World) -> None:
    """Their disks died, and the majority with them; or no member could ever live there."""
    world.alive, world.ever = [1, 2, 3], (1, 2, 3)
    world.member(1, A)
    world.mark(1, A, (1, 2, 3))
    world.listed = ["m1", "m2", "m3"]
    for n in (2, 3):
        folder = Path(world.base(n))
        folder.parent.mkdir(parents=True)
        folder.symlink_to(folder.name)  # to itself: it fails like a sector that is bad
    with pytest.raises(Unavailable, match=r"10\.0\.0\.2 .*symbolic links"):
        discard("x", None, "/d")  # they may hold something of another cluster
    assert (world.stopped, "m1" in world.left(1)) == ([], True)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"10\.0\.0\.2 .*symbolic links.* On the other nodes .* was given up"):
            discard("x", A, "/d")
        [marker] = read_markers(world.base(1), "x")
        assert (marker.cluster, marker.destroyed, world.left(1)) == (A, True, ["cluster-a.json"])
    assert world.stopped == ["x"]
    for n in (2, 3):
        Path(world.base(n)).unlink()
    world.member(2, A)  # its disk is back
    assert discard("x", A, "/d") == A
    assert [world.left(n) for n in (1, 2, 3)] == [[], [], []]


def test_what_else_fails_is_said_before_what_cannot_be_listed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.alive, world.ever = [1, 2], (1, 2)
    folder = Path(world.base(1))
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.name)
    world.member(2, A)
    monkeypatch.setattr(destroy, "STOP_TIMEOUT_S", 0.0)
    with locked(world.base(2), "m2"), pytest.raises(Unavailable) as failed:
        discard("x", A, "/d")
    assert "symbolic links" not in str(failed.value)
    assert "m2" in world.left(2)


def test_a_node_without_the_package_keeps_nothing_from_being_deleted(world: World) -> None:
    world.member(1, A)
    world.errors[2] = PackageMissing("Ray node 10.0.0.2 cannot load RayKeeper")
    delete_data("x", A, "/d")
    assert world.left(1) == []


@pytest.mark.parametrize(
    ("running", "listed", "given", "stops"),
    [
        pytest.param(set(), ["m1", "supervisor"], A, True, id="actors that wait for their nodes"),
        pytest.param(set(), [], A, False, id="nothing runs"),
        pytest.param({A}, ["m1", "m2"], A, True, id="it runs"),
        pytest.param({B}, ["m1", "m2"], A, False, id="another cluster of that name runs"),
        pytest.param(set(), ["m1"], None, True, id="there is only one"),
    ],
)
def test_only_its_own_actors_are_ended(
    world: World, running: set[int], listed: list[str], given: int | None, stops: bool
) -> None:
    world.member(1, A)
    world.running, world.listed = running, listed
    assert discard("x", given, "/d") == A
    assert bool(world.stopped) is stops
    assert world.left(1) == []


def test_data_of_the_cluster_that_runs_is_not_touched(world: World) -> None:
    world.member(1, B)
    world.member(2, A)
    world.mark(2, B)
    world.running, world.listed = {B}, ["m1"]
    before = world.left(1)
    assert discard("x", A, "/d") == A
    assert (world.left(1), world.left(2), world.stopped) == (before, ["cluster-b.json"], [])


def test_actors_that_nobody_knows_the_cluster_of_are_ended(world: World) -> None:
    world.listed = ["m1", "m2"]
    assert discard("x", None, "/d") == 0
    assert world.stopped == ["x"]


def test_an_id_that_nothing_tells_of_gives_up_nothing_of_another(world: World) -> None:
    """Also where the actors do not say whose they are: the traces do."""
    world.member(1, A)
    world.listed = ["m1", "supervisor"]
    before = world.left(1)
    with pytest.raises(ClusterNotFound, match="there are traces of id a"):
        discard("x", 0xC, "/d")
    assert (world.left(1), world.stopped) == (before, [])


@pytest.mark.parametrize("destroyed", [False, True])
def test_actors_that_may_be_of_another_cluster_are_not_ended(world: World, destroyed: bool) -> None:
    """What is left of one is given up while the nodes of the other are away, and its actors wait for them."""
    world.mark(1, B)
    write_marker(world.base(1), Marker("x", A, destroyed=destroyed))
    world.listed = ["m1", "m2", "supervisor"]
    assert discard("x", A, "/d") == A
    assert (world.left(1), world.stopped) == (["cluster-b.json"], [])
    assert discard("x", B, "/d") == B
    assert (world.left(1), world.stopped) == ([], ["x"])


@pytest.mark.parametrize("given", [A, None])
def test_nothing_at_all_is_said(world: World, given: int | None) -> None:
    with pytest.raises(ClusterNotFound, match="nothing of cluster x"):
        discard("x", given, "/d")


def test_of_two_one_must_be_named(world: World) -> None:
    world.member(1, A)
    world.member(2, B)
    with pytest.raises(ClusterMismatch, match="by its id: a, b"):
        discard("x", None, "/d")
    assert "m1" in world.left(1)
    assert discard("x", B, "/d") == B
    assert (world.left(1), world.left(2)) == (["cluster-a.json", "m1"], [])


def test_nothing_is_given_up_while_a_node_does_not_say_what_it_holds(world: World) -> None:
    world.member(1, A)
    world.errors[2] = Unavailable("Ray node 10.0.0.2 did not answer")
    with pytest.raises(Unavailable, match="did not answer"):
        discard("x", None, "/d")
    assert "m1" in world.left(1)


@pytest.mark.parametrize("destroyed", [False, True])
@pytest.mark.parametrize("away", [False, True])
def test_damaged_data_that_does_not_say_its_cluster_can_be_given_up(world: World, destroyed: bool, away: bool) -> None:
    """As the error of a launch or a restore says, with a data directory and without an id."""
    world.member(1, A)
    discard("x", A, "/d")
    folder = Path(world.base(1), "m1")
    folder.mkdir(parents=True)
    (folder / "CURRENT").write_text("nobody knows")
    if destroyed:
        write_marker(world.base(1), Marker("x", A, destroyed=True))
    if away:
        world.ever = (1, 2, 3)
    assert discard("x", None, "/d") == 0
    assert world.left(1) == (["cluster-a.json"] if destroyed else [])
    with pytest.raises(ClusterNotFound):
        discard("x", None, "/d")
