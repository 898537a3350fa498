"""What the status says of members that are there and of those that are not, and how many more may be lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raykeeper.actors.cluster.status import ClusterStatus, status_of
from raykeeper.actors.ray_view import RayNode
from raykeeper.schema.member_record import MemberRecord
from raykeeper.schema.operator_frames import MemberStatus

NODES = [RayNode("n1", "10.0.0.1", frozenset({"node:10.0.0.1"})), RayNode("n3", "10.0.0.3", frozenset({"disk-3"}))]
TABLE = (
    MemberRecord(1, "m1", "node:10.0.0.1", "/data/jobs"),
    MemberRecord(2, "m2", "node:10.0.0.2", "/data/jobs"),
    MemberRecord(3, "m3", "disk-3", "/data/jobs"),
)


def member(id: int, role: str = "follower", **fields: Any) -> MemberStatus:
    status = MemberStatus(
        cluster_name="jobs",
        cluster=7,
        member=id,
        name=f"m{id}",
        role=role,
        term=4,
        leader=1,
        commit_index=20,
        applied_index=20,
        last_log_index=20,
        first_log_index=1,
        revision=9,
        compact_revision=1,
        voters=(1, 2, 3),
        learners=(),
        db_size=0,
        pid=100 + id,
        node=f"n{id}",
        table=TABLE,
        session_count=5,
    )
    return msgspec.structs.replace(status, **fields)


def status(*members: MemberStatus) -> ClusterStatus:
    actors: dict[int, Any] = {each.member: object() for each in members}
    return status_of("jobs", 7, actors, {each.member: each for each in members}, NODES, (), ())


def test_a_lost_member_has_its_last_place_and_its_silence() -> None:
    found = status(
        member(1, "leader", silent={2: 75.0, 3: 0.1}, lacking_for={2: 80.0, 3: 2.0}),
        member(3, puts=7.0, applied_index=13, without_lane={2: "no"}),
    )
    m1, m2, m3 = found.members
    assert (m1.address, m1.silent_for, m1.lag) == ("10.0.0.1", None, 0)
    assert (m2.role, m2.address, m2.folder, m2.silent_for) == ("silent", "10.0.0.2", "/data/jobs/m2", 75.0)
    assert (m3.address, m3.lag, m3.lag_seconds, m3.puts, m3.without_lane) == ("10.0.0.3", 7, 2.0, 7.0, {2: "no"})
    assert (found.spare, found.complete, found.sessions) == (0, False, 5)
    assert found.alarms[0] == "one more loss stops writes"


def test_since_when_a_member_has_its_role_or_is_lost_is_told_by_any_member() -> None:
    lost = {2: 1e9, 3: 2e9}  # m3 answers: it has just come back
    for leader in ("leader", "follower"):
        found = status(member(1, leader, role_for=3.5, lost_since=lost), member(3, applied_index=13))
        m1, m2, m3 = found.members
        assert (m1.role_for, m1.lost_since) == (3.5, None)
        assert (m2.role_for, m2.lost_since) == (None, 1e9)
        assert (m3.role_for, m3.lost_since) == (None, None), "a member of an older version does not say"


def test_two_members_without_a_lane_are_one_alarm() -> None:
    """Two followers call each other for nothing until their leader is lost, so nothing of theirs is slower."""
    found = status(
        member(1, "leader", without_lane={3: "a firewall"}),
        member(2, without_lane={3: "swallowed"}),
        member(3, without_lane={1: "refused", 2: "refused"}),
    )
    assert found.alarms == (
        "m1 has no lane to m3 and uses slower actor calls: a firewall",
        "m2 has no lane to m3: swallowed",
    )
    m3 = found.members[2]
    assert m3.without_lane == {1: "refused", 2: "refused"}
    found = status(member(1, "leader"), member(2), member(3, without_lane={1: "refused"}))
    assert found.alarms == ("m3 has no lane to m1 and uses slower actor calls: refused",)


def test_all_is_well() -> None:
    found = status(member(1, "leader"), member(2), member(3))
    assert (found.spare, found.complete, found.alarms) == (1, True, ())


def test_without_a_leader_it_is_not_complete() -> None:
    found = status(member(1), member(2), member(3))
    assert not found.complete
    assert found.alarms[0] == "no member leads"


@pytest.mark.parametrize(
    ("voters", "outgoing", "spare"),
    [((1,), (), 0), ((1, 3), (), 0), ((1, 2, 3, 4, 5), (), -1), ((1, 3), (1, 2, 3), 0), ((1, 3), (2, 4, 5), -2)],
)
def test_a_joint_configuration_can_spare_what_both_halves_can(
    voters: tuple[int, ...], outgoing: tuple[int, ...], spare: int
) -> None:
    fields = {"voters": voters, "outgoing": outgoing}
    assert status(member(1, "leader", **fields), member(3, **fields)).spare == spare


def test_who_is_about_to_leave_is_not_missed() -> None:
    found = status(member(1, "leader"), member(2), member(3), member(4))
    assert found.members[3].role == "outside"
    assert found.complete
