"""The configuration of a cluster, by what its members report: the newest that any of them knows."""

from __future__ import annotations

from collections.abc import Iterable

from ...raft.messages import Configuration
from ...schema.operator_frames import MemberStatus


def leader_of(statuses: Iterable[MemberStatus]) -> MemberStatus | None:
    """Of the members that say they lead, the one of the highest term."""
    leaders = [status for status in statuses if status.role == "leader"]
    return max(leaders, key=lambda status: status.term, default=None)


def best_status(statuses: Iterable[MemberStatus]) -> MemberStatus | None:
    """The leader, or else the member that knows the newest configuration."""
    heard = list(statuses)
    known = [status for status in heard if status.voters]
    newest = max(known, key=lambda status: (status.configuration_index, status.applied_index), default=None)
    return leader_of(heard) or newest


def configuration_of(status: MemberStatus) -> Configuration:
    """The configuration that a member reported."""
    return Configuration(
        voters=status.voters, outgoing=status.outgoing, learners=status.learners, index=status.configuration_index
    )


def newest(statuses: Iterable[MemberStatus]) -> Configuration:
    """The newest configuration that a serving member reported; an empty one if none serves."""
    serving = [status for status in statuses if not status.why_not_serving]
    if not serving:
        return Configuration()
    status = max(serving, key=lambda status: (status.configuration_index, status.applied_index))
    return configuration_of(status)
