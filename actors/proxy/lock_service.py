"""etcd's service Lock: the contender whose key was created first holds the lock (``contender_keys.py``)."""

from __future__ import annotations

from ...schema.answers import DeleteAnswer
from ...schema.operations import Delete, KeyRange, Range
from .contender_keys import EtcdContenders, unknown
from .etcd_backend import CallContext, EtcdBackend, expect
from .etcd_errors import EMPTY_KEY
from .etcdpb.lock_pb2 import LockRequest, LockResponse, UnlockRequest, UnlockResponse
from .rpc_status import RpcError


class LockService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend) -> None:
        self._backend = backend

    async def lock(self, request: bytes, context: CallContext) -> bytes:
        """Wait for the lock. A caller that gives up leaves no key behind."""
        asked = LockRequest.FromString(request)
        contenders = EtcdContenders(self._backend, asked.name, context)
        entered = await contenders.enter(asked.lease, b"")
        revision = entered.revision
        if entered.first is not None:
            try:
                await contenders.wait_until_first(entered.created)
                own = await contenders.read(Range(KeyRange(entered.key)))
            except BaseException:
                contenders.abandon(entered.key, entered.created)
                raise
            if not own.items:
                raise unknown("mutex: session is expired")
            revision = own.revision
        key = entered.key[len(self._backend.space) :]
        return LockResponse(header=self._backend.header(revision), key=key).SerializeToString()

    async def unlock(self, request: bytes, context: CallContext) -> bytes:
        """Delete a contender's key."""
        asked = UnlockRequest.FromString(request)
        if not asked.key:
            raise unknown(EMPTY_KEY.text)
        try:
            answer = await self._backend.write(Delete(KeyRange(self._backend.space + asked.key)), context)
        except RpcError as error:
            raise unknown(error.text) from error
        revision = expect(answer, DeleteAnswer).revision
        return UnlockResponse(header=self._backend.header(revision)).SerializeToString()
