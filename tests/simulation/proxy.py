"""A proxy in each client: etcd's requests, answered by the product's own services over the hub of the client.

``Proxy`` has the face of a client of the cluster, so all of the workers' work can go through it, into the same history.
Each request becomes the bytes that an etcd client sends, each answer is read from the bytes that it gets. What lies
between the port and the services (HTTP/2, gRPC) is not here; nor are streams. A process that dies takes its proxy with
it, and a caller that was waiting knows nothing, as one whose connection broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from raykeeper.actors.client.view import View
from raykeeper.actors.proxy import etcd_backend
from raykeeper.actors.proxy.etcd_backend import EtcdBackend
from raykeeper.actors.proxy.etcd_errors import COMPACTED, KEY_NOT_FOUND, LEASE_NOT_FOUND, NO_SPACE
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from raykeeper.actors.proxy.kv_service import KvService
from raykeeper.actors.proxy.rpc_methods import UnaryCall
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError
from raykeeper.errors import CompactedError, InvalidArgument, KeeperError, LeaseNotFound, NoSpace, RequestTimeout
from raykeeper.schema.answers import Answer, DeleteAnswer, Done, Item, PutAnswer, RangeAnswer, TxnAnswer
from raykeeper.schema.frames import Read
from raykeeper.schema.operations import KEEP_LEASE, Compact, Delete, KeyRange, Operation, Put, Range, Target, Txn
from simulation.checker import Violation
from simulation.scripts import Script, SimClient, Wait, now, sleep, this_client

if TYPE_CHECKING:
    from simulation.client import Client

T = TypeVar("T")


async def _sleep(seconds: float) -> None:
    await sleep(this_client(), seconds)


@contextmanager
def imagined() -> Iterator[None]:
    """While this is entered, the proxies' code waits in imagined time."""
    waits = SimpleNamespace(sleep=_sleep, Lock=asyncio.Lock)
    with mock.patch.object(etcd_backend, "asyncio", waits), mock.patch.object(etcd_backend, "clock", now):
        yield


class _Places:
    """In place of ``LongReads``: as many as one likes, without an event loop."""

    def place(self) -> AbstractAsyncContextManager[_Places]:
        return self  # type: ignore[return-value]

    async def __aenter__(self) -> _Places:
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Nothing to give back."""

    async def wait_for(self, page: Coroutine[Any, Any, T]) -> T:
        return await page


class Backend(EtcdBackend):
    """The real one over the handle of a client; it differs in how the direct calls wait."""

    def __init__(self, client: Client) -> None:
        super().__init__(SimClient(client, View(b"", None)), 1)
        self._client = client
        router = client.router
        self._hub = SimpleNamespace(  # type: ignore[assignment]
            limits=client.world.limits, timings=client.world.timings, term=router.term
        )
        self.long_reads = _Places()  # type: ignore[assignment]

    def ask_directly(
        self,
        request: Operation | Read,
        call: UnaryCall,
        make: Callable[[Any], bytes],
        *,
        serializable: bool = False,
    ) -> bool:
        def ended(outcome: Any) -> None:
            try:
                if isinstance(outcome, KeeperError):
                    raise etcd_backend.from_keeper_error(outcome) from outcome
                call.answer(make(outcome))
            except Exception as error:
                call.fail_by(error)

        self._client.submit(request, call.time_left(), ended, serializable=serializable)
        return True

    def choose_lease_id(self) -> int:
        return self._client.rng.getrandbits(62) | 1

    async def wait_for_turn(self, items: object) -> None:
        """There is nobody else's turn."""


class Context:
    """Of one call: its deadline."""

    metadata: Mapping[str, str] = {}
    client = ""

    def __init__(self, until: float) -> None:
        self._until = until

    def time_left(self) -> float:
        return max(0.0, self._until - now())


class _DirectCall(UnaryCall):
    """A call that no coroutine waits for."""

    def __init__(self, left: float, resume: Callable[[object], None]) -> None:
        super().__init__("", {}, 0.0)
        self._left, self._resume = left, resume

    def time_left(self) -> float:
        return self._left

    def answer(self, message: bytes) -> None:
        self._resume(message)

    def fail(self, error: RpcError) -> None:
        self._resume(error)

    def fail_by(self, error: Exception) -> None:
        self._resume(error)

    def soon(self, work: Callable[[], None]) -> None:
        work()


