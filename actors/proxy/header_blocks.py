"""Header blocks of HTTP/2 (HPACK, RFC 7541): requests' are decoded, answers' encoded.

Each unary call brings a block, so decoding is on the hot path: ``hpack.Decoder`` takes 15 to 20 microseconds for one.
Two things make it cheap here. A block that leaves the dynamic table as it was always means the same until the table
changes, so what the owner made of it is kept with it. Any other block (a client's ``grpc-timeout`` differs with each
call, and most clients put it into the table) is decoded by a loop of our own over hpack's table, which has a short way
for indexed fields and leaves the rest, long integers and Huffman codes, to hpack. ``hpack.Decoder`` is its oracle in
tests/unit/actors/proxy/test_header_blocks.py.

Answers never use the dynamic table, so their blocks are constants, or are made without state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeAlias, TypeVar

from hpack.exceptions import HPACKError
from hpack.hpack import Encoder, decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from ...limits import MAX_HEADER_LIST_BYTES, MAX_REMEMBERED_BLOCKS, REMEMBERED_BLOCK_BYTES, REMEMBERED_FACTOR
from .http2_frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, Http2Error

Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""The fields of a header block, in order: names in lower case, values."""

T = TypeVar("T")

_STATIC = HeaderTable.STATIC_TABLE_LENGTH
_TABLE_BYTES = HeaderTable.DEFAULT_SIZE
_FIELD_BYTES = 32
"""What a field counts beside its name and value (RFC 7541, 4.1)."""
_MAX_SIZE_UPDATES = 2
"""At the start of a block (RFC 7541, 4.2); hpack takes any number."""
_REST = 16
"""Bytes from which one integer is read: more than hpack accepts."""


class BlockMemory(Protocol):
    """Bounds the memory of the blocks that a decoder remembers."""

    def remember(self, count: int) -> bool:
        """Whether this many bytes more may be kept; if so, they count."""

    def forget_all(self) -> None:
        """Nothing is kept any more."""


class HeaderDecoder(Generic[T]):
    """The decoder of one connection. After an error it is of no use: its table may differ from the peer's.

    Args:
        understand: what the owner makes of a block's fields. Its results are kept and given out again, so they must not
            change.
        memory: which bounds what is kept for that.
    """

    def __init__(self, understand: Callable[[Fields], T], memory: BlockMemory) -> None:
        self._understand = understand
        self._table = HeaderTable()
        self._static: tuple[tuple[bytes, bytes], ...] = self._table.STATIC_TABLE
        self._dynamic: deque[tuple[bytes, bytes]] = self._table.dynamic_entries
        self._remembered: dict[bytes, T] = {}
        self._memory = memory

    def decode(self, block: bytes) -> T:
        """What the owner makes of the fields of a block.

        Raises:
            Http2Error: the block is malformed, or holds more than ``MAX_HEADER_LIST_BYTES`` (RFC 9113, 10.5.1).
        """
        known = self._remembered.get(block)
        if known is not None:
            return known
        try:
            fields, room, changed = self._read(block)
        except (HPACKError, IndexError) as error:
            raise Http2Error(COMPRESSION_ERROR, f"header block: {error}") from None
        known = self._understand(fields)
        if changed or len(self._remembered) >= MAX_REMEMBERED_BLOCKS:
            self._remembered.clear()
            self._memory.forget_all()
        size = MAX_HEADER_LIST_BYTES - room
        if not changed and size <= REMEMBERED_BLOCK_BYTES and self._memory.remember(REMEMBERED_FACTOR * size):
            self._remembered[block] = known
        return known

    def _read(self, block: bytes) -> tuple[Fields, int, bool]:
        """The fields, what is left of the bytes that they may have, and whether the dynamic table has changed.

        An index or a length that leads beyond the table or the block ends in ``IndexError``, or in a string that is too
        short, which is checked.
        """
        static, dynamic = self._static, self._dynamic
        fields: list[tuple[bytes, bytes]] = []
        at, end, room, changed, updates = 0, len(block), MAX_HEADER_LIST_BYTES, False, 0
        while at < end:
            first = block[at]
            if first >= 0x80:  # an indexed field
                index, at = (first & 0x7F, at + 1) if first != 0xFF else self._integer(block, at, 7)
                if index > _STATIC:
                    field = dynamic[index - _STATIC - 1]
                elif index:
                    field = static[index - 1]
                else:
                    raise HPACKError("a field with the index 0")
            elif first & 0x60 == 0x20:  # a size update
                size, at = self._integer(block, at, 5)
                updates += 1
                if fields or updates > _MAX_SIZE_UPDATES or size > _TABLE_BYTES:
                    raise HPACKError("a size update that may not be")
                self._table.maxsize = size
                changed = True
                continue
            else:  # a literal, to be put into the table or not
                prefix, mask = (6, 0x3F) if first & 0x40 else (4, 0x0F)
                index = first & mask
                if index == mask:
                    index, at = self._integer(block, at, prefix)
                else:
                    at += 1
                if index:
                    name = static[index - 1][0] if index <= _STATIC else dynamic[index - _STATIC - 1][0]
                else:
                    name, at = self._string(block, at)
                value, at = self._string(block, at)
                field = name, value
                if first & 0x40:
                    self._table.add(name, value)
                    changed = True
            room -= _FIELD_BYTES + len(field[0]) + len(field[1])
            if room < 0:
                raise Http2Error(ENHANCE_YOUR_CALM, f"more than {MAX_HEADER_LIST_BYTES} bytes of header fields")
            fields.append(field)
        return tuple(fields), room, changed

    @staticmethod
    def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
        """The integer that begins in the last ``prefix`` bits of that byte, and where it ends."""
        number, taken = decode_integer(block[at : at + _REST], prefix)
        return number, at + taken

    @staticmethod
    def _string(block: bytes, at: int) -> tuple[bytes, int]:
        """The string that begins there, and where it ends."""
        first = block[at]
        length, at = (first & 0x7F, at + 1) if first & 0x7F != 0x7F else HeaderDecoder._integer(block, at, 7)
        end = at + length
        text = block[at:end]
        if len(text) != length:
            raise HPACKError("a string that ends after its block")
        return (decode_huffman(text) if first & 0x80 else text), end


def encode_block(fields: Fields) -> bytes:
    """A block that means the same in every connection: it neither uses nor changes the dynamic table."""
    return Encoder().encode([(name, value, True) for name, value in fields], huffman=False)
