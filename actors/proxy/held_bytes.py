"""What all connections of a proxy hold in memory for their peers: one bound for requests not yet complete and answers
not yet sent, and the queue in which long requests wait until they may come.

Flow control bounds what one stream holds, but a client may open many streams and connections. So each byte that is kept
is counted, and beyond ``PROXY_HELD_BYTES`` the connection that holds the most is closed. A message that exceeds a
stream's first window is let in only while all those on their way fit into ``PROXY_LONG_MESSAGES_BYTES``; the others
wait their turn, and none is refused.

A request counts until its handler has ended, also if its connection is closed before: its memory is not free by then.
What closed ones have left in this way is gone soon, since each handler is told. Until then, new requests that do not
fit are refused, and another connection is closed only if it holds more than all that is left. Connections that hold
next to nothing have a reserve beyond the bound, so that a crowd with long requests does not keep them out. Messages of
a stream are not asked about: to refuse one would end all that goes on in that stream, and its handler ends as soon as
it is told.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ...limits import (
    PROXY_HELD_BYTES,
    PROXY_LONG_MESSAGES_BYTES,
    PROXY_REMEMBERED_BYTES,
    PROXY_RESERVE_DIVISOR,
    PROXY_STREAM_WINDOW_BYTES,
)


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
        """Bytes..."""
        self.running = 0
        """... and how many of them are requests that handlers work at; these are counted also once it is closed."""
        self._remembered = 0

    def add(self, count: int) -> None:
        """This many bytes more, or less, are held."""
        pool = self._pool
        if self in pool.shares:
            self.held += count
            pool.held += count
            if count > 0 and pool.held - pool.running > pool.limit:
                pool.relieve()

    def begin_work(self, count: int) -> None:
        """A handler works at this many bytes of a request. They count also if the connection is closed."""
        pool = self._pool
        self.running += count
        pool.held += count
        if self not in pool.shares:
            pool.running += count
            return
        self.held += count
        if pool.held - pool.running > pool.limit:
            pool.relieve()

    def end_work(self, count: int) -> None:
        """It does so no more."""
        pool = self._pool
        self.running -= count
        pool.held -= count
        if self in pool.shares:
            self.held -= count
        else:
            pool.running -= count

    def make_room(self, count: int) -> bool:
        """Whether a request of this many bytes may begin: not if what closed connections have left takes its room.
        Another one that holds more than they have left is closed first. If it is this one that does, that a request of
        its own is refused suffices. If this one holds little, it has the reserve, too."""
        pool = self._pool
        if not pool.running or pool.held + count <= pool.limit:
            return True  # for what follows room is made by closing
        largest = max(pool.shares, key=lambda share: share.held, default=self)
        if largest is not self and largest.held > pool.running:
            largest.expel()
        reserve = pool.reserve if self.held + count <= PROXY_STREAM_WINDOW_BYTES else 0
        return pool.held + count <= pool.limit + reserve

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
        """The connection is gone, with all that it held but what handlers still work at."""
        self.forget_all()
        pool = self._pool
        if self in pool.shares:
            pool.shares.discard(self)
            pool.held -= self.held - self.running
            pool.running += self.running
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
    """See the module. Used by the loop's thread alone.

    Args:
        limit: in bytes; so are the others.
        long_messages: for long messages that are on their way.
        reserve: beyond the limit, for connections that hold little; ``None`` for the usual share of the limit.
    """

    def __init__(
        self,
        limit: int = PROXY_HELD_BYTES,
        long_messages: int = PROXY_LONG_MESSAGES_BYTES,
        reserve: int | None = None,
    ) -> None:
        self.limit = limit
        self.reserve = limit // PROXY_RESERVE_DIVISOR if reserve is None else reserve
        self.held = 0
        """Bytes, by all connections..."""
        self.running = 0
        """... and how many of them are requests of connections that are closed, whose handlers still run."""
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
