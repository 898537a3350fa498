"""What an operator asks of each member of a cluster by itself: its health, hashes of its keys, space, alarms.

The members are asked at once, and each answers for itself: one that is silent or refuses
costs the others nothing, and stands in the result with the reason.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from ...limits import OPERATOR_TIMEOUT_S
from ...schema.answers import Failed
from ...schema.commands import AlarmKind, SetAlarm
from ...schema.frames import Read, ReadReply, Reads, Refused, Written
from ...schema.operations import KeyRange, Range
from ...schema.operator_frames import AlarmStatus, AwaitCompaction, Defragment, HashKeys, KeysHashed
from ..deadline import at_most, covered
from ..leader_call import administer, ask_each, expect
from ..member_access import access_to, answering, member_statuses


class MemberAnswer(NamedTuple):
    """What one member said.

    Attributes:
        reply: its answer; ``None`` if there is none, or if it refused.
        took: seconds.
        error: why there is no answer; empty if there is one.
    """

    reply: Any
    took: float
    error: str = ""


@covered
def member_health(cluster_name: str, cluster: int, *, timeout: float) -> dict[int, MemberAnswer]:
    """Whether each member serves a linearizable read within ``timeout`` seconds."""
    read = Read(Range(KeyRange(b"health"), keys_only=True))
    return _ask(cluster_name, Reads(cluster, at_most(timeout), False, (read,)), timeout, ReadReply)


@covered
def member_hashes(
    cluster_name: str, cluster: int, revision: int, *, timeout: float = OPERATOR_TIMEOUT_S
) -> dict[int, MemberAnswer]:
    """The hash of each member's keys up to a revision, as ``KeysHashed``.

    Args:
        revision: 0 for the newest that all members have applied.
        timeout: seconds.
    """
    if not revision:
        known = answering(member_statuses(cluster_name)).values()
        revision = min((status.revision for status in known if not status.why_not_serving), default=0)
    return _ask(cluster_name, HashKeys(cluster, at_most(timeout), revision), timeout, KeysHashed)


@covered
def defragment_members(
    cluster_name: str, cluster: int, member: int | None = None, *, timeout: float = OPERATOR_TIMEOUT_S
) -> dict[int, MemberAnswer]:
    """Have each member, or one, return the space of what was deleted to its disk; one after the other, so that all
    others serve at full speed meanwhile. ``timeout`` in seconds, for all of them."""
    deadline = time.monotonic() + at_most(timeout)
    found: dict[int, MemberAnswer] = {}
    for each in access_to(cluster_name).members():
        if member in (None, each):
            left = max(0.1, deadline - time.monotonic())
            found |= _ask(cluster_name, Defragment(cluster, left), left, Written, only=each)
    return found


@covered
def await_compaction(
    cluster_name: str, cluster: int, revision: int, *, timeout: float = OPERATOR_TIMEOUT_S
) -> dict[int, MemberAnswer]:
    """Wait until each member has removed what a compaction has made unreachable."""
    return _ask(cluster_name, AwaitCompaction(cluster, at_most(timeout), revision), timeout, Written)


@covered
def active_alarms(cluster_name: str, *, timeout: float) -> tuple[AlarmStatus, ...]:
    """The alarms that are active, as the member knows them that has applied most."""
    known = answering(member_statuses(cluster_name)).values()
    best = max(known, key=lambda status: status.applied_index, default=None)
    return () if best is None else best.alarms


@covered
def disarm(cluster_name: str, cluster: int, alarm: AlarmStatus, *, timeout: float) -> None:
    """End an alarm. Its member raises it again if its cause lasts.

    Raises:
        Unavailable, RequestTimeout: the leader does not answer in time.
    """
    ended = SetAlarm(alarm.member, AlarmKind[alarm.kind], False)
    expect(administer(cluster_name, cluster, ended, time.monotonic() + at_most(timeout)))


def _ask(
    cluster_name: str, frame: Any, timeout: float, kind: type, *, only: int | None = None
) -> dict[int, MemberAnswer]:
    replies = ask_each(cluster_name, frame, at_most(timeout), only)
    return {member: _answer(*reply, kind) for member, reply in replies.items()}


def _answer(reply: Any, took: float, kind: type) -> MemberAnswer:
    said = reply.answers[0] if isinstance(reply, (Written, ReadReply)) and reply.answers else None
    if isinstance(said, Failed):
        return MemberAnswer(None, took, said.message or said.reason.name.lower().replace("_", " "))
    if isinstance(reply, Refused):
        return MemberAnswer(None, took, reply.message or reply.refusal.name.lower().replace("_", " "))
    if isinstance(reply, kind):
        return MemberAnswer(reply, took)
    return MemberAnswer(None, took, "it does not answer")
