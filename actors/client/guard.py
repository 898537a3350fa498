"""Guarded handles: every write is refused once the lock, claim or place that it is guarded by is lost.

A lock's token is the revision that created its key. A guarded write is one transaction that compares that revision and
then writes. So the check and the write are one step of the replicated log, and the lock cannot change hands between
them (Kleppmann's fencing, enforced by the store itself). The lock's key is in the reserved space and the data in the
user's, so the comparisons are kept with their full keys.

Reads are not guarded: a guard says who may write.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ...codec import Codec
from ...errors import InvalidArgument, LockLost, Unavailable
from ...schema.answers import Answer, LeaseGranted, TxnAnswer
from ...schema.commands import RequestId
from ...schema.operations import Delete, KeyRange, LeaseGrant, Put, Relation, Target, Txn, TxnCompare
from .base import Handle
from .results import DeleteResult, PutResult, TxnResult
from .view import Call, Steps, View, named

H = TypeVar("H", bound=Handle)


class GuardedView(View):
    """A view whose writes carry comparisons.

    Args:
        space, codec: as for ``View``.
        fences: the comparisons that must hold for a write to happen; a guard of a guarded handle adds to them.
    """

    __slots__ = ("fences",)

    def __init__(self, space: bytes, codec: Codec | None, fences: tuple[TxnCompare, ...]) -> None:
        super().__init__(space, codec)
        self.fences = fences

    def narrow(self, space: bytes, codec: Codec | None) -> GuardedView:
        """Other keys or another codec, under the same guard."""
        return GuardedView(space, codec, self.fences)

    def __reduce__(self) -> tuple[Any, ...]:
        return GuardedView, (self.space, self.codec, self.fences)

    def put(self, key: object, value: object, lease: object, prev: object, request_id: object) -> Steps[PutResult]:
        """Steps of ``Client.put``, guarded."""
        return self.put_result((yield from self._guarded(self.put_command(key, value, lease, prev), request_id)))

    def delete(self, key: object, end: object, prefix: object, prev: object, request_id: object) -> Steps[DeleteResult]:
        """Steps of ``Client.delete``, guarded."""
        return self.delete_result((yield from self._guarded(self.delete_command(key, end, prefix, prev), request_id)))

    def txn(self, compare: object, success: object, failure: object, request_id: object) -> Steps[TxnResult]:
        """Steps of ``Client.txn``, guarded: both branches."""
        operation = self.txn_operation(compare, success, failure)
        return self.txn_result(operation, (yield from self._guarded(self.txn_command(operation), request_id)))

    def write(self, command: Txn, name: RequestId | None) -> Steps[Answer]:
        """Steps of a transaction that is made already, guarded."""
        return (yield from self._guarded(command, name))

    def grant(self, command: LeaseGrant) -> Steps[LeaseGranted]:
        """Steps that grant a lease, guarded. Ending it is not guarded: it may also expire."""
        answer = yield from self._guarded(command, None)
        if not isinstance(answer, LeaseGranted):
            raise Unavailable(f"the cluster answered {type(answer).__name__} to a guarded lease", applied=None)
        return answer

    def compact(self, revision: object) -> Steps[None]:
        """Refused, since a compaction cannot be part of a transaction."""
        if self.fences:
            raise InvalidArgument("compaction cannot be guarded: compact through an ordinary handle")
        yield from super().compact(revision)

    def _guarded_request_id(self, request_id: object, command: Put | Delete | Txn | LeaseGrant) -> RequestId | None:
        """The name of a guarded write.

        The token is not part of the operation that the name is bound to: a task that runs again holds the lock under
        another one. And a write that was refused may be tried again under its name (``held``).
        """
        if request_id is None:
            return None
        if isinstance(request_id, RequestId):
            return msgspec.structs.replace(request_id, held=request_id.held + 1)
        return named(self.space, request_id, command, held=1)

    def _guarded(self, command: Put | Delete | Txn | LeaseGrant, request_id: object) -> Steps[Answer]:
        """Steps that run a write only if all comparisons hold, in one transaction. Raises ``LockLost`` if not."""
        answer = yield Call(Txn(self.fences, (command,), ()), False, self._guarded_request_id(request_id, command))
        if not isinstance(answer, TxnAnswer):
            raise Unavailable(f"the cluster answered {type(answer).__name__} to a guarded write", applied=None)
        if not answer.succeeded:
            raise LockLost("the lock is no longer held under the token of this guard: the write was refused")
        return answer.responses[0]


def guarded(handle: H, space: Handle, key: bytes, token: int) -> H:
    """A handle like ``handle``, but each of its writes happens only if ``key`` exists since revision ``token``.

    Args:
        space: the handle that ``key`` belongs to; it may see other keys than ``handle``.
        token: the ``create_revision`` that ``key`` must have.
    """
    view = handle._view
    before = view.fences if isinstance(view, GuardedView) else ()
    fence = TxnCompare(KeyRange(space._view.space + key), Target.CREATE_REVISION, Relation.EQUAL, token)
    return handle._derive(GuardedView(view.space, view.codec, (*before, fence)))
