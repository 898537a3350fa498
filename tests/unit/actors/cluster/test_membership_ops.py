"""Steps that are done on a member's node, where several nodes offer its pin. Played nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raykeeper import KeeperError, Unavailable
from raykeeper.actors.cluster import membership
from raykeeper.actors.cluster.hung_process import HungProcess
from raykeeper.actors.cluster.membership import MembershipOps
from raykeeper.actors.ray_view import RayNode
from raykeeper.schema.member_record import MemberRecord

NODES = [
    RayNode("a", "10.0.0.1", frozenset({"coord"})),
    RayNode("b", "10.0.0.2", frozenset({"coord"})),
    RayNode("c", "10.0.0.3", frozenset({"other"})),
]
MEMBER = MemberRecord(3, "m3", "coord", "/data")
OPS = MembershipOps("c", 7, "/data")

NOT_HERE = HungProcess(here=False)
ENDED = HungProcess(5, "T (stopped)", ended=True)
NO_PROCESS = HungProcess()
AWAY = Unavailable("it does not answer")


class Nodes:
    """What they answer, by id."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def run(self, nodes: Mapping[str, RayNode], function: Any, arguments: Any, timeout: float) -> dict[str, Any]:
        assert set(arguments) == set(nodes)
        self.asked += nodes
        return {node: self._answers[node] for node in nodes}


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"a": NOT_HERE, "b": ENDED}, ENDED),
        ({"a": ENDED, "b": NOT_HERE}, ENDED),
        ({"a": NO_PROCESS, "b": ENDED}, ENDED),
        ({"a": ENDED, "b": AWAY}, ENDED),
        ({"a": NOT_HERE, "b": NO_PROCESS}, NO_PROCESS),
        ({"a": NOT_HERE, "b": NOT_HERE}, NOT_HERE),
        ({"a": NOT_HERE, "b": AWAY}, None),
    ],
)
def test_the_node_with_its_data_answers_for_a_member_that_hangs(
    answers: dict[str, Any], found: HungProcess | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(answers)
    monkeypatch.setattr(membership, "run_where_possible", nodes.run)
    if found is None:
        with pytest.raises(KeeperError):
            OPS.end_hung_member(MEMBER, NODES)
    else:
        assert OPS.end_hung_member(MEMBER, NODES) == found
    assert nodes.asked == ["a", "b"]
    with pytest.raises(Unavailable, match="not there"):
        OPS.end_hung_member(MEMBER, NODES[2:])


@pytest.mark.parametrize(("where", "asked"), [("", ["a", "b"]), ("c", ["c"]), ("gone", [])])
def test_its_data_is_deleted_wherever_it_may_be(where: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(dict.fromkeys("abc"))
    monkeypatch.setattr(membership, "run_on", nodes.run)
    assert OPS.delete_data(MEMBER, NODES, where) == bool(asked)
    assert nodes.asked == asked
