"""The messages that come on one stream of HTTP/2: put together from its data, within the windows that they are given.

A client may be ``PROXY_STREAM_WINDOW_BYTES`` ahead of what was taken. A message that is longer than that asks for more
room when its length is known, and gets it in its turn (``held_bytes.py``). What is kept is counted in the connection's
share. So a handler that takes no messages stops its client, and one connection cannot fill the proxy's memory.
"""

from __future__ import annotations

import math
import time
from typing import Any

from ...limits import PROXY_REQUEST_S, PROXY_STREAM_WINDOW_BYTES
from .held_bytes import HeldBytes, LongMessage
from .http2_connection import Http2Connection
from .http2_sender import Stream
from .rpc_messages import PREFIX, PREFIX_BYTES, check_size, decompress
from .rpc_status import RpcCode, RpcError


class IncomingMessages:
    """See the module.

    Args:
        connection, stream: where the data comes from.
        held: all connections' memory.
        encoding: the call's ``grpc-encoding``.
    """

    def __init__(self, connection: Http2Connection[Any], stream: Stream, held: HeldBytes, encoding: str) -> None:
        self._connection = connection
        self._stream = stream
        self._held = held
        self._encoding = encoding
        self._data = bytearray()
        self._long: LongMessage | None = None
        self._began = time.monotonic()

    def put(self, data: bytes) -> None:
        """Data of the stream. Asks for room if a long message begins.

        Raises:
            RpcError: a message is too long.
        """
        if data:
            if not self._data:
                self._began = time.monotonic()
            self._data += data
            self._connection.share.add(len(data))
            self._look_ahead()

    def take(self) -> bytes | None:
        """The next message, if it is complete.

        Raises:
            RpcError: it is not a message, or its client has ended in the middle of it.
        """
        data = self._data
        size = self._needed()
        if size is None or len(data) < size:
            if data and self._stream.ended:
                raise RpcError(RpcCode.INTERNAL, "unexpected EOF")
            return None
        flag = data[0]
        message = bytes(memoryview(data)[PREFIX_BYTES:size])
        del data[:size]
        self._connection.share.add(-size)
        self._began = time.monotonic()
        if self._long is not None:
            self._held.give_back(self._long)
            self._long = None
        self._look_ahead()
        missing = PROXY_STREAM_WINDOW_BYTES - self._stream.credit - len(data)
        if missing >= PROXY_STREAM_WINDOW_BYTES // 2:
            self._connection.open_window(self._stream, missing)
        return decompress(flag, message, self._encoding)

    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._data

    def is_overdue(self, now: float) -> bool:
        """Whether a message has been incomplete for too long, not counting the wait for its turn."""
        began = self._began
        if self._long is not None:
            began = self._long.begun_at if self._long.begun else math.inf
        return now - began > PROXY_REQUEST_S

    def close(self) -> None:
        """Nothing more is needed of what came or comes."""
        self._connection.share.add(-len(self._data))
        self._data = bytearray()
        if self._long is not None:
            self._held.give_back(self._long)
            self._long = None

    def _needed(self) -> int | None:
        """Bytes of the message at the front with its prefix, if its length is known."""
        if len(self._data) < PREFIX_BYTES:
            return None
        length: int = PREFIX.unpack_from(self._data)[1]
        check_size(length)
        return PREFIX_BYTES + length

    def _look_ahead(self) -> None:
        """Ask for room for the message at the front if the client's window ends before it."""
        size = self._needed()
        if size is None or self._long is not None or self._stream.ended:
            return
        if size > len(self._data) + self._stream.credit:
            self._long = self._held.ask(size, self._begin_long)

    def _begin_long(self) -> None:
        needed = (self._needed() or 0) - len(self._data) - self._stream.credit
        self._connection.open_window(self._stream, needed)
