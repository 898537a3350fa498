"""Restarting the members of a running cluster one by one, so that each runs the code that is installed now.

One at a time, the leader last, and none before all the others serve and have caught up: so there is a quorum at every
moment (a cluster of one or two voters pauses for as long as a restart takes). What only new code understands stays off
until the last member has reported that it knows it (``store/state/members.py``).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray

from ...errors import KeeperError, Unavailable
from ...limits import POLL_PAUSE_S, STATUS_TIMEOUT_S, STOP_TIMEOUT_S
from ...schema.operator_frames import MemberStatus
from ..deadline import at_most, pause_between_checks, time_left, wait_for
from ..discovery import actors_gone
from ..naming import GAVE_UP, MemberSpec, actor_name, member_name
from ..ray_attached import attached
from ..ray_calls import in_time
from .observe import Observation, observe_cluster
from .spawn import start_actor


def restart_all(cluster_name: str, deadline: float) -> int:
    """Restart every member; returns the version of commands that all of them know afterwards.

    Args:
        deadline: by ``time.monotonic``.

    Raises:
        Unavailable: a member is missing, or does not come back in time. Calling this again restarts all members once
            more.
    """
    done = _restart_stopped(cluster_name, deadline)
    """Restarted members, each with the process id that it had before."""
    before = _wait_whole(cluster_name, done, deadline)
    for _ in before.configuration.members:
        observation = _wait_whole(cluster_name, done, deadline)
        leader = observation.leader
        assert leader is not None
        left = sorted(
            observation.configuration.members - set(done), key=lambda member: (member == leader.member, member)
        )
        if not left:
            break
        if left[0] == leader.member and len(observation.configuration.voters) > 1:
            _hand_over(cluster_name, observation, deadline)
        done[left[0]] = observation.statuses[left[0]].pid
        _restart(left[0], observation.actors[left[0]], deadline)
    last = _wait_whole(cluster_name, done, deadline).leader
    assert last is not None
    return last.active_version


def _restart_stopped(cluster_name: str, deadline: float) -> dict[int, int]:
    """Restart the members that have given up, such as one whose code is too old for the log, or cannot open the data;
    each with the process id that it had. They neither serve nor vote, and only other code, or another state of their
    disk, can help them. One whose disk refused tries again by itself, and from a new process just as well; but not
    while it opens the data, which would begin again. One that was stopped needs it, too: an upgrade may have been
    interrupted before it ended the actor.

    Where a leader says who is a member, an actor that is not one is left alone: it may be about to be removed. Without
    a leader even the newest configuration that is known may be an old one, and a member that it lacks may be needed."""
    observation = observe_cluster(cluster_name)
    led = observation.leader is not None
    needed = observation.configuration.members if led else frozenset(observation.statuses)
    stopped = {
        member: status.pid
        for member, status in observation.statuses.items()
        if member in observation.actors and status.role == GAVE_UP and not status.is_starting and member in needed
    }
    for member in stopped:
        _restart(member, observation.actors[member], deadline)
    return stopped


def _wait_whole(cluster_name: str, done: dict[int, int], deadline: float) -> Observation:
    """Wait until every member serves, has caught up, and has reported its version; those of ``done`` from a new
    process. Raises as :func:`restart_all`, and as :func:`observe_cluster`."""
    missing = ""
    while True:
        try:
            observation = observe_cluster(cluster_name)
        except KeeperError as error:
            over = time.monotonic() >= deadline or not time_left()
            if not missing or not (over or isinstance(error, Unavailable)):
                raise
            # The time of the whole call may end while Ray is asked; what was waited for is what matters.
            raise Unavailable(f"the members cannot be restarted one by one: {missing} ({error})") from error
        leader = observation.leader
        missing = "there is no leader" if leader is None else _not_ready(observation, leader, done)
        if not missing:
            return observation
        if time.monotonic() >= deadline:
            raise Unavailable(f"the members cannot be restarted one by one: {missing}")
        pause_between_checks(POLL_PAUSE_S)


def _not_ready(observation: Observation, leader: MemberStatus, done: dict[int, int]) -> str:
    """Why the next member may not be restarted yet; empty if it may."""
    if observation.configuration.joint:
        return "its membership is changing"
    reported = {known.id: known.version for known in leader.table}
    for member in sorted(observation.configuration.members):
        name, status = member_name(member), observation.statuses.get(member)
        if status is None:
            return f"{name} does not answer"
        if status.why_not_serving:
            return f"{name} does not serve: {status.why_not_serving}"
        if status.pid == done.get(member):
            return f"{name} has not been restarted yet"
        if member != leader.member and member not in leader.caught_up:
            return f"{name} has not caught up"
        if reported.get(member, 1) != status.version:
            return f"{name} has not reported its version yet"
    return ""


def _hand_over(cluster_name: str, observation: Observation, deadline: float) -> None:
    """Transfer leadership to another voter before the leader is restarted."""
    leader = observation.leader
    assert leader is not None
    target = max(voter for voter in observation.configuration.voters if voter != leader.member)
    while True:
        with suppress(KeeperError, ray.exceptions.RayError, TimeoutError):
            ray.get(observation.actors[leader.member].move_leader.remote(target), timeout=at_most(STATUS_TIMEOUT_S))
        moved = wait_for(lambda: _leads(cluster_name) not in (0, leader.member), time.monotonic() + STATUS_TIMEOUT_S)
        if moved or time.monotonic() >= deadline:
            return


def _leads(cluster_name: str) -> int:
    leader = observe_cluster(cluster_name).leader
    return 0 if leader is None else leader.member


def _restart(member: int, actor: Any, deadline: float) -> None:
    """End a member's actor and start it again, from the class as it is now, over the same data."""
    try:
        member_spec: MemberSpec = ray.get(actor.member_spec.remote(), timeout=at_most(STATUS_TIMEOUT_S))
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise Unavailable(f"{member_name(member)}, which was about to be restarted, does not answer") from error
    ray.wait([actor.stop.remote()], timeout=at_most(STOP_TIMEOUT_S))
    in_time(attached(ray.kill), actor, no_restart=True)
    name = actor_name(member_spec.cluster_name, member_spec.name)
    wait_for(lambda: actors_gone([name]), min(deadline, time.monotonic() + STOP_TIMEOUT_S))
    start_actor(member_spec)  # the supervisor may have been faster
