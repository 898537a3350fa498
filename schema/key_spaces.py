"""Where keys lie in the store, and which name each one belongs to: permissions are given on names, as clients write
them.

    u<key>                        a user's key: its name is the key
    r<area>/<quoted name>/...     what a coordination call of that name keeps: its name is the call's, with the
                                  namespace of the handle before it
    r\\0...                        is never written: read to learn the store's revision

So a user who may write under ``team/`` may use the lock ``team/x``, and nobody else can touch what it keeps.
"""

from __future__ import annotations

from .key_range import KeyRange

USER_SPACE = b"u"
"""The prefix in the store of users' keys."""
RESERVED_SPACE = b"r"
"""The prefix in the store of the coordination calls' keys, which no range of a user's handle reaches."""
UNUSED_KEY = RESERVED_SPACE + b"\0quiet"
"""A key that is never written."""

_USERS_END = b"v"
_UNUSED = KeyRange(RESERVED_SPACE + b"\0", RESERVED_SPACE + b"\1")


def _unquoted(part: bytes) -> bytes:
    """The name that a recipe has made a part of a key (``actors/recipes/sync_async.py``: ``quoted``)."""
    return part.replace(b"%2F", b"/").replace(b"%25", b"%")


def is_unused(keys: KeyRange) -> bool:
    """Whether nothing is ever stored there: reading it tells no more than the store's revision."""
    if keys.end is None:
        return keys.key.startswith(_UNUSED.key)
    return keys.key >= _UNUSED.key and b"" < keys.end <= (_UNUSED.end or b"")


def names_of(keys: KeyRange) -> KeyRange | None:
    """The names that stored keys belong to; ``None`` if they do not all have names, so that only root may touch
    them."""
    key, end = keys.key, keys.end
    space = key[:1]
    if space == USER_SPACE:
        if end is None:
            return KeyRange(key[1:])
        if not end or end > _USERS_END:
            return None
        return KeyRange(key[1:], b"" if end == _USERS_END else end[1:] if end[:1] == USER_SPACE else b"\0")
    if space != RESERVED_SPACE:
        return None
    area, slash, rest = key.partition(b"/")
    if not slash or not rest:
        return None
    part = rest.partition(b"/")[0]
    if end is not None:
        folder = area + b"/" + part
        # Everything between is in the same folder only if both ends are; "0" follows "/".
        if not key.startswith(folder + b"/") or not folder + b"/" < end <= folder + b"0":
            return None
    return KeyRange(_unquoted(part))
