"""The status of a cluster and its members, as they report it: what ``Cluster.status`` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from ...raft.messages import Configuration
from ...schema.operator_frames import MemberStatus
from ..naming import member_name
from ..ray_view import ProxyInfo, RayNode
from ..transport.missing_lanes import missing_lanes
from ..transport.peer_clocks import clocks_that_differ
from .newest_status import leader_of, newest
from .placement import shared_hosts


@dataclass(frozen=True)
class MemberInfo:
    """The status of one member.

    Attributes:
        id, name: of the member, never reused in its cluster.
        role: "leader", "follower", "candidate", "pre-candidate", "learner", "starting", "not serving", "silent", or
            "outside" (its actor runs, but it does not take part: it is about to join, or to leave).
        node, node_id: id of the Ray node that it runs on, empty if unknown.
        pid: of its process, 0 if unknown.
        term: its Raft term.
        raft_index: last index in its log.
        applied_index: last index that its state holds.
        db_size: approximate size of its data, in bytes.
        why_not_serving: empty if it serves.
        actor: its Ray actor handle, ``None`` if there is none, or if this process is not attached to Ray.
        address: of the Ray node that it runs on; of one that does not answer, of the node where it lived last, if that
            is known. Empty otherwise.
        folder: of its data on that node, if it has told it.
        silent_for: for how many seconds the leader has not heard from it, as far as it has led for so long; ``None`` of
            the leader, and without one.
        role_for: for how many seconds it has had its role; of a follower, under this leader. ``None`` if unknown.
        lost_since: when it was last heard from (seconds since 1970), if the cluster's events say that it is lost and it
            does not answer. Unlike ``silent_for``, it goes on through changes of the leader.
        lag: log entries that the leader has committed and this member has not applied.
        lag_seconds: for how many seconds its log has lacked what the leader has committed.
        puts, gets: writes and reads a second that it has taken, on average over the last five.
        free_bytes: free on its disk, when it last checked; 0 if unknown.
        version: of commands that it knows.
        without_lane: members that it reaches by actor calls only, because it can open no lane to them, and why.
    """

    id: int
    name: str
    role: str
    node: str = ""
    pid: int = 0
    term: int = 0
    raft_index: int = 0
    applied_index: int = 0
    revision: int = 0
    db_size: int = 0
    why_not_serving: str = ""
    actor: Any = None
    address: str = ""
    folder: str = ""
    silent_for: float | None = None
    role_for: float | None = None
    lost_since: float | None = None
    lag: int = 0
    lag_seconds: float = 0.0
    puts: float = 0.0
    gets: float = 0.0
    free_bytes: int = 0
    version: int = 0
    without_lane: Mapping[int, str] = field(default_factory=dict)

    @property
    def node_id(self) -> str:
        """The same as ``node``."""
        return self.node


@dataclass(frozen=True)
class ClusterStatus:
    """The status of a cluster, as its members report it.

    Attributes:
        leader: id of the leader, 0 if no member claims to lead.
        term: highest Raft term seen.
        revision: newest revision seen.
        alarms: what an operator should see to, one line each.
        members: all members, including missing ones.
        proxies: all proxies, of the cluster's own and of those in the foreground that are registered.
        spare: how many more voters may be lost before writes stop; negative if too few serve already.
        sessions: how many client processes have a session.
    """

    name: str
    id: int
    leader: int
    term: int
    revision: int
    alarms: tuple[str, ...]
    members: tuple[MemberInfo, ...]
    proxies: tuple[ProxyInfo, ...] = ()
    spare: int = 0
    sessions: int = 0

    @property
    def complete(self) -> bool:
        """Whether a member leads, and all that take part serve."""
        return bool(self.leader) and not any(each.why_not_serving for each in self.members if each.role != "outside")


def status_of(
    name: str,
    id: int,
    actors: Mapping[int, Any],
    statuses: Mapping[int, MemberStatus],
    nodes: Sequence[RayNode],
    placement: Sequence[str],
    seen: Sequence[str],
) -> ClusterStatus:
    """The status of a cluster.

    Args:
        actors: of the members that have one, by id; each is ``None`` for who cannot call it.
        statuses: of the members that answered.
        nodes: Ray nodes that are alive.
        placement: resources that members may be pinned by; empty for any node.
        seen: alarms from elsewhere, which no member knows of.
    """
    configuration = newest(statuses.values())
    known = set(actors) | set(configuration.members)
    members, alarms = [], []
    led_by = leader_of(statuses.values())
    for member in sorted(known):
        info = _info(member, statuses.get(member), member in actors, actors.get(member))
        if info.role in ("learner", "follower"):  # it may not know its new role yet
            info = replace(info, role="learner" if member in configuration.learners else "follower")
        if configuration.voters and member not in configuration.members:
            # It has an actor and is not in the configuration: it is about to join, or to leave.
            info = replace(info, role="outside", why_not_serving="it does not take part")
        info = _placed(info, statuses, nodes, led_by)
        members.append(info)
        if info.why_not_serving:
            alarms.append(f"{info.name} does not serve: {info.why_not_serving}")
    best = max(statuses.values(), key=lambda status: status.applied_index, default=None)
    for alarm in best.alarms if best is not None else ():
        alarms.append(f"{member_name(alarm.member)} {alarm.kind}: {alarm.message}")
    lacking = {member: status.without_lane for member, status in statuses.items()}
    alarms += missing_lanes(lacking, led_by.member if led_by is not None else 0)
    alarms += clocks_that_differ(led_by)
    voting = {info.id: info.node for info in members if info.id in configuration.voters}
    alarms += [*shared_hosts(voting, nodes, placement), *seen]
    leaders = [info for info in members if info.role == "leader"]
    leader = max(leaders, key=lambda info: info.term, default=None)
    spare = _spare(configuration, {info.id for info in members if not info.why_not_serving})
    lost = any(info.id in configuration.voters and info.why_not_serving for info in members)
    if leader is None:
        alarms.insert(0, "no member leads")
    elif spare == 0 and lost:
        alarms.insert(0, "one more loss stops writes")
    return ClusterStatus(
        name=name,
        id=id,
        leader=leader.id if leader is not None else 0,
        term=max((info.term for info in members), default=0),
        revision=max((info.revision for info in members), default=0),
        alarms=tuple(alarms),
        members=tuple(members),
        spare=spare,
        sessions=best.session_count if best is not None else 0,
    )


def _spare(configuration: Configuration, serving: Set[int]) -> int:
    """How many more voters may be lost; of a joint configuration, from the half that can spare fewer."""
    halves = [half for half in (configuration.voters, configuration.outgoing) if half]
    return min((len(serving & set(half)) - len(half) // 2 - 1 for half in halves), default=-1)


def _placed(
    info: MemberInfo, statuses: Mapping[int, MemberStatus], nodes: Sequence[RayNode], leader: MemberStatus | None
) -> MemberInfo:
    """A member's line with where it is, or was last, and how far it lags."""
    status = statuses.get(info.id)
    known = max(statuses.values(), key=lambda each: each.applied_index, default=None)
    record = next((each for each in (known.table if known is not None else ()) if each.id == info.id), None)
    address = next((node.address for node in nodes if node.id == info.node), "")
    if not address and record is not None:
        pinned = next((node.address for node in nodes if record.pin in node.resources), "")
        address = pinned or record.pin.removeprefix("node:")
    return replace(
        info,
        address=address,
        folder=f"{record.base}/{info.name}" if record is not None and record.base else "",
        silent_for=leader.silent.get(info.id) if leader is not None else None,
        role_for=status.role_for or None if status is not None else None,
        lost_since=known.lost_since.get(info.id) if known is not None and status is None else None,
        lag=max(0, leader.commit_index - info.applied_index) if leader is not None and status is not None else 0,
        lag_seconds=leader.lacking_for.get(info.id, 0.0) if leader is not None and status is not None else 0.0,
        puts=status.puts if status is not None else 0.0,
        gets=status.gets if status is not None else 0.0,
        free_bytes=status.free_bytes if status is not None else 0,
        version=status.version if status is not None else 0,
        without_lane=dict(status.without_lane) if status is not None else {},
    )


def _info(member: int, status: MemberStatus | None, has_actor: bool, actor: Any) -> MemberInfo:
    """One member's line; without a status, what is known from whether it has an actor."""
    if status is None:
        why = "it does not answer" if has_actor else "there is no actor for it"
        return MemberInfo(member, member_name(member), "silent", why_not_serving=why, actor=actor)
    return MemberInfo(
        id=member,
        name=status.name,
        role=status.role,
        node=status.node,
        pid=status.pid,
        term=status.term,
        raft_index=status.last_log_index,
        applied_index=status.applied_index,
        revision=status.revision,
        db_size=status.db_size,
        why_not_serving=status.why_not_serving,
        actor=actor,
    )
