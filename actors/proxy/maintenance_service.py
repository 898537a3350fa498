"""etcd's service Maintenance: status, alarms, and what an operator asks of one member."""

from __future__ import annotations

import re

from ...schema.commands import AlarmKind, SetAlarm
from ...schema.operator_frames import MemberStatus
from .cluster_service import MembershipOperations
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import (
    BAD_DOWNGRADE_TARGET,
    BAD_DOWNGRADE_VERSION,
    BAD_TRANSFEREE,
    NO_DOWNGRADE,
    NO_LEADER,
    NOT_LEADER,
)
from .etcdpb.cluster_pb2 import (
    CORRUPT,
    NONE,
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    DefragmentResponse,
    DowngradeInfo,
    DowngradeRequest,
    HashKVRequest,
    HashKVResponse,
    HashResponse,
    MoveLeaderRequest,
    MoveLeaderResponse,
    StatusResponse,
)
from .member_calls import MemberCalls

ETCD_VERSION = "3.5.33"
"""The etcd whose API this is. Clients switch features on by it."""
CLUSTER_VERSION = ETCD_VERSION.rpartition(".")[0] + ".0"

_KINDS = {NOSPACE: AlarmKind.NOSPACE, CORRUPT: AlarmKind.CORRUPT}
_NAMES = {"NOSPACE": NOSPACE, "CORRUPT": CORRUPT}


class MaintenanceService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend, calls: MemberCalls, operations: MembershipOperations) -> None:
        self._backend = backend
        self._calls = calls
        self._operations = operations

    async def status(self, request: bytes, context: CallContext) -> bytes:
        """The status of the member that this proxy speaks for."""
        status = await self._calls.status(self._backend.member)
        if status is None:
            raise NO_LEADER.error()
        errors = [_alarm_text(each) for each in _alarms(status)]
        if not status.leader:
            errors.append(NO_LEADER.text)
        return StatusResponse(
            header=self._backend.header(status.revision),
            version=ETCD_VERSION,
            dbSize=status.db_size,
            dbSizeInUse=min(status.db_size_in_use, status.db_size),
            leader=status.leader,
            raftIndex=status.commit_index,
            raftTerm=status.term,
            raftAppliedIndex=status.applied_index,
            errors=errors,
            isLearner=status.member in status.learners,
            dbSizeQuota=self._backend.limits.quota_bytes,
            downgradeInfo=DowngradeInfo(),
        ).SerializeToString()

    async def alarm(self, request: bytes, context: CallContext) -> bytes:
        """List alarms, raise one, or end one. An alarm whose cause lasts is raised again by its member."""
        asked = AlarmRequest.FromString(request)
        revision = await self._backend.revision(context)
        found: list[AlarmMember] = []
        kind = _KINDS.get(asked.alarm)
        if asked.action == AlarmRequest.GET:
            status = await self._calls.any_status(self._backend.member)
            found = [each for each in _alarms(status) if asked.alarm in (NONE, each.alarm)]
        elif kind is not None and asked.action in (AlarmRequest.ACTIVATE, AlarmRequest.DEACTIVATE):
            alarm = AlarmMember(memberID=asked.memberID, alarm=asked.alarm)
            on = asked.action == AlarmRequest.ACTIVATE
            status = await self._calls.any_status(self._backend.member)
            if on or alarm in _alarms(status):
                await self._calls.administer(SetAlarm(asked.memberID, kind, on, "set by an operator"))
                found = [alarm]
        return AlarmResponse(header=self._backend.header(revision), alarms=found).SerializeToString()

    async def hash(self, request: bytes, context: CallContext) -> bytes:
        """A hash of the keys of this proxy's member: all versions that it holds."""
        found = await self._calls.hash_keys(self._backend.member, 0, context.time_left())
        return HashResponse(header=self._backend.header(found.revision), hash=found.hash).SerializeToString()

    async def hash_kv(self, request: bytes, context: CallContext) -> bytes:
        """The same up to a revision."""
        asked = HashKVRequest.FromString(request)
        found = await self._calls.hash_keys(self._backend.member, max(0, asked.revision), context.time_left())
        return HashKVResponse(
            header=self._backend.header(found.revision),
            hash=found.hash,
            compact_revision=found.compact_revision,
            hash_revision=found.hash_revision,
        ).SerializeToString()

    async def defragment(self, request: bytes, context: CallContext) -> bytes:
        """Have this proxy's member return the space of what was deleted to its disk."""
        await self._calls.defragment(self._backend.member, context.time_left())
        return DefragmentResponse().SerializeToString()

    async def move_leader(self, request: bytes, context: CallContext) -> bytes:
        """Hand leadership to a voter; only the leader's proxy does that (etcd: MoveLeader)."""
        target = MoveLeaderRequest.FromString(request).targetID
        status = await self._calls.status(self._backend.member)
        if status is None or status.leader != self._backend.member:
            raise NOT_LEADER.error()
        if target not in status.voters:
            raise BAD_TRANSFEREE.error()
        if target != status.leader:
            await self._operations.move_leader(target)
        return MoveLeaderResponse().SerializeToString()

    async def downgrade(self, request: bytes, context: CallContext) -> bytes:
        """Refused: there is no older format to go back to."""
        asked = DowngradeRequest.FromString(request)
        if asked.action == DowngradeRequest.CANCEL:
            raise NO_DOWNGRADE.error()
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", asked.version):
            raise BAD_DOWNGRADE_VERSION.error()
        raise BAD_DOWNGRADE_TARGET.error()


def _alarms(status: MemberStatus) -> list[AlarmMember]:
    return [AlarmMember(memberID=each.member, alarm=_NAMES[each.kind]) for each in status.alarms]


def _alarm_text(alarm: AlarmMember) -> str:
    """As Go's compact text form of the message has it."""
    name = next(name for name, number in _NAMES.items() if number == alarm.alarm)
    return f"memberID:{alarm.memberID} alarm:{name} "
