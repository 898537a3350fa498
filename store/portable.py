"""Structs that processes with different versions of the code hand to each other through Ray.

Ray pickles what actors answer, and msgspec pickles a struct by its fields' positions: a process that knows one field
more or less could not read it. These travel encoded: unknown fields are skipped, and missing ones get their defaults.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Portable(msgspec.Struct, frozen=True):
    """Base of such structs. New fields go to the end, with defaults."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), msgspec.msgpack.encode(self))


def _restore(kind: type[Portable], data: bytes) -> Portable:
    return msgspec.msgpack.decode(data, type=kind)
