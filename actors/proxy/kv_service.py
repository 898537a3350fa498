"""etcd's service KV: ranges, puts, deletes, transactions and compaction."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

from ...schema.answers import DeleteAnswer, PutAnswer, RangeAnswer, TxnAnswer
from ...schema.frames import Read
from ...schema.operations import Compact, KeyRange, Operation, Put, Range
from ..client.view import lasting_range
from .etcd_backend import CallContext, EtcdBackend, expect
from .etcd_errors import COMPACTED
from .etcdpb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    TxnRequest,
)
from .frequent_messages import key_and_value, only_key, range_of_one
from .long_reads import Place
from .member_calls import MemberCalls
from .rpc_methods import UnaryCall
from .translate import Translator, check_delete, check_put, check_range, check_txn
from .whole_writes import items_of, may_be_long, whole_write


class KvService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls
        self._translate = Translator(backend.space, backend.space_end)
        self._header_alone = PutResponse()
        """Filled again for each answer, with numbers alone (see ``frequent_messages``)."""
        self._encoded_header = -1, 0, 0, b""
        """The last one: of which revision, member and term, and its bytes. Ranges mostly come at the same again."""

    async def range(self, request: bytes, context: CallContext) -> bytes:
        """Read a key or a range."""
        asked = RangeRequest.FromString(request)
        check_range(asked)
        plan = self._translate.range_plan(asked)
        async with self._place(plan.command) as place:
            answer = await self._backend.gather(lasting_range(plan.command, asked.serializable), context, place)
            await self._backend.wait_for_turn(answer.items)
            header = self._backend.header(answer.revision)
            return self._translate.range_response(plan, answer, header).SerializeToString()

    def _place(self, command: Operation) -> AbstractAsyncContextManager[Place | None]:
        """What a call holds while it is answered."""
        return self._backend.long_reads.place() if may_be_long(command) else nullcontext()

    async def put(self, request: bytes, context: CallContext) -> bytes:
        """Write a key."""
        asked = PutRequest.FromString(request)
        check_put(asked)
        return self._put_response(await self._backend.write(self._translate.put(asked), context, len(request)))

    # -- without a coroutine ------------------------------------------------------------------------------------------
    #
    # Most calls by far are those of one key. These do what the methods above do, and return False for all else.

    def range_directly(self, request: bytes, call: UnaryCall) -> bool:
        """Read one key."""
        if key := only_key(request):
            return self._backend.ask_directly(Read(Range(KeyRange(self._backend.space + key))), call, self._one_key)
        asked = RangeRequest.FromString(request)
        if asked.range_end:
            return False
        if asked.key and len(asked.ListFields()) == 1 + asked.serializable:  # nothing else is asked for
            read = Read(Range(KeyRange(self._backend.space + asked.key)))
            return self._backend.ask_directly(read, call, self._one_key, serializable=asked.serializable)
        check_range(asked)
        plan = self._translate.range_plan(asked)

        def make(answer: object) -> bytes:
            found = expect(answer, RangeAnswer)
            header = self._backend.header(found.revision)
            return self._translate.range_response(plan, found, header).SerializeToString()

        return self._backend.ask_directly(Read(plan.command), call, make, serializable=asked.serializable)

    def _one_key(self, answer: object) -> bytes:
        """The answer to a range of one key that asks for nothing else."""
        found = expect(answer, RangeAnswer)
        header = self._encode_header(found.revision)
        return range_of_one(header, self._translate.pair(found.items[0]).SerializeToString()) if found.items else header

    def _encode_header(self, revision: int) -> bytes:
        """An answer of the service that has nothing else."""
        backend = self._backend
        member, term = backend.member, backend.hub.term
        of_revision, of_member, of_term, encoded = self._encoded_header
        if revision != of_revision or term != of_term or member != of_member:
            backend.set_header(self._header_alone.header, revision)
            encoded = self._header_alone.SerializeToString()
            self._encoded_header = revision, member, term, encoded
        return encoded

    def put_directly(self, request: bytes, call: UnaryCall) -> bool:
        """Write a key, with a short value."""
        if self._backend.long_writes.is_long(len(request)):
            return False
        if plain := key_and_value(request):
            operation = Put(self._backend.space + plain[0], plain[1])
        else:
            asked = PutRequest.FromString(request)
            check_put(asked)
            operation = self._translate.put(asked)
        return self._backend.ask_directly(operation, call, self._put_response)

    def _put_response(self, answer: object) -> bytes:
        put = expect(answer, PutAnswer)
        if put.prev is None:
            return self._encode_header(put.revision)
        return self._translate.put_response(put, self._backend.header(put.revision)).SerializeToString()

    async def delete_range(self, request: bytes, context: CallContext) -> bytes:
        """Delete a key or a range."""
        asked = DeleteRangeRequest.FromString(request)
        check_delete(asked)
        command = self._translate.delete(asked)
        async with self._place(command) as place:
            answer = expect(await self._backend.gather(whole_write(command), context, place), DeleteAnswer)
            await self._backend.wait_for_turn(answer.prev)
            return self._translate.delete_response(answer, self._backend.header(answer.revision)).SerializeToString()

    async def txn(self, request: bytes, context: CallContext) -> bytes:
        """Run a transaction."""
        asked = TxnRequest.FromString(request)
        check_txn(asked, self._backend.limits.max_txn_operations)
        command, plan = self._translate.txn(asked)
        async with self._place(command) as place:
            steps = whole_write(command)
            answer = expect(await self._backend.gather(steps, context, place, size=len(request)), TxnAnswer)
            await self._backend.wait_for_turn([*items_of(answer)])
            return self._translate.txn_response(plan, answer, self._backend.header(answer.revision)).SerializeToString()

    async def compact(self, request: bytes, context: CallContext) -> bytes:
        """Forget the history below a revision. What was never compacted counts as compacted at -1, so compacting at 0
        succeeds, and does nothing (etcd: compactMainRev). A physical compaction ends when this proxy's member has
        removed what nothing can reach any more."""
        asked = CompactionRequest.FromString(request)
        if asked.revision > 0:
            answer = await self._backend.write(Compact(asked.revision), context)
            revision = getattr(answer, "revision", 0)
            if asked.physical:
                await self._calls.await_compaction(self._backend.member, asked.revision, context.time_left())
        elif asked.revision == 0:
            revision = await self._backend.revision_unless_compacted(context)
        else:
            raise COMPACTED.error()
        return CompactionResponse(header=self._backend.header(revision)).SerializeToString()
