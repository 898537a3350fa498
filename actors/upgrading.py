"""Restarting the members of a running cluster one by one, so that each comes back with the code that is installed now.

One at a time, the leader last, and none before all others are there and have caught up: so there is a quorum at every
moment (a cluster of one or two voters pauses for as long as a restart takes). What new code can do and old code does
not understand stays off until the last member has told that it knows it (``store/members.py``).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray

from ..errors import KeeperError, Unavailable
from ..limits import POLL_PAUSE, STATUS_TIMEOUT, STOP_TIMEOUT
from .client.deadline import at_most
from .outlook import Outlook, look
from .protocol import MemberStatus
from .ray_calls import in_time
from .roster import gone, pause, wait_for
from .seat import Seat, actor_name, member_name
from .starting import start_actor


def restart_all(cluster_name: str, deadline: float) -> int:
    """Restart every member; returns the version of commands that all of them know then.

    Args:
        deadline: by ``time.monotonic``.

    Raises:
        Unavailable: a member is missing, or does not come back in time. Those that were restarted stay so; to call this
            again restarts all anew.
    """
    before = _wait_whole(cluster_name, {}, deadline)
    done: dict[int, int] = {}
    """Of each member that was restarted: the process that it had before."""
    for _ in before.configuration.members:
        outlook = _wait_whole(cluster_name, done, deadline)
        leader = outlook.leader
        assert leader is not None
        left = sorted(outlook.configuration.members - set(done), key=lambda member: (member == leader.member, member))
        if not left:
            break
        if left[0] == leader.member and len(outlook.configuration.voters) > 1:
            _hand_over(cluster_name, outlook, deadline)
        done[left[0]] = outlook.statuses[left[0]].pid
        _restart(outlook.actors[left[0]], deadline)
    last = _wait_whole(cluster_name, done, deadline).leader
    assert last is not None
    return last.active_version


def _wait_whole(cluster_name: str, done: dict[int, int], deadline: float) -> Outlook:
    """Wait until every member serves, has caught up, and has told its version; those of ``done`` from a new process."""
    while True:
        outlook = look(cluster_name)
        leader = outlook.leader
        missing = "there is no leader" if leader is None else _not_ready(outlook, leader, done)
        if not missing:
            return outlook
        if time.monotonic() >= deadline:
            raise Unavailable(f"the members cannot be restarted one by one: {missing}")
        pause(POLL_PAUSE)


def _not_ready(outlook: Outlook, leader: MemberStatus, done: dict[int, int]) -> str:
    """Who is not there as an upgrade needs it; empty if all are."""
    if outlook.configuration.joint:
        return "its membership is just changing"
    told = {known.id: known.version for known in leader.table}
    for member in sorted(outlook.configuration.members):
        name, status = member_name(member), outlook.statuses.get(member)
        if status is None:
            return f"{name} does not answer"
        if status.why_not_serving:
            return f"{name} does not serve: {status.why_not_serving}"
        if status.pid == done.get(member):
            return f"{name} has not been restarted yet"
        if member != leader.member and member not in leader.caught_up:
            return f"{name} has not caught up"
        if told.get(member, 1) != status.version:
            return f"{name} has not told its version yet"
    return ""


def _hand_over(cluster_name: str, outlook: Outlook, deadline: float) -> None:
    """Have another voter lead before the leader is restarted."""
    leader = outlook.leader
    assert leader is not None
    target = max(voter for voter in outlook.configuration.voters if voter != leader.member)
    while True:
        with suppress(KeeperError, ray.exceptions.RayError, TimeoutError):
            ray.get(outlook.actors[leader.member].move_leader.remote(target), timeout=at_most(STATUS_TIMEOUT))
        moved = wait_for(lambda: _leads(cluster_name) not in (0, leader.member), time.monotonic() + STATUS_TIMEOUT)
        if moved or time.monotonic() >= deadline:
            return


def _leads(cluster_name: str) -> int:
    leader = look(cluster_name).leader
    return 0 if leader is None else leader.member


def _restart(actor: Any, deadline: float) -> None:
    """End a member's actor and start it anew, from the class as it is now, over the same data."""
    try:
        seat: Seat = ray.get(actor.seat.remote(), timeout=at_most(STATUS_TIMEOUT))
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise Unavailable("a member that was about to be restarted does not answer") from error
    ray.wait([actor.stop.remote()], timeout=at_most(STOP_TIMEOUT))
    in_time(ray.kill, actor, no_restart=True)
    name = actor_name(seat.cluster_name, seat.name)
    wait_for(lambda: gone([name]), min(deadline, time.monotonic() + STOP_TIMEOUT))
    start_actor(seat)  # if the supervisor was faster, all the better
