"""Restarting members one by one: with whom it begins, and what is said when the time is over.
``tests/cluster/test_upgrade.py`` has the rest."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lab.patience import PATIENCE
from raykeeper.actors.cluster import upgrade
from raykeeper.actors.cluster.observe import Observation
from raykeeper.actors.naming import GAVE_UP
from raykeeper.errors import ClusterNotFound, KeeperError, Unavailable
from raykeeper.schema.operator_frames import MemberStatus


def test_who_was_waited_for_is_said_even_if_ray_is_asked_when_the_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [SimpleNamespace(leader=None)]

    def observe(cluster_name: str) -> Any:
        if seen:
            return seen.pop()
        raise Unavailable("Ray's control service did not answer in time")

    monkeypatch.setattr(upgrade, "observe_cluster", observe)
    monkeypatch.setattr(upgrade, "pause_between_checks", lambda pause: None)
    with pytest.raises(Unavailable, match=r"one by one: there is no leader \(Ray's control service"):
        upgrade._wait_whole("jobs", {}, time.monotonic() + PATIENCE)
    with pytest.raises(Unavailable, match=r"^Ray's control service"):
        upgrade._wait_whole("jobs", {}, time.monotonic() + PATIENCE)


@pytest.mark.parametrize(
    ("error", "patience", "expected"),
    [
        (ClusterNotFound("this process is not attached to Ray"), PATIENCE, ClusterNotFound),
        (ClusterNotFound("this process is not attached to Ray"), 0.0, Unavailable),
        (Unavailable("Ray's control service did not answer in time"), PATIENCE, Unavailable),
    ],
    ids=["long before the end", "at the end", "no answer"],
)
def test_only_the_end_of_the_time_changes_what_an_error_is(
    error: KeeperError, patience: float, expected: type[KeeperError], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = False

    def observe(cluster_name: str) -> Any:
        if over:
            raise error
        return SimpleNamespace(leader=None)

    def pause(seconds: float) -> None:
        nonlocal over
        over = True
        clock.now += PATIENCE - patience

    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(upgrade, "time", clock)
    monkeypatch.setattr(upgrade, "observe_cluster", observe)
    monkeypatch.setattr(upgrade, "pause_between_checks", pause)
    with pytest.raises(KeeperError) as caught:
        upgrade._wait_whole("jobs", {}, clock.now + PATIENCE)
    assert type(caught.value) is expected
    assert (caught.value is error) is (expected is ClusterNotFound)


def status(member: int, role: str, why: str = "") -> MemberStatus:
    numbers = "term commit_index applied_index last_log_index first_log_index revision compact_revision db_size"
    plain: dict[str, Any] = {
        **dict.fromkeys(numbers.split(), 1),
        "cluster_name": "jobs",
        "cluster": 1,
        "name": f"m{member}",
        "leader": 0,
        "voters": () if why else (1, 2, 3),
        "learners": () if why else (4, 7),
        "node": "",
        "pid": 100 + member,
    }
    return MemberStatus(member=member, role=role, why_not_serving=why, **plain)


@pytest.mark.parametrize(
    ("first", "restarted"),
    [
        (status(1, "leader"), {2: 102, 4: 104}),
        (status(1, "follower"), {2: 102, 4: 104, 5: 105}),  # what it knows may be old
        (status(1, GAVE_UP, "it was stopped"), {1: 101, 2: 102, 4: 104, 5: 105}),
    ],
    ids=["led", "not led", "none serves"],
)
def test_it_begins_with_members_that_have_given_up_or_were_stopped(
    first: MemberStatus, restarted: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interrupt in the midst of a restart a member is stopped, and its actor is still there."""
    statuses = [
        first,
        status(2, GAVE_UP, "it was stopped"),
        status(3, "follower"),
        status(4, GAVE_UP, "CommandUnknown: a command of version 9"),
        status(5, GAVE_UP, "it was stopped"),  # not one of the configuration
        status(6, GAVE_UP, "it was stopped"),  # Ray does not list it any more
        msgspec.structs.replace(status(7, GAVE_UP, "no space"), opening=True),  # it has refused, and opens again
    ]
    actors = {member: f"actor {member}" for member in (1, 2, 3, 4, 5, 7)}
    seen = Observation((), actors, {each.member: each for each in statuses}, frozenset())
    done: list[tuple[int, Any]] = []
    monkeypatch.setattr(upgrade, "observe_cluster", lambda name: seen)
    monkeypatch.setattr(upgrade, "_restart", lambda member, actor, deadline: done.append((member, actor)))
    assert upgrade._restart_stopped("jobs", PATIENCE) == restarted
    assert done == [(member, actors[member]) for member in restarted]
