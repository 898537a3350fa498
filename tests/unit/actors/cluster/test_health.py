"""Which checks of a cluster's health fail, and why."""

from __future__ import annotations

import msgspec

from raykeeper.actors.cluster.health import health_of
from raykeeper.limits import Limits
from raykeeper.schema.operator_frames import AlarmStatus, MemberStatus

WELL = MemberStatus(
    cluster_name="c",
    cluster=1,
    member=1,
    name="m1",
    role="leader",
    term=1,
    leader=1,
    commit_index=1,
    applied_index=1,
    last_log_index=1,
    first_log_index=1,
    revision=1,
    compact_revision=0,
    voters=(1, 2),
    learners=(),
    db_size=0,
    pid=1,
    node="",
    free_bytes=10 * Limits().reserve_bytes,
)
replace = msgspec.structs.replace


def failed(statuses: dict[int, MemberStatus], read_error: str = "") -> dict[tuple[str, str], str]:
    return {(each.name, each.member): each.why for each in health_of((1, 2), statuses, read_error) if not each.ok}


def test_all_is_well() -> None:
    statuses = {1: WELL, 2: replace(WELL, member=2, free_bytes=0)}  # which has not looked yet
    assert failed(statuses) == {}
    assert {(each.name, each.member) for each in health_of((1, 2), statuses, "")} == {
        ("linearizable_read", ""),
        ("alarms", ""),
        ("clocks", ""),
        ("serializable_read", "m1"),
        ("serializable_read", "m2"),
        ("disk", "m1"),
        ("disk", "m2"),
    }


def test_a_member_that_is_gone_and_no_quorum() -> None:
    assert failed({1: WELL}, "no leader") == {
        ("serializable_read", "m2"): "it does not answer",
        ("linearizable_read", ""): "no leader",
    }


def test_one_that_does_not_serve() -> None:
    assert failed({1: WELL, 2: replace(WELL, member=2, why_not_serving="it is starting")}) == {
        ("serializable_read", "m2"): "it is starting"
    }


def test_disk_and_alarms_as_the_newest_member_knows_them() -> None:
    alarm = AlarmStatus(2, "NOSPACE", "it is full")
    full = replace(WELL, member=2, free_bytes=1, applied_index=9, alarms=(alarm,))
    found = failed({1: WELL, 2: full})
    assert found.keys() == {("disk", "m2"), ("alarms", "")}
    assert "NOSPACE" in found["alarms", ""]


def test_a_clock_that_differs_as_the_leader_sees_it() -> None:
    follower = replace(WELL, member=2, role="follower", clocks={1: -9.0})
    assert failed({1: replace(WELL, clocks={2: 0.1}), 2: follower}) == {}
    found = failed({1: replace(WELL, clocks={2: -3.25}), 2: follower})
    assert found.keys() == {("clocks", "")}
    assert "m2" in found["clocks", ""]
    assert "3.2 s slow" in found["clocks", ""]


def test_no_member_answers() -> None:
    assert failed({}, "gone").keys() == {
        ("linearizable_read", ""),
        ("alarms", ""),
        ("serializable_read", "m1"),
        ("serializable_read", "m2"),
    }
