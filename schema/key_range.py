"""A range of keys, as operations, watches and permissions name it."""

from __future__ import annotations

import msgspec


class KeyRange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One key (``end`` is ``None``), keys with ``key <= k < end``, or all from ``key`` on (``end`` is empty)."""

    key: bytes
    end: bytes | None = None
