"""What a launch does besides its decision (``launch_rule.py``): whom it tells, what it waits for; without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from lab.patience import PATIENCE
from raykeeper import ClusterSpec
from raykeeper.actors import discovery
from raykeeper.actors.cluster import launch as launcher
from raykeeper.actors.cluster import node_storage
from raykeeper.actors.cluster.markers import MarkedMember, Marker
from raykeeper.actors.cluster.node_storage import FoundData, NodeInventory
from raykeeper.actors.naming import GAVE_UP, MemberSpec
from raykeeper.actors.ray_view import RayNode
from raykeeper.schema.operator_frames import MemberStatus
from raykeeper.store.data_copies import Served
from raykeeper.store.data_dir import FirstMember, Identity

A = 0xA
NODES = [RayNode(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}"})) for n in (1, 2, 3)]
SPARE = RayNode("id4", "10.0.0.4", frozenset({"node:10.0.0.4"}))


class World:
    """Nodes without data, and a Ray whose actors begin to answer when they are waited for."""

    def __init__(self) -> None:
        self.actors: dict[int, Any] = {}
        self.member_specs: dict[int, MemberSpec] = {}
        self.statuses: dict[int, MemberStatus] = {}
        self.told: dict[str, Marker] = {}
        self.holds: dict[str, tuple[FoundData, ...]] = {}
        """By node id."""
        self.said: list[str] = []

    def run(self, on: dict[str, RayNode], function: Any, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        if function is node_storage.leave_marker:
            self.told.update({id: arguments[id][1] for id in on})
        return {id: NodeInventory("/d/x", id, self.holds.get(id, ())) for id in on}

    def start(self, member_spec: MemberSpec, **how: Any) -> None:
        self.said.append(f"start {member_spec.name}")
        self.actors[member_spec.member] = member_spec

    def ask(self, actors: dict[int, Any], method: str, timeout: float = 3.0) -> dict[int, Any]:
        if timeout > 3.0:
            self.said.append(f"wait for {sorted(actors)}")
        return dict(self.member_specs)

    @contextmanager
    def alone(self, name: str, deadline: float) -> Iterator[None]:
        yield
        self.said.append("let others")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(launcher, "_one_launch_at_a_time", world.alone)
    monkeypatch.setattr(launcher, "member_actors", lambda name: dict(world.actors))
    monkeypatch.setattr(launcher, "listed_actors", lambda name: [])
    monkeypatch.setattr(launcher, "ask_all", world.ask)
    monkeypatch.setattr(launcher, "settled_statuses", lambda actors, timeout: dict(world.statuses))
    monkeypatch.setattr(launcher, "alive_nodes", lambda: NODES)
    monkeypatch.setattr(launcher, "run_where_possible", world.run)
    monkeypatch.setattr(launcher, "run_on", world.run)
    monkeypatch.setattr(launcher, "start_actor", world.start)
    return world


def launch(**fields: Any) -> int:
    return launcher.launch_members(ClusterSpec(name="x", data_dir="/d", **fields), time.monotonic() + 60)


def test_no_other_launch_begins_before_the_processes_of_this_one_are_there(world: World) -> None:
    """It would take them for members that do not answer, end them, and restart them."""
    assert launch()
    assert world.said == ["start m1", "start m2", "start m3", "wait for [1, 2, 3]", "let others"]
    assert set(world.told) == {"id1", "id2", "id3"}


@pytest.mark.parametrize("supervised", [True, False])
def test_without_a_supervisor_each_launch_tells_the_nodes_of_the_cluster(world: World, supervised: bool) -> None:
    """Also where all members serve and there is nothing to start: nothing else marks nodes that have joined."""
    world.actors = {1: None}
    world.member_specs = {1: MemberSpec("x", A, 1, "m1", "/d/x/m1", "node:10.0.0.1")}
    world.statuses = {
        1: MemberStatus(
            *("x", A, 1, "m1", "leader", 3, 1, 9, 9, 9, 1, 1, 0, (1,), (), 0, 0, "id1"), configuration_index=7
        )
    }
    assert launch(supervised=supervised) == A
    where = MarkedMember(1, "m1", "node:10.0.0.1", "/d/x", "10.0.0.1")
    expected = {} if supervised else dict.fromkeys(("id1", "id2", "id3"), Marker("x", A, (where,), version=7))
    assert world.told == expected


def status(member: int, role: str, **fields: Any) -> MemberStatus:
    return MemberStatus("x", A, member, f"m{member}", role, 1, 1, 1, 1, 1, 1, 1, 0, (), (), 0, 1, "", **fields)


@pytest.mark.parametrize("role", ["starting", GAVE_UP])
def test_a_member_that_opens_its_data_runs_whatever_it_says_beside(
    world: World, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens it again, after its disk had refused: nothing is started in its place."""
    world.actors = {1: None}
    world.member_specs = {1: MemberSpec("x", A, 1, "m1", "/d/x/m1", "node:10.0.0.1")}
    world.statuses = {1: status(1, role, why_not_serving="no space", opening=True)}
    world.holds = {id: (data(member, member),) for id, member in (("id4", 1), ("id2", 2), ("id3", 3))}
    monkeypatch.setattr(launcher, "alive_nodes", lambda: [*NODES, SPARE])
    launch()
    assert "start m1" not in world.said
    assert world.said[:2] == ["start m2", "start m3"]


