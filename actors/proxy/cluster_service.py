"""etcd's service Cluster: the members, and changes of them.

A member of RayKeeper has no URLs of its own: clients reach it by the proxies that speak for it, so those are its client
URLs. Its peer URL only gives it a name. A member that is added is placed by the cluster, wherever a node has room;
peer URLs that a client names are not looked at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from ...raft.messages import ChangeKind, MemberChange
from ...schema.operator_frames import MemberStatus
from ..naming import member_name
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import BAD_MEMBER_URLS, LAST_VOTER, MEMBER_NOT_FOUND, NOT_A_LEARNER
from .etcdpb.cluster_pb2 import (
    Member,
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    MemberPromoteRequest,
    MemberPromoteResponse,
    MemberRemoveRequest,
    MemberRemoveResponse,
    MemberUpdateRequest,
)
from .etcdpb.rpc_pb2 import ResponseHeader
from .member_calls import MemberCalls

ClientUrls = Callable[[bool], Awaitable[Mapping[int, Sequence[str]]]]
"""By member, the URLs of the proxies that speak for it; whether the answer must be linearizable."""


class MembershipOperations(Protocol):
    """Changes of the members that take more than a frame: they start and stop actors."""

    async def add_member(self, learner: bool) -> int:
        """Add a member anywhere, as a learner; its id. It may still be starting. Unless it is to stay a learner, it
        becomes a voter later, by itself."""
        ...

    async def remove_member(self, member: int, leave: Coroutine[Any, Any, object]) -> None:
        """Remove a member for good: ``leave`` takes it out of the configuration. Its process ends and its data goes
        later, by itself, also if the caller is gone."""
        ...

    async def move_leader(self, member: int) -> None:
        """Hand leadership to a member."""
        ...


class ClusterService:
    """Answers requests with bytes; see the module."""

    def __init__(
        self, backend: EtcdBackend, calls: MemberCalls, operations: MembershipOperations, urls: ClientUrls
    ) -> None:
        self._backend = backend
        self._calls = calls
        self._operations = operations
        self._urls = urls

    async def member_list(self, request: bytes, context: CallContext) -> bytes:
        """All members."""
        linearizable = MemberListRequest.FromString(request).linearizable
        if linearizable:
            await self._backend.revision(context)
        members = await self._members(newest=linearizable)
        return MemberListResponse(header=self._header(), members=members).SerializeToString()

    async def member_add(self, request: bytes, context: CallContext) -> bytes:
        """Add a member. The answer comes when the configuration has it, as a learner until it has caught up: a voter
        that lacks the log would count for the quorum at once (thesis 4.2.1)."""
        asked = MemberAddRequest.FromString(request)
        if not asked.peerURLs:
            raise BAD_MEMBER_URLS.error()
        added = await self._operations.add_member(asked.isLearner)
        members = await self._members()
        member = next((each for each in members if added == each.ID), Member(ID=added, isLearner=True))
        return MemberAddResponse(header=self._header(), member=member, members=members).SerializeToString()

    async def member_remove(self, request: bytes, context: CallContext) -> bytes:
        """Remove a member. The answer comes when the configuration is without it."""
        member = MemberRemoveRequest.FromString(request).ID
        await self.remove(member)
        # A follower that is asked for lack of a leader may not know yet.
        members = [each for each in await self._members() if member != each.ID]
        return MemberRemoveResponse(header=self._header(), members=members).SerializeToString()

    async def remove(self, member: int) -> None:
        """Remove a member for good; returns once the configuration is without it.

        Raises:
            RpcError: there is no such member, the leader refuses, or nothing is known of it.
        """
        if (await self._known(member)).voters == (member,):
            raise LAST_VOTER.error()
        leave = self._calls.change_membership([MemberChange(ChangeKind.REMOVE, member)])
        await self._operations.remove_member(member, leave)

    async def member_update(self, request: bytes, context: CallContext) -> bytes:
        """Refused: there are no peer URLs to change."""
        await self._known(MemberUpdateRequest.FromString(request).ID)
        raise BAD_MEMBER_URLS.error()

    async def member_promote(self, request: bytes, context: CallContext) -> bytes:
        """Make a learner a voter."""
        member = MemberPromoteRequest.FromString(request).ID
        if member not in (await self._known(member)).learners:
            raise NOT_A_LEARNER.error()
        await self._calls.change_membership([MemberChange(ChangeKind.ADD_VOTER, member)])
        return MemberPromoteResponse(header=self._header(), members=await self._members()).SerializeToString()

    def _header(self) -> ResponseHeader:
        """Answers about members name no revision (etcd: clusterServer)."""
        return self._backend.header(0)

    async def _known(self, member: int) -> MemberStatus:
        status = await self._calls.newest_status(self._backend.member)
        if member not in status.voters and member not in status.learners:
            raise MEMBER_NOT_FOUND.error()
        return status

    async def _members(self, newest: bool = True) -> list[Member]:
        ask = self._calls.newest_status if newest else self._calls.any_status
        status = await ask(self._backend.member)
        urls = await self._urls(newest)
        return [
            Member(
                ID=member,
                name=member_name(member),
                peerURLs=[f"raykeeper://{status.cluster_name}/{member_name(member)}"],
                clientURLs=urls.get(member, ()),
                isLearner=member in status.learners,
            )
            for member in sorted({*status.voters, *status.learners})
        ]
