"""Frames to members that no handle's call stands for: their status, administrative commands, changes of membership.

They travel as the hub's own frames do. What only the leader accepts is asked again, wherever members say that it is,
until the time is over: all such commands are idempotent. So after the time all that may be unknown is whether one has
taken effect already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from ...limits import (
    BACKUP_BEGIN_TIMEOUT_S,
    BACKUP_CHUNK_TIMEOUT_S,
    BACKUP_END_TIMEOUT_S,
    CLIENT_SHORT_BACKOFF_S,
    LOAD_ROWS,
    MAX_TOKEN_BYTES,
    OPERATOR_TIMEOUT_S,
    PROXY_TIMEOUT_S,
    STATUS_TIMEOUT_S,
)
from ...raft.messages import MemberChange
from ...schema.answers import Answer, Failed, Reason
from ...schema.commands import Administration, ClusterEvent
from ...schema.frames import LoggedIn, Login, Refusal, Refused, Reply, Request, Written
from ...schema.operator_frames import (
    Administer,
    AskClients,
    AskEvents,
    AskFigures,
    AskLoad,
    AskStatus,
    AwaitCompaction,
    BackupBegun,
    BackupPart,
    BeginBackup,
    ChangeMembership,
    ClientsListed,
    ClientStatus,
    Defragment,
    EndBackup,
    EventsListed,
    Figures,
    HashKeys,
    KeysHashed,
    LoadShown,
    MemberStatus,
    ReadBackup,
    Status,
)
from ...telemetry import Family
from ..client.aio_timeout import cancel_if_possible, within
from ..client.core.failures import denial, failure
from ..client.hub import Hub, clock
from ..naming import member_name
from .etcd_errors import (
    AUTH_NOT_ENABLED,
    AUTHENTICATION_FAILED,
    INVALID_TOKEN,
    MEMBER_NOT_FOUND,
    NO_LEADER,
    TIMED_OUT,
    TOO_MANY_REQUESTS,
    from_keeper_error,
)
from .rpc_status import RpcCode, RpcError

R = TypeVar("R", EventsListed, ClientsListed)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class LoggedInUser(NamedTuple):
    """A user has proven who it is."""

    user: str
    token: bytes
    since: int
    """Identifies its password."""
    revision: int
    """Of the store."""


class BackupRead(NamedTuple):
    """A backup that a member holds ready."""

    member: int
    snapshot: str
    image_bytes: int
    head: bytes
    """Of the file, before the image."""


class MemberCalls:
    """Asks members, by the hub's transport.

    Args:
        hub: the process's.
        cluster: the cluster's id.
    """

    def __init__(self, hub: Hub, cluster: int) -> None:
        self._hub = hub
        self._cluster = cluster

    async def status(self, member: int) -> MemberStatus | None:
        """A member's status; ``None`` if it does not answer."""
        reply = await self._ask(member, AskStatus(), STATUS_TIMEOUT_S)
        return reply.status if isinstance(reply, Status) else None

    async def figures(self, member: int) -> tuple[Family, ...] | None:
        """A member's metrics; ``None`` if it does not answer, or does not serve."""
        reply = await self._ask(member, AskFigures(), STATUS_TIMEOUT_S)
        return reply.families if isinstance(reply, Figures) else None

    async def load(self, member: int) -> LoadShown | None:
        """Who loads a member; ``None`` if it does not answer.

        Raises:
            RpcError: the user may not know.
        """
        reply = await self._ask(member, AskLoad(self._cluster, STATUS_TIMEOUT_S, LOAD_ROWS), STATUS_TIMEOUT_S)
        if isinstance(reply, Refused) and (error := denial(reply)) is not None:
            raise from_keeper_error(error)
        return reply if isinstance(reply, LoadShown) else None

    def members(self) -> dict[int, str]:
        """The cluster's members that are known here: names by id."""
        return {member: member_name(member) for member in sorted(self._hub.transport.members())}

    async def any_status(self, first: int) -> MemberStatus:
        """The status of a member, or, if it does not answer or does not serve, of another.

        Raises:
            RpcError: no member serves.
        """
        members = sorted(self._hub.transport.members(), key=lambda member: member != first)
        for member in members:
            status = await self.status(member)
            if status is not None and not status.why_not_serving:
                return status
        raise NO_LEADER.error()

    async def has_leader(self) -> bool:
        """Whether a member that serves hears a leader. All are asked at once: one that hangs must not use up the time
        in which another says so."""
        asked = [asyncio.ensure_future(self.status(member)) for member in self._hub.transport.members()]
        try:
            for answer in asyncio.as_completed(asked):
                status = await answer
                if status is not None and status.leader and not status.why_not_serving:
                    return True
            return False
        finally:
            for each in asked:
                cancel_if_possible(each)

    async def newest_status(self, first: int) -> MemberStatus:
        """The status of the leader, which knows every change of the members; without one, of any. Raises as above."""
        status = await self.any_status(first)
        if status.leader in (0, status.member):
            return status
        return await self.any_status(status.leader)

    async def events(self, first: int) -> tuple[tuple[int, ClusterEvent], ...]:
        """What has happened to the cluster, oldest first, by number; ``first`` is the member that is asked first.

        Raises:
            RpcError: no member answers, or the user may not know.
        """
        return (await self._ask_any(first, lambda left: AskEvents(self._cluster, left), EventsListed)).events

    async def clients(self, first: int, most: int) -> tuple[list[ClientStatus], bool]:
        """The cluster's clients by the ids of their sessions, about so many at most, and whether there are more.
        Raises as above."""
        found: list[ClientStatus] = []
        while True:
            after = found[-1].session if found else 0
            ask = partial(AskClients, self._cluster, after=after)
            answer = await self._ask_any(first, ask, ClientsListed)
            found += answer.clients
            if not answer.more or not answer.clients or len(found) >= most:
                return found, answer.more

    async def _ask_any(self, first: int, frame: Callable[[float], Request], kind: type[R]) -> R:
        """The reply of a member, or, if that has none, of another."""
        until = clock() + PROXY_TIMEOUT_S
        for member in sorted(self._hub.transport.members(), key=lambda member: member != first):
            left = until - clock()
            if left <= 0:
                break
            reply = await self._ask(member, frame(left), min(left, STATUS_TIMEOUT_S))
            if isinstance(reply, kind):
                return reply
            if isinstance(reply, Refused) and (error := denial(reply)) is not None:
                raise from_keeper_error(error)
        raise NO_LEADER.error()

    async def hash_keys(self, member: int, revision: int, patience: float) -> KeysHashed:
        """The hash of all versions of a member's keys up to a revision; 0 for its newest.

        Raises:
            RpcError: it does not answer in time, has enough to do, or the revision is compacted or in the future.
        """
        patience = min(patience, OPERATOR_TIMEOUT_S)
        reply = await self._ask(member, HashKeys(self._cluster, patience, revision), patience)
        if isinstance(reply, KeysHashed):
            return reply
        raise _refusal(reply)

    async def await_compaction(self, member: int, revision: int, patience: float) -> None:
        """Return once a member has removed what compaction at a revision has made unreachable. Raises as above."""
        patience = min(patience, OPERATOR_TIMEOUT_S)
        reply = await self._ask(member, AwaitCompaction(self._cluster, patience, revision), patience)
        if not isinstance(reply, Written) or isinstance(reply.answers[0], Failed):
            raise _refusal(reply)

    async def defragment(self, member: int, patience: float) -> None:
        """Have a member return the space of what was deleted to its disk.

        Raises:
            RpcError: it does not answer in time, has enough to do, or its disk lacks room for the work.
        """
        patience = min(patience, OPERATOR_TIMEOUT_S)
        reply = await self._ask(member, Defragment(self._cluster, patience), patience)
        if not isinstance(reply, Written) or isinstance(reply.answers[0], Failed):
            raise _refusal(reply)

    async def administer(self, command: Administration) -> Answer:
        """Have a command applied by the cluster.

        Raises:
            RpcError: it was refused, or nothing is known of it.
        """
        return await self._ask_leader(lambda left: Administer(self._cluster, left, command))

    async def change_membership(self, changes: Sequence[MemberChange]) -> Answer:
        """Change the configuration; returns once the change is in effect. Raises as :meth:`administer`."""
        return await self._ask_leader(lambda left: ChangeMembership(self._cluster, left, tuple(changes)))

    async def log_in(self, user: str, password: str, patience: float) -> LoggedInUser:
        """A token for a user's password.

        Raises:
            RpcError: it is wrong, users are not needed, or no member answers in time.
        """
        reply = await self._log_in(lambda left: Login(self._cluster, left, user, password), patience)
        if reply is None:
            raise AUTH_NOT_ENABLED.error()
        return reply

    async def exchange(self, token: bytes) -> LoggedInUser | None:
        """Another token for one that has not ended; ``None`` if users are not needed. Raises as above."""
        if len(token) > MAX_TOKEN_BYTES:
            raise INVALID_TOKEN.error()
        return await self._log_in(lambda left: Login(self._cluster, left, token=token), PROXY_TIMEOUT_S)

    async def vouch(self, user: str, cluster_token: bytes) -> LoggedInUser | None:
        """A token for a user whose certificate was shown, by a token of the cluster itself. As above."""
        return await self._log_in(lambda left: Login(self._cluster, left, user, token=cluster_token), PROXY_TIMEOUT_S)

    async def _log_in(self, login: Callable[[float], Login], patience: float) -> LoggedInUser | None:
        until = clock() + min(patience, PROXY_TIMEOUT_S)
        while (left := until - clock()) > 0:
            for member in sorted(self._hub.transport.members()):
                reply = await self._ask(member, login(left), min(left, STATUS_TIMEOUT_S))
                if isinstance(reply, LoggedIn):
                    return LoggedInUser(reply.user, reply.token, reply.since, reply.revision)
                if not isinstance(reply, Refused):
                    continue
                if reply.refusal is Refusal.NOT_ENABLED:
                    return None
                if reply.refusal is Refusal.WRONG_PASSWORD:
                    raise AUTHENTICATION_FAILED.error()
                if reply.refusal is Refusal.BAD_TOKEN:
                    raise INVALID_TOKEN.error()
                if reply.refusal is Refusal.INVALID:
                    raise AUTHENTICATION_FAILED.error()
            await asyncio.sleep(CLIENT_SHORT_BACKOFF_S)
        raise TIMED_OUT.error()

    async def _ask_leader(self, frame: Callable[[float], Request]) -> Answer:
        """Ask the leader until it answers. Once a request may have been accepted, a failure is "request timed out",
        even if a later member refuses the request."""
        until, unknown, leader = clock() + PROXY_TIMEOUT_S, False, 0
        while (left := until - clock()) > 0:
            for member in [leader] if leader else sorted(self._hub.transport.members()):
                leader = 0
                reply = await self._ask(member, frame(left), min(left, STATUS_TIMEOUT_S))
                if isinstance(reply, Written):
                    answer = reply.answers[0]
                    if isinstance(answer, Failed):
                        if answer.reason is Reason.INVALID and answer.detail and not unknown:  # it names a member
                            raise MEMBER_NOT_FOUND.error()
                        raise from_keeper_error(failure(answer, maybe_applied=unknown))
                    return answer
                if not isinstance(reply, Refused):
                    unknown = True
                    continue
                if reply.refusal is Refusal.INVALID:
                    raise RpcError(RpcCode.INVALID_ARGUMENT, reply.message)
                if (error := denial(reply)) is not None:
                    raise from_keeper_error(error)
                unknown = unknown or reply.refusal in (Refusal.LOST, Refusal.TIMED_OUT)
                if reply.leader not in (0, member):
                    leader = reply.leader
                    break
            if not leader:
                await asyncio.sleep(CLIENT_SHORT_BACKOFF_S)
        raise (TIMED_OUT if unknown else NO_LEADER).error()

    async def begin_backup(self, member: int, created: float, patience: float) -> BackupRead:
        """Have a member make a backup that holds all that was acknowledged before.

        Once the member has that, it may take ``BACKUP_BEGIN_TIMEOUT_S`` more until the backup is made. The answer is
        waited for: a backup that nobody knows of would keep others from being made.

        Args:
            patience: seconds in which the member must have all that was acknowledged.

        Raises:
            RpcError: it does not answer in time, or is making another one.
        """
        ask = BeginBackup(self._cluster, patience, created)
        reply = await self._ask(member, ask, patience + BACKUP_BEGIN_TIMEOUT_S)
        if not isinstance(reply, BackupBegun):
            raise _refusal(reply)
        return BackupRead(member, reply.snapshot, reply.image_bytes, reply.head)

    async def read_backup(self, backup: BackupRead, offset: int, size: int) -> bytes:
        """Bytes of its image, at least one.

        Raises:
            RpcError: the member does not answer, or has dropped it.
        """
        ask = ReadBackup(self._cluster, BACKUP_CHUNK_TIMEOUT_S, backup.snapshot, offset, size)
        reply = await self._ask(backup.member, ask, BACKUP_CHUNK_TIMEOUT_S)
        if not isinstance(reply, BackupPart) or not reply.data:
            raise _refusal(reply)
        return reply.data

    async def end_backup(self, backup: BackupRead) -> None:
        """It is not needed any more. Once this returns, the member makes another one, unless it has not said within
        ``BACKUP_END_TIMEOUT_S``, asked twice at most, that it has dropped this one: then it drops it when nobody has
        read it for ``BACKUP_IDLE_S``."""
        due = clock() + BACKUP_END_TIMEOUT_S
        for pause in (CLIENT_SHORT_BACKOFF_S, 0.0):
            left = due - clock()
            reply = await self._ask(backup.member, EndBackup(self._cluster, left, backup.snapshot), left)
            done = isinstance(reply, Written) and not isinstance(reply.answers[0], Failed)
            if done or not pause or clock() + pause >= due:
                return
            await asyncio.sleep(pause)

    def _frame(self, request: Request) -> bytes:
        frame = _encode(request)
        return frame if self._hub.login is None else self._hub.login.wrap(frame)

    async def _ask(self, member: int, request: Request, timeout: float) -> Reply | None:
        """The reply of one member; ``None`` if none comes, and it may have the request."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes | Exception] = loop.create_future()

        def set_result(reply: bytes | Exception) -> None:
            if not answered.done():
                answered.set_result(reply)

        def done(reply: bytes | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(set_result, reply)

        frame = self._frame(request)
        try:
            self._hub.transport.send(member, frame, done)
        except LookupError:  # it has left since the members were listed
            return None
        if not await within(timeout, answered):
            return None
        reply = answered.result()
        try:
            return None if isinstance(reply, Exception) else _decode(reply)
        except msgspec.MsgspecError:
            return None


def _refusal(reply: Reply | None) -> RpcError:
    """Why a member did not do what only it could have done."""
    if isinstance(reply, Written):
        answer = reply.answers[0]
        if isinstance(answer, Failed):
            return from_keeper_error(failure(answer, maybe_applied=False))
    if isinstance(reply, Refused) and (error := denial(reply)) is not None:
        return from_keeper_error(error)
    if isinstance(reply, Refused) and reply.refusal is Refusal.OVERLOADED:
        return TOO_MANY_REQUESTS.error()
    if isinstance(reply, Refused) and reply.refusal is Refusal.NOT_SERVING:
        return NO_LEADER.error()
    return TIMED_OUT.error()
