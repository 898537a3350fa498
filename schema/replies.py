"""Replies before they are sent: encoded by the thread that makes them, or later by a thread that may be slow."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .frames import Reply

MakeReply = Callable[[], bytes]


class SlowReply:
    """A function that makes a reply and may take a long time: it must not run on the loop's thread."""

    __slots__ = ("_make",)

    def __init__(self, make: MakeReply) -> None:
        self._make = make

    def __call__(self) -> bytes:
        """Make the reply."""
        return self._make()


_encode = msgspec.msgpack.Encoder().encode


def reply_bytes(reply: Reply) -> bytes:
    """The encoded reply."""
    return _encode(reply)
