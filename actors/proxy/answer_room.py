"""What answers that are gathered page by page hold in memory, of all calls of a proxy together.

etcd has no bound on an answer but that of gRPC, 2 GiB. A proxy has ``PROXY_HELD_BYTES``: a call whose answer alone is
longer ends with what gRPC says of a message that is too large, and one that does not fit beside the others with "too
many requests".
"""

from __future__ import annotations

from ...limits import PROXY_HELD_BYTES, PROXY_ITEM_BYTES
from ...schema.answers import DeleteAnswer, RangeAnswer, RangePart
from .etcd_errors import TOO_MANY_REQUESTS
from .rpc_status import RpcCode, RpcError


class AnswerRoom:
    """See the module.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int = PROXY_HELD_BYTES) -> None:
        self.limit = limit
        self.held = 0

    def gathering(self) -> Gathered:
        """What one call gathers; to be left when it has ended."""
        return Gathered(self)


class Gathered:
    """What one call has gathered so far."""

    def __init__(self, room: AnswerRoom) -> None:
        self._room = room
        self._held = 0

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Nothing of it is kept any more."""
        self._room.held -= self._held
        self._held = 0

    def add(self, answer: object) -> None:
        """One more page has come.

        Raises:
            RpcError: there is no room for it.
        """
        size = _size(answer)
        self._held += size
        self._room.held += size
        if self._room.held <= self._room.limit:
            return
        if self._held > self._room.limit:
            text = f"grpc: trying to send message larger than max ({self._held} vs. {self._room.limit})"
            raise RpcError(RpcCode.RESOURCE_EXHAUSTED, text)
        raise TOO_MANY_REQUESTS.error()


def _size(answer: object) -> int:
    if isinstance(answer, (RangeAnswer, RangePart)):
        items = answer.items
    elif isinstance(answer, DeleteAnswer):
        items = answer.prev
    else:
        return 0
    return sum([len(item.key) + len(item.value) for item in items]) + PROXY_ITEM_BYTES * len(items)
