"""Structs that processes with different versions of the code send each other through Ray.

Ray pickles the answers of actors, and msgspec pickles a struct by the positions of its fields, so a process with one
field more or less could not read it. These structs travel encoded: unknown fields are skipped, and missing ones get
their defaults.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Portable(msgspec.Struct, frozen=True):
    """The base of such structs. New fields are added at the end, with defaults."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), msgspec.msgpack.encode(self))


def _restore(kind: type[Portable], data: bytes) -> Portable:
    return msgspec.msgpack.decode(data, type=kind)
