"""What all connections of a proxy hold in memory for their peers: one bound for requests not yet complete and answers
not yet sent, and the queue in which long requests wait until they may come.

Flow control bounds what one stream holds, but a client may open many streams and connections. So each byte that is kept
is counted, and beyond ``PROXY_HELD_BYTES`` the connection that holds the most is closed. A message that exceeds a
stream's first window is let in only while all those on their way fit into ``PROXY_LONG_MESSAGES_BYTES``; the others
wait their turn, and none is refused.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ...limits import PROXY_HELD_BYTES, PROXY_LONG_MESSAGES_BYTES, PROXY_REMEMBERED_BYTES


class ByteShare:
    """What one connection holds.

    Args:
        pool: what all of them hold.
        close: closes the connection; called at most once, and not necessarily by this connection's own doing.
    """

    def __init__(self, pool: HeldBytes, close: Callable[[], None]) -> None:
        self._pool = pool
        self._close = close
        self.held = 0
        """Bytes."""
        self._remembered = 0

    def add(self, count: int) -> None:
        """This many bytes more, or less, are held."""
        pool = self._pool
        if self in pool.shares:
            self.held += count
            pool.held += count
            if count > 0 and pool.held > pool.limit:
                pool.relieve()

    def remember(self, count: int) -> bool:
        """Whether this many bytes more may be kept of what spares work, and is not needed; if so, they count."""
        pool = self._pool
        if pool.remembered + count > PROXY_REMEMBERED_BYTES or self not in pool.shares:
            return False
        pool.remembered += count
        self._remembered += count
        return True

    def forget_all(self) -> None:
        """Nothing of that is kept any more."""
        self._pool.remembered -= self._remembered
        self._remembered = 0

    def close(self) -> None:
        """The connection is gone, with all that it held."""
        self.forget_all()
        if self in self._pool.shares:
            self._pool.shares.discard(self)
            self._pool.held -= self.held
            self.held = 0

    def expel(self) -> None:
        """Close the connection, because it holds too much."""
        self.close()
        self._close()


class LongMessage:
    """A request that waits for its turn, or has it."""

    def __init__(self, size: int, begin: Callable[[], None]) -> None:
        self.size = size
        self.begin = begin
        self.begun = False
        self.begun_at = 0.0
        self.ended = False


class HeldBytes:
    """See the module. Used by the loop's thread alone."""

    def __init__(self, limit: int = PROXY_HELD_BYTES, long_messages: int = PROXY_LONG_MESSAGES_BYTES) -> None:
        self.limit = limit
        self.held = 0
        """Bytes, by all connections."""
        self.remembered = 0
        """The same of what spares work."""
        self.shares: set[ByteShare] = set()
        self._room = long_messages
        self._all_room = long_messages
        self._waiting: deque[LongMessage] = deque()

    def open_share(self, close: Callable[[], None]) -> ByteShare:
        """The share of a new connection."""
        share = ByteShare(self, close)
        self.shares.add(share)
        return share

    def relieve(self) -> None:
        """Close the connection that holds the most."""
        max(self.shares, key=lambda share: share.held).expel()

    def ask(self, size: int, begin: Callable[[], None]) -> LongMessage:
        """Ask for room for a long message; ``begin`` is called once it may come, perhaps at once. To be given back with
        :meth:`give_back`."""
        message = LongMessage(size, begin)
        self._waiting.append(message)
        self._admit()
        return message

    def give_back(self, message: LongMessage) -> None:
        """A long message is complete, or will not come."""
        if not message.ended:
            message.ended = True
            if message.begun:
                self._room += message.size
            self._admit()

    def _admit(self) -> None:
        """Let in the messages whose turn it is; one always fits."""
        while self._waiting:
            message = self._waiting[0]
            if not message.ended and message.size > self._room and self._room < self._all_room:
                return
            self._waiting.popleft()
            if not message.ended:
                message.begun = True
                message.begun_at = time.monotonic()
                self._room -= message.size
                message.begin()