def test_it_waits_for_members_that_open_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    opens = status(1, GAVE_UP, why_not_serving="no space", opening=True)
    serves = status(1, "follower")
    shown = [opens, opens, serves, opens]
    monkeypatch.setattr(discovery, "ask_all", lambda handles, method: {1: shown.pop(0)})
    monkeypatch.setattr(discovery, "pause_between_checks", lambda seconds: None)
    assert discovery.settled_statuses({1: None}, PATIENCE) == {1: serves}


# --- members without data --------------------------------------------------------------------------------------------

FIRST = tuple(FirstMember(n, f"m{n}", f"node:10.0.0.{n}") for n in (1, 2, 3))


def data(member: int, inode: int = 1, **fields: Any) -> FoundData:
    """A member's folder."""
    identity = Identity(cluster_name="x", cluster=A, member=member, name=f"m{member}", members=FIRST)
    return FoundData(f"m{member}", f"/d/x/m{member}", (1, inode), identity, **fields)


OLDER = data(1, served=Served(5, 1))
UNREAD = FoundData("m1", "/d/x/m1", (1, 7), damage="it cannot be read: no", refused=True)
REFUSED = msgspec.structs.replace(data(1, 7), damage="it cannot be read: no", refused=True)
COPY = data(1, 9, served=Served(5, 1, copied=True))
AT_HOME, AWAY = NODES, [NODES[1], NODES[2]]


@pytest.mark.parametrize(
    ("nodes", "here", "there", "started"),
    [
        (AT_HOME, OLDER, UNREAD, False),
        (AT_HOME, OLDER, REFUSED, False),
        (AT_HOME, UNREAD, UNREAD, False),
        (AT_HOME, None, UNREAD, False),
        (AWAY, None, UNREAD, False),
        (AWAY, None, COPY, False),
        (AT_HOME, UNREAD, None, True),
        (AT_HOME, REFUSED, None, True),
        (AT_HOME, None, None, True),
        (AWAY, None, None, True),
    ],
    ids=[
        "whose it is, beside an older one",
        "how new it is, beside an older one",
        "two cannot be read",
        "it cannot be read, and is elsewhere",
        "and its node is away",
        "only a copy, and its node is away",
        "its only one cannot be read",
        "in part",
        "it has none",
        "it is away",
    ],
)
def test_no_actor_is_started_where_it_would_find_an_older_folder_than_one_that_cannot_be_read(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[RayNode],
    here: FoundData | None,
    there: FoundData | None,
    started: bool,
) -> None:
    """``here`` is where it was last, for all that is known, ``there`` is another node. It would vote twice: the folder
    lacks what it has promised from the newer one. Where nothing speaks of such a folder, it is started."""
    world.holds = {"id2": (data(2, 2),), "id3": (data(3, 3),)}
    world.holds |= {id: (found,) for id, found in (("id1", here), ("id4", there)) if found is not None}
    monkeypatch.setattr(launcher, "alive_nodes", lambda: [*nodes, SPARE])
    assert launch() == A
    begun = {line for line in world.said if line.startswith("start")}
    assert begun == {"start m2", "start m3"} | ({"start m1"} if started else set())


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("there", [COPY, UNREAD], ids=["a copy", "it cannot be read"])
def test_without_a_supervisor_an_actor_waits_for_the_original_of_a_copy(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    there: FoundData,
    supervised: bool,
) -> None:
    """Nobody else would start it once its node is back. Where that may hold an older folder, the log says so."""
    world.holds = {"id2": (data(2, 2),), "id3": (data(3, 3),), "id4": (there,)}
    monkeypatch.setattr(launcher, "alive_nodes", lambda: [*AWAY, SPARE])
    launch(supervised=supervised)
    waits = there == COPY and not supervised
    assert ("start m1" in world.said) == waits
    warnings = [record.getMessage() for record in caplog.records if "m1 is not started" in record.getMessage()]
    assert len(warnings) == (0 if waits else 1)
    assert all(("launch again" in warning) != supervised for warning in warnings)
