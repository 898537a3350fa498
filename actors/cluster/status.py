"""The status of a cluster and its members, as they report it: what ``Cluster.status`` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...schema.frames import MemberStatus
from ..naming import member_name
from .launch import newest
from .placement import shared_hosts
from .proxy_status import ProxyInfo
from .ray_nodes import RayNode


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
        actor: its Ray actor handle, ``None`` if there is none.
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
    """

    name: str
    id: int
    leader: int
    term: int
    revision: int
    alarms: tuple[str, ...]
    members: tuple[MemberInfo, ...]
    proxies: tuple[ProxyInfo, ...] = ()


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
        actors: of the members, by id.
        statuses: of the members that answered.
        nodes: Ray nodes that are alive.
        placement: resources that members may be pinned by; empty for any node.
        seen: alarms from elsewhere, which no member knows of.
    """
    configuration = newest(statuses.values())
    known = set(actors) | set(configuration.members)
    members, alarms = [], []
    for member in sorted(known):
        info = _info(member, statuses.get(member), actors.get(member))
        if info.role in ("learner", "follower"):  # it may not know its new role yet
            info = replace(info, role="learner" if member in configuration.learners else "follower")
        if configuration.voters and member not in configuration.members:
            # It has an actor and is not in the configuration: it is about to join, or to leave.
            info = replace(info, role="outside", why_not_serving="it does not take part")
        members.append(info)
        if info.why_not_serving:
            alarms.append(f"{info.name} does not serve: {info.why_not_serving}")
    best = max(statuses.values(), key=lambda status: status.applied_index, default=None)
    for alarm in best.alarms if best is not None else ():
        alarms.append(f"{member_name(alarm.member)} {alarm.kind}: {alarm.message}")
    for info in members:
        status = statuses.get(info.id)
        for to, why in sorted(status.without_lane.items()) if status is not None else ():
            alarms.append(f"{info.name} has no lane to {member_name(to)} and uses slower actor calls: {why}")
    voting = {info.id: info.node for info in members if info.id in configuration.voters}
    alarms += [*shared_hosts(voting, nodes, placement), *seen]
    leaders = [info for info in members if info.role == "leader"]
    leader = max(leaders, key=lambda info: info.term, default=None)
    if leader is None:
        alarms.insert(0, "no member leads")
    return ClusterStatus(
        name=name,
        id=id,
        leader=leader.id if leader is not None else 0,
        term=max((info.term for info in members), default=0),
        revision=max((info.revision for info in members), default=0),
        alarms=tuple(alarms),
        members=tuple(members),
    )


def _info(member: int, status: MemberStatus | None, actor: Any) -> MemberInfo:
    """One member's line; without a status, what is known from its actor."""
    if status is None:
        why = "it does not answer" if actor is not None else "there is no actor for it"
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
