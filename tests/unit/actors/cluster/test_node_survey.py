"""A supervisor's survey of the nodes: markers for those that join, alarms for data of other clusters."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from lab.patience import PATIENCE
from raykeeper.actors.cluster.markers import MarkedMember, Marker
from raykeeper.actors.cluster.node_storage import NodeInventory
from raykeeper.actors.cluster.node_survey import NodeSurvey, marker_of
from raykeeper.actors.cluster.observe import Observation
from raykeeper.actors.cluster.ray_nodes import PackageMissing
from raykeeper.actors.ray_view import RayNode
from raykeeper.limits import NODE_SURVEY_REPEAT_S, STEP_RETRY_S
from raykeeper.schema.member_record import MemberRecord
from raykeeper.schema.operator_frames import MemberStatus

A, B = 0xA, 0xB


def node(n: int) -> RayNode:
    return RayNode(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}"}))


def observation(*nodes: int, version: int = 4, unregistered: int = 0) -> Observation:
    """Members 1 to 3, each on the node of its number, as member 1 tells."""
    table = tuple(
        MemberRecord(m, f"m{m}", f"node:10.0.0.{m}", "/d/x", joined=True) for m in (1, 2, 3) if m != unregistered
    )
    plain: dict[str, Any] = {
        "cluster_name": "x",
        "cluster": A,
        "member": 1,
        "name": "m1",
        "role": "leader",
        **dict.fromkeys(("term", "leader", "commit_index", "applied_index", "last_log_index", "first_log_index"), 1),
        **dict.fromkeys(("revision", "compact_revision", "db_size", "pid"), 0),
        "voters": (1, 2, 3),
        "learners": (),
        "node": "id1",
    }
    status = MemberStatus(**plain, table=table, configuration_index=version)
    return Observation(tuple(map(node, nodes)), dict.fromkeys((1, 2, 3)), {1: status}, frozenset())


class Nodes:
    """What the nodes hold, and whom was asked."""

    def __init__(self, **holds: Any) -> None:
        self.holds = {f"id{name[1:]}": held for name, held in holds.items()}
        self.asked: list[str] = []

    def run(self, on: Mapping[str, RayNode], function: Any, arguments: Mapping[str, Any], timeout: float) -> Any:
        self.asked = sorted(on)
        self.given = {id: arguments[id][1] for id in on}
        return {id: self.holds.get(id, NodeInventory("/d/x", "")) for id in on}


def test_the_marker_tells_where_each_member_lives_and_where_one_that_is_gone_was() -> None:
    first = marker_of(observation(1, 2, 3), "x", A, None)
    assert first is not None
    assert first.version == 4
    assert [str(member) for member in first.members] == [
        f"m{m} (last at node:10.0.0.{m}, in /d/x/m{m})" for m in (1, 2, 3)
    ]
    assert [member.address for member in first.members] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert marker_of(observation(1, 2), "x", A, first) == first


def test_no_marker_is_made_of_what_is_only_half_known() -> None:
    assert marker_of(observation(1, 2, 3, unregistered=2), "x", A, None) is None
    assert marker_of(nobody_answers(), "x", A, None) is None


def nobody_answers() -> Observation:
    return Observation((node(1),), {}, {}, frozenset())


def test_each_node_is_marked_when_it_joins_and_when_members_have_changed() -> None:
    nodes = Nodes()
    around = NodeSurvey("/d", Marker("x", A), nodes.run)
    assert around.survey_due_nodes(0.0) == []
    assert nodes.asked == [], "nothing is known yet that a marker could say"
    around.set_observation(observation(1, 2, 3))
    around.survey_due_nodes(1.0)
    assert nodes.asked == ["id1", "id2", "id3"]
    around.set_observation(observation(1, 2, 3, 9))
    around.survey_due_nodes(2.0)
    assert nodes.asked == ["id9"]
    assert [member.name for member in nodes.given["id9"].members] == ["m1", "m2", "m3"]
    around.survey_due_nodes(3.0)
    assert nodes.asked == []
    around.set_observation(observation(1, 2, 3, 9, version=5))
    around.survey_due_nodes(4.0)
    assert nodes.asked == ["id1", "id2", "id3", "id9"]
    around.survey_due_nodes(5.0 + NODE_SURVEY_REPEAT_S)
    assert nodes.asked == ["id1", "id2", "id3", "id9"]


def test_a_node_that_cannot_be_marked_is_said_and_tried_again() -> None:
    nodes = Nodes(n9=PackageMissing("Ray node 10.0.0.9 cannot load RayKeeper"))
    around = NodeSurvey("/d", Marker("x", A), nodes.run)
    around.set_observation(observation(1, 9))
    assert around.survey_due_nodes(0.0) == ["Ray node 10.0.0.9 cannot load RayKeeper"]
    assert around.survey_due_nodes(1.0) == []
    around.survey_due_nodes(1.0 + STEP_RETRY_S)
    assert nodes.asked == ["id9"]


def test_what_a_node_brings_of_another_cluster_is_an_alarm_as_long_as_it_is_there() -> None:
    other = Marker("x", B, (MarkedMember(1, "m1"),))
    nodes = Nodes(n9=NodeInventory("/d/x", "", markers=(Marker("x", A), other)))
    around = NodeSurvey("/d", Marker("x", A), nodes.run)
    around.set_observation(observation(1, 2, 3, 9))
    around.survey_due_nodes(0.0)
    [alarm] = around.alarms
    for part in ("id b", "10.0.0.9", "raykeeper down --cluster x --destroy --id b --data-dir /d"):
        assert part in alarm
    nodes.holds.clear()
    around.survey_due_nodes(1.0 + STEP_RETRY_S)
    assert nodes.asked == ["id9"], "a node with an alarm is surveyed again soon"
    assert around.alarms == ()
    nodes.holds["id9"] = NodeInventory("/d/x", "", markers=(other,))
    around.survey_due_nodes(1.0 + 2 * NODE_SURVEY_REPEAT_S)
    assert around.alarms
    around.set_observation(observation(1, 2, 3))
    around.survey_due_nodes(2.0 + 2 * NODE_SURVEY_REPEAT_S)
    assert around.alarms == ()


def test_a_marker_travels_whole() -> None:
    marker = marker_of(observation(1, 2, 3), "x", A, None)
    assert msgspec.json.decode(msgspec.json.encode(marker), type=Marker) == marker


def test_once_ended_it_leaves_no_marker_any_more() -> None:
    """The cluster may be destroyed next: a marker that comes late would stand for a cluster that is no more."""
    nodes = Nodes()
    around = NodeSurvey("/d", Marker("x", A), nodes.run)
    around.set_observation(observation(1, 2, 3))
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return nodes.run(*arguments)

    around._run = slow
    thread = threading.Thread(target=around.survey_due_nodes, args=(0.0,))
    thread.start()
    assert begun.wait(PATIENCE)
    assert not around.stop_marking(0.01)
    go_on.set()
    assert around.stop_marking(30.0)
    thread.join(PATIENCE)
    nodes.asked = []
    around.set_observation(observation(1, 2, 3, 9))
    assert around.survey_due_nodes(1.0) == []
    assert nodes.asked == []
