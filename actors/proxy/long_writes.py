"""Turns of long writes: few bytes of them are under way at one time, so that other clients' writes pass them.

All clients of a proxy are one client to the members, and what it sends first is done first. So a crowd of long puts
would have everybody wait until all of it is on disk. Instead each waits here, addresses in turn, and of one address its
connections in turn, and what is shorter waits for nothing but ``PROXY_LONG_WRITES_BYTES``.

What was sent goes on whether its caller is still there or not, and keeps its room until it has ended: a client that
puts and resets, over and over, has no more under way than one that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from ...errors import Unavailable
from ...limits import PROXY_LONG_WRITE_BYTES, PROXY_LONG_WRITES_BYTES, PROXY_TIMEOUT_S
from ...schema.answers import Reason
from ..transport.accept_rate import source_of_address

T = TypeVar("T")


class _Waiting(NamedTuple):
    size: int
    turn: asyncio.Future[None]


class LongWrites:
    """See the module. Used by the loop's thread alone.

    Args:
        room: bytes of them that may be under way; one that is longer has it alone.
        least: bytes of a write that counts as long.
    """

    def __init__(self, room: int = PROXY_LONG_WRITES_BYTES, least: int = PROXY_LONG_WRITE_BYTES) -> None:
        self._room = room
        self._least = least
        self.under_way = 0
        """Bytes."""
        self._waiting: dict[str, dict[str, list[_Waiting]]] = {}
        """By address and connection; the first of each is the one whose turn it is."""

    def is_long(self, size: int) -> bool:
        """Whether a write of so many bytes takes turns."""
        return size > self._least

    async def run(self, size: int, client: str, patience: float, write: Coroutine[Any, Any, T]) -> T:
        """Have a write done, when it is its turn if it is a long one.

        Args:
            size: in bytes.
            client: the connection that it came over, for people (``client_address``).
            patience: seconds that the turn may take to come; never more than etcd tries.

        Raises:
            Unavailable: it has not come, and nothing was done.
        """
        if not self.is_long(size):
            return await write
        try:
            await self._turn(size, client, min(patience, PROXY_TIMEOUT_S))
        except BaseException:
            write.close()
            raise
        done = asyncio.ensure_future(write)
        done.add_done_callback(lambda ended: self._ended(size, ended))
        return await asyncio.shield(done)

    async def _turn(self, size: int, client: str, patience: float) -> None:
        if not self._waiting and self._fits(size):
            self.under_way += size
            return
        turn = asyncio.get_running_loop().create_future()
        address = source_of_address(client.partition(" ")[0])
        waiting = _Waiting(size, turn)
        self._waiting.setdefault(address, {}).setdefault(client, []).append(waiting)
        try:
            done, _ = await asyncio.wait((turn,), timeout=patience)
        except BaseException:
            if turn.done():
                self._leave(size)
            else:
                self._discard(address, client, waiting)
            raise
        if not done:
            self._discard(address, client, waiting)
            full = Unavailable("too many long writes wait in this proxy")
            full.reason = Reason.FULL
            raise full

    def _fits(self, size: int) -> bool:
        return not self.under_way or self.under_way + size <= self._room

    def _ended(self, size: int, ended: asyncio.Future[Any]) -> None:
        if not ended.cancelled():
            ended.exception()  # it was looked at: perhaps nobody else will
        self._leave(size)

    def _leave(self, size: int) -> None:
        self.under_way -= size
        self._give_turns()

    def _give_turns(self) -> None:
        """To the first of the connection whose turn it is, as long as there is room."""
        while self._waiting:
            address, connections = next(iter(self._waiting.items()))
            client, (first, *_) = next(iter(connections.items()))
            if not self._fits(first.size):
                return
            self.under_way += first.size
            first.turn.set_result(None)
            self._discard(address, client, first)
            if connections:  # the next turns are others'
                if client in connections:
                    connections[client] = connections.pop(client)
                self._waiting[address] = self._waiting.pop(address)

    def _discard(self, address: str, client: str, waiting: _Waiting) -> None:
        connections = self._waiting[address]
        connections[client].remove(waiting)
        if not connections[client]:
            del connections[client]
            if not connections:
                del self._waiting[address]