class Proxy:
    """Takes what a client takes (``submit``, ``give_up``), by way of etcd's protocol."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._life = 0
        self._number = 0
        self._open: dict[int, Callable[[Any], None]] = {}

    def submit(
        self,
        request: Operation | Read,
        timeout: float,
        done: Callable[[Any], None],
        *,
        serializable: bool = False,
    ) -> int:
        """Ask through the proxy; ``done`` gets the answer, or the error as an etcd client may understand it."""
        self._number += 1
        self._open[self._number] = done
        Script(self._client, self._ask(self._number, request, timeout, serializable))
        return self._number

    def give_up(self, number: int) -> None:
        """The caller waits no longer."""
        done = self._open.pop(number, None)
        if done is not None:
            done(RequestTimeout("the caller has gone", applied=None))

    async def _ask(self, number: int, request: Operation | Read, timeout: float, serializable: bool) -> None:
        try:
            outcome: Answer | KeeperError = await self._serve(request, timeout, serializable)
        except RpcError as error:
            outcome = understood(error, request)
        done = self._open.pop(number, None)
        if done is not None:
            done(outcome)

    async def _serve(self, request: Operation | Read, timeout: float, serializable: bool) -> Answer:
        if self._life != self._client.lives:
            self._life = self._client.lives
            self._kv = KvService(Backend(self._client), None)  # type: ignore[arg-type]
        kv = self._kv
        context = Context(now() + timeout)
        if isinstance(request, Read):
            message = range_request(request.range)
            message.serializable = serializable
            direct = kv.range_directly if self._client.rng.random() < 0.5 else None
            data = await self._unary(kv.range, direct, message.SerializeToString(), context)
            return _range_answer(RangeResponse.FromString(data))
        if isinstance(request, Put):
            direct = kv.put_directly if self._client.rng.random() < 0.5 else None
            data = await self._unary(kv.put, direct, put_request(request).SerializeToString(), context)
            return _put_answer(PutResponse.FromString(data))
        if isinstance(request, Delete):
            data = await kv.delete_range(delete_request(request).SerializeToString(), context)
            return _delete_answer(DeleteRangeResponse.FromString(data))
        if isinstance(request, Txn):
            data = await kv.txn(txn_request(request).SerializeToString(), context)
            return _txn_answer(TxnResponse.FromString(data))
        assert isinstance(request, Compact)
        data = await kv.compact(CompactionRequest(revision=request.revision).SerializeToString(), context)
        return Done(CompactionResponse.FromString(data).header.revision)

    async def _unary(
        self,
        handler: Callable[[bytes, Context], Coroutine[Any, Any, bytes]],
        direct: Callable[[bytes, UnaryCall], bool] | None,
        message: bytes,
        context: Context,
    ) -> bytes:
        """A call of the kind that also goes without a coroutine, in one way or the other."""
        if direct is None:
            return await handler(message, context)
        left = context.time_left()
        refused: list[bool] = []

        def start(resume: Callable[[Any], None]) -> None:
            try:
                if not direct(message, _DirectCall(left, resume)):
                    refused.append(True)
                    resume(None)
            except RpcError as error:
                resume(error)

        outcome = await Wait(start)
        if refused:
            return await handler(message, context)
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, bytes)
        return outcome


_DEFINITE: dict[str, type[KeeperError]] = {
    COMPACTED.text: CompactedError,
    NO_SPACE.text: NoSpace,
    KEY_NOT_FOUND.text: InvalidArgument,
    LEASE_NOT_FOUND.text: LeaseNotFound,
}
_VAGUE = (RpcCode.UNAVAILABLE, RpcCode.DEADLINE_EXCEEDED, RpcCode.CANCELLED)


def understood(error: RpcError, request: object) -> KeeperError:
    """What an etcd client may conclude: some errors say that nothing was done, others say nothing."""
    kind = _DEFINITE.get(error.text)
    if kind is not None:
        return kind(error.text, applied=False)
    if error.code not in _VAGUE:
        raise Violation(f"an etcd client got {error!r} for {request}") from error
    return RequestTimeout(error.text, applied=None)


# --- between our requests and etcd's ---------------------------------------------------------------------------------


def _end(keys: KeyRange) -> bytes:
    return b"" if keys.end is None else keys.end or b"\0"


def range_request(asked: Range) -> RangeRequest:
    """As an etcd client sends it."""
    return RangeRequest(key=asked.keys.key, range_end=_end(asked.keys), revision=asked.revision, limit=asked.limit)


def put_request(put: Put) -> PutRequest:
    """Likewise."""
    if put.lease is KEEP_LEASE:
        return PutRequest(key=put.key, value=put.value, ignore_lease=True, prev_kv=put.prev)
    assert isinstance(put.lease, int)
    return PutRequest(key=put.key, value=put.value, lease=put.lease, prev_kv=put.prev)


def delete_request(delete: Delete) -> DeleteRangeRequest:
    """Likewise."""
    return DeleteRangeRequest(key=delete.keys.key, range_end=_end(delete.keys), prev_kv=delete.prev)


def txn_request(txn: Txn) -> TxnRequest:
    """Likewise."""
    request = TxnRequest(success=map(_operation, txn.success), failure=map(_operation, txn.failure))
    for each in txn.compare:
        compare = Compare(key=each.keys.key, range_end=_end(each.keys), result=Compare.EQUAL)
        if each.target is Target.VALUE:
            compare.target, compare.value = Compare.VALUE, each.operand
        elif each.target is Target.VERSION:
            compare.target, compare.version = Compare.VERSION, each.operand
        else:
            assert each.target is Target.MOD_REVISION
            compare.target, compare.mod_revision = Compare.MOD, each.operand
        request.compare.append(compare)
    return request


def _operation(operation: object) -> RequestOp:
    if isinstance(operation, Put):
        return RequestOp(request_put=put_request(operation))
    if isinstance(operation, Delete):
        return RequestOp(request_delete_range=delete_request(operation))
    assert isinstance(operation, Range)
    return RequestOp(request_range=range_request(operation))


def _item(pair: Any) -> Item:
    return Item(pair.key, pair.value, pair.create_revision, pair.mod_revision, pair.version, pair.lease)


def _range_answer(response: RangeResponse) -> RangeAnswer:
    return RangeAnswer(response.header.revision, tuple(map(_item, response.kvs)), response.count, response.more)


def _put_answer(response: PutResponse) -> PutAnswer:
    prev = _item(response.prev_kv) if response.HasField("prev_kv") else None
    return PutAnswer(response.header.revision, prev)


def _delete_answer(response: DeleteRangeResponse) -> DeleteAnswer:
    return DeleteAnswer(response.header.revision, response.deleted, tuple(map(_item, response.prev_kvs)))


def _txn_answer(response: TxnResponse) -> TxnAnswer:
    answers: list[Any] = []
    for each in response.responses:
        kind = each.WhichOneof("response")
        if kind == "response_range":
            answers.append(_range_answer(each.response_range))
        elif kind == "response_put":
            answers.append(_put_answer(each.response_put))
        else:
            answers.append(_delete_answer(each.response_delete_range))
    return TxnAnswer(response.header.revision, response.succeeded, tuple(answers))
