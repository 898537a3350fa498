"""A hash of all keys as of a revision, of one member: equal on all members whose content is (etcd: HashKV).

The member is read page by page, at one revision, and only that member. So the hash depends neither on what has changed
since, nor on what compaction has removed. It covers each key's newest version up to the revision, with all its numbers;
etcd's covers older versions, too, and is another.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from ...limits import CLIENT_RANGE_RESTARTS
from ...schema.operations import KeyRange, Range
from ..client.view import rest_of
from .etcd_errors import COMPACTED
from .member_calls import MemberCalls
from .rpc_status import RpcError

_NUMBERS = struct.Struct(">QQQqII")
_EVERYTHING = KeyRange(b"", b"")


class KeyHash(NamedTuple):
    """32 bits, and the revision that they stand for."""

    hash: int
    revision: int


async def hash_keys(calls: MemberCalls, member: int, revision: int) -> KeyHash:
    """The hash of a member's keys as of a revision, 0 for its newest.

    Raises:
        RpcError: the member does not answer, or the revision is compacted or in the future.
    """
    for _ in range(CLIENT_RANGE_RESTARTS):
        try:
            return await _hash_keys(calls, member, revision)
        except RpcError as error:
            if revision or error.text != COMPACTED.text:
                raise
            # compacted between two pages: begin again, at a newer revision
    raise COMPACTED.error()


async def _hash_keys(calls: MemberCalls, member: int, revision: int) -> KeyHash:
    rest: KeyRange | None = _EVERYTHING
    found = 0
    while rest is not None:
        page = await calls.read(member, Range(rest, revision, uncounted=True))
        revision = revision or page.revision
        for item in page.items:
            numbers = (item.create_revision, item.mod_revision, item.version, item.lease, len(item.key))
            found = crc32(_NUMBERS.pack(*numbers, len(item.value)), found)
            found = crc32(item.value, crc32(item.key, found))
        rest = rest_of(rest, page)
    return KeyHash(found, revision)
