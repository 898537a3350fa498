"""etcd's service Election: the contender whose key was created first leads (``contender_keys.py``)."""

from __future__ import annotations

from ...schema.answers import Item
from ...schema.operations import Delete, KeyRange, Put
from ..client.view import prefix_end
from .contender_keys import EtcdContenders, unknown
from .etcd_backend import CallContext, EtcdBackend, StreamContext
from .etcdpb.election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ProclaimResponse,
    ResignRequest,
    ResignResponse,
)
from .translate import Translator

_NO_LEADER_KEY = '"leader" field must be provided'
_NOT_LEADER = "election: not leader"
_NO_LEADER = "election: no leader"


class ElectionService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend) -> None:
        self._backend = backend
        self._translate = Translator(backend.space, backend.space_end)

    async def campaign(self, request: bytes, context: CallContext) -> bytes:
        """Wait until the caller leads. One that gives up leaves no key behind."""
        asked = CampaignRequest.FromString(request)
        contenders = EtcdContenders(self._backend, asked.name, context)
        entered = await contenders.enter(asked.lease, asked.value)
        try:
            if entered.found is not None and entered.found.value != asked.value:
                proclaimed = Put(entered.key, asked.value, entered.lease)
                changed = await contenders.change_if_created(entered.key, entered.created, proclaimed)
                if not changed.succeeded:
                    raise unknown(_NOT_LEADER)
            if entered.first is not None:
                await contenders.wait_until_first(entered.created)
        except BaseException:
            contenders.abandon(entered.key, entered.created)
            raise
        key = entered.key[len(self._backend.space) :]
        leader = LeaderKey(name=asked.name, key=key, rev=entered.created, lease=entered.lease)
        return CampaignResponse(header=self._backend.header(entered.revision), leader=leader).SerializeToString()

    async def proclaim(self, request: bytes, context: CallContext) -> bytes:
        """Change the leader's value without another election."""
        asked = ProclaimRequest.FromString(request)
        if not asked.HasField("leader"):
            raise unknown(_NO_LEADER_KEY)
        key = self._backend.space + asked.leader.key
        contenders = EtcdContenders(self._backend, asked.leader.name, context)
        put = Put(key, asked.value, asked.leader.lease)
        changed = await contenders.change_if_created(key, asked.leader.rev, put)
        if not changed.succeeded:
            raise unknown(_NOT_LEADER)
        return ProclaimResponse(header=self._backend.header(changed.revision)).SerializeToString()

    async def resign(self, request: bytes, context: CallContext) -> bytes:
        """Give up leading; one that does not lead any more has nothing to give up."""
        asked = ResignRequest.FromString(request)
        if not asked.HasField("leader"):
            raise unknown(_NO_LEADER_KEY)
        key = self._backend.space + asked.leader.key
        contenders = EtcdContenders(self._backend, asked.leader.name, context)
        changed = await contenders.change_if_created(key, asked.leader.rev, Delete(KeyRange(key)))
        return ResignResponse(header=self._backend.header(changed.revision)).SerializeToString()

    async def leader(self, request: bytes, context: CallContext) -> bytes:
        """Who leads now."""
        asked = LeaderRequest.FromString(request)
        first, revision = await EtcdContenders(self._backend, asked.name, context).first()
        if first is None:
            raise unknown(_NO_LEADER)
        return self._leader(first, revision)

    async def observe(self, stream: StreamContext) -> None:
        """Who leads, from now on: each leader in turn, and each value that one proclaims."""
        message = await stream.receive()
        asked = LeaderRequest.FromString(message or b"")
        contenders = EtcdContenders(self._backend, asked.name, stream)
        prefix = self._backend.space + asked.name + b"/"
        everyone = KeyRange(prefix, prefix_end(prefix))
        while True:
            leader, revision = await contenders.first()
            if leader is None:
                async with contenders.watch(everyone, revision + 1, only="put") as watch:
                    _, leader = await contenders.next_event(watch)
                revision = leader.mod_revision
            await stream.send(self._leader(leader, revision))
            async with contenders.watch(KeyRange(leader.key), revision + 1) as watch:
                while True:
                    deleted, item = await contenders.next_event(watch)
                    if deleted:
                        break
                    await stream.send(self._leader(item, item.mod_revision))

    def _leader(self, item: Item, revision: int) -> bytes:
        header = self._backend.header(revision)
        return LeaderResponse(header=header, kv=self._translate.pair(item)).SerializeToString()
