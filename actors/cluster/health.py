"""The health of a cluster, by the checks of a proxy's pages (``actors/proxy/health_pages.py``), of every member:

serializable_read   of each member: it answers and serves
linearizable_read   of the cluster: a read that a quorum has confirmed
alarms              of the cluster: none is on
disk                of each member: more is free than ``reserve_bytes``
clocks              of the cluster: no host's is off the leader's by more than ``CLOCK_DIFFERS_S``
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ...limits import Settings, decode_settings
from ...schema.operator_frames import MemberStatus
from ..naming import member_name
from ..transport.peer_clocks import clocks_that_differ


@dataclass(frozen=True)
class HealthCheck:
    """How one check ended.

    Attributes:
        name: of the check.
        member: the member's name; empty for a check of the cluster.
        why: what is wrong; empty if nothing is.
    """

    name: str
    member: str = ""
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.why


def health_of(
    members: Collection[int], statuses: Mapping[int, MemberStatus], read_error: str
) -> tuple[HealthCheck, ...]:
    """All checks.

    Args:
        members: ids of those that there should be.
        statuses: of the members that answered.
        read_error: why a linearizable read has failed; empty if it has not.
    """
    leaders = [status for status in statuses.values() if status.role == "leader"]
    leader = max(leaders, key=lambda status: status.term, default=None)
    checks = [
        HealthCheck("linearizable_read", "", read_error),
        HealthCheck("alarms", "", _alarms(statuses)),
        HealthCheck("clocks", "", "; ".join(clocks_that_differ(leader))),
    ]
    for member in sorted({*members, *statuses}):
        name, status = member_name(member), statuses.get(member)
        why = "it does not answer" if status is None else status.why_not_serving
        checks.append(HealthCheck("serializable_read", name, why))
        if status is not None and not why:
            checks.append(HealthCheck("disk", name, _disk(status)))
    return tuple(checks)


def _alarms(statuses: Mapping[int, MemberStatus]) -> str:
    best = max(statuses.values(), key=lambda status: status.applied_index, default=None)
    if best is None:
        return "no member answers"
    return "; ".join([f"{member_name(alarm.member)} {alarm.kind}: {alarm.message}" for alarm in best.alarms])


def _disk(status: MemberStatus) -> str:
    """A member that has just started has not looked yet, and says 0."""
    settings = decode_settings(status.settings) if status.settings else Settings()
    reserve = settings.limits.reserve_bytes
    if 0 < status.free_bytes < reserve:
        return f"{status.free_bytes / 1e6:.1f} MB are free, and {reserve / 1e6:.1f} MB are to be kept free"
    return ""
