"""Guarded handles: every write is refused once the key that stands for a lock is not the one that it was.

A lock's token is the revision that created its key. A guarded write travels as one transaction that compares that
revision and then does what was asked, so the check and the write are one step of the replicated log: there is no
moment between them in which the lock could change hands (Kleppmann's fencing, made by the store itself). The lock's
key lies in the reserved space and the data in the user's, which is why comparisons are kept with their full keys.

Reads pass; a guard says who may write, not who may look.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ...codec import Codec
from ...errors import InvalidArgument, LockLost, Unavailable
from ...store.commands import (
    Answer,
    Comparison,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseGranted,
    Put,
    Relation,
    RequestId,
    Target,
    Txn,
    TxnAnswer,
)
from .base import Handle
from .requests import Ask, Steps, View, named
from .results import DeleteResult, PutResult, TxnResult

H = TypeVar("H", bound=Handle)


class GuardedView(View):
    """A view whose writes carry comparisons.

    Args:
        space, codec: as for ``View``.
        fences: what must hold for any write to happen; guards of guards add to them.
    """

    __slots__ = ("fences",)

    def __init__(self, space: bytes, codec: Codec | None, fences: tuple[Comparison, ...]) -> None:
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

    def grant(self, command: LeaseGrant) -> Steps[LeaseGranted]:
        """Steps that make a lease, guarded: what hangs on it belongs to whoever holds the lock. It may be ended by
        anybody who knows it, later too, as it ends by itself."""
        answer = yield from self._guarded(command, None)
        if not isinstance(answer, LeaseGranted):
            raise Unavailable(f"the cluster answered {type(answer).__name__} to a guarded lease", applied=None)
        return answer

    def compact(self, revision: object) -> Steps[None]:
        """Refused: compaction is no part of a transaction."""
        if self.fences:
            raise InvalidArgument("compaction cannot be guarded: compact through an ordinary handle")
        yield from super().compact(revision)

    def _behind_fences(self, request_id: object, command: Put | Delete | Txn | LeaseGrant) -> RequestId | None:
        """A name for a guarded write. The token is no part of what is asked for: a task that runs again holds the lock
        under another one. And a write that was refused may be asked for again."""
        if request_id is None:
            return None
        if isinstance(request_id, RequestId):
            return msgspec.structs.replace(request_id, held=request_id.held + 1)
        return named(self.space, request_id, command, held=1)

    def _guarded(self, command: Put | Delete | Txn | LeaseGrant, request_id: object) -> Steps[Answer]:
        answer = yield Ask(Txn(self.fences, (command,), ()), False, self._behind_fences(request_id, command))
        if not isinstance(answer, TxnAnswer):
            raise Unavailable(f"the cluster answered {type(answer).__name__} to a guarded write", applied=None)
        if not answer.succeeded:
            raise LockLost("the lock is no longer held under the token of this guard: the write was refused")
        return answer.responses[0]


def guarded(handle: H, space: Handle, key: bytes, token: int) -> H:
    """A handle like ``handle`` whose every write happens only while ``key`` has been there since revision ``token``.

    Args:
        space: the handle that ``key`` belongs to, which may see other keys than ``handle``.
        token: the ``create_revision`` that ``key`` must have.
    """
    view = handle._view
    before = view.fences if isinstance(view, GuardedView) else ()
    fence = Comparison(KeyRange(space._view.space + key), Target.CREATE_REVISION, Relation.EQUAL, token)
    return handle._derive(GuardedView(view.space, view.codec, (*before, fence)))
