"""Telling a torn write from damage, in RocksDB's write-ahead logs.

The rule (docs/architecture.md, "Rules of the disk"): damage with nothing intact behind it is a write that a loss of
power cut short; nobody was told that it is durable, and it is dropped. Other damage may have taken promises with it.
RocksDB does not make that difference for us: its modes refuse a bad last record like a bad one in the middle, skip runs
of zeros and files that end early without a word, or lose what follows. So this module reads the logs itself.

A log is a row of blocks of 32 KiB; a record is whole in a block or in fragments over several: masked CRC-32C (4 bytes),
length (2), type (1), payload (rocksdb wiki, "Write Ahead Log File Format"). The payload of a whole record is a batch:
sequence number (8), count of operations (4), ...; sequence numbers have no gaps, over all logs.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from ..errors import DataCorrupted
from .sync_journal import write_ahead_logs

_BLOCK = 32 * 1024
_HEADER = struct.Struct("<IHB")
_BATCH = struct.Struct("<QI")
_ZERO, _FULL, _FIRST, _MIDDLE, _LAST = range(5)
_IGNORABLE = 1 << 7
"""Types from here on may be skipped by readers that do not know them."""


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
        table.append(crc)
    return table


_CRC_TABLE = _table()


def _masked_crc32c(data: bytes) -> int:
    crc, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass
class _Fragment:
    offset: int
    end: int
    kind: int
    payload: bytes


class _Reader:
    """Walks the fragments of one log. ``problem`` is the offset of the first thing that is no fragment, if any."""

    def __init__(self, data: bytes, *, verify: bool) -> None:
        self.data = data
        self.verify = verify
        self.problem: int | None = None

    def fragment(self, offset: int) -> _Fragment | None:
        """The fragment at an offset; ``None`` if there is none, or a damaged one."""
        left = _BLOCK - offset % _BLOCK
        if left < _HEADER.size or offset + _HEADER.size > len(self.data):
            return None
        crc, length, kind = _HEADER.unpack_from(self.data, offset)
        start = offset + _HEADER.size
        end = start + length
        if (
            (kind > _LAST and kind < _IGNORABLE)
            or kind == _ZERO
            or length > left - _HEADER.size
            or end > len(self.data)
        ):
            return None
        if self.verify and _masked_crc32c(self.data[offset + 6 : end]) != crc:
            return None
        return _Fragment(offset, end, kind, self.data[start : min(end, start + _BATCH.size)])

    def next_offset(self, offset: int) -> int:
        """Where the next fragment may begin: blocks end in up to six bytes that hold nothing."""
        left = _BLOCK - offset % _BLOCK
        return offset + left if left < _HEADER.size else offset

    def record(self, offset: int) -> tuple[int, int, int] | None:
        """A whole record that begins at an offset: (sequence, count, end)."""
        fragment = self.fragment(offset)
        if fragment is None or fragment.kind not in (_FULL, _FIRST):
            return None
        head = fragment.payload
        while fragment.kind != _FULL and fragment.kind != _LAST:
            following = self.fragment(self.next_offset(fragment.end))
            if following is None or following.kind not in (_MIDDLE, _LAST):
                return None
            fragment = following
            head += fragment.payload  # a record that begins at the very end of a block has its head in two fragments
        if len(head) < _BATCH.size:
            return None
        sequence, count = _BATCH.unpack_from(head)
        return sequence, count, fragment.end

    def rest_is_empty(self, offset: int) -> bool:
        """Whether there is nothing but zeros from here on."""
        return not self.data[offset:].strip(b"\0")

    def intact_record_from(self, offset: int, next_sequence: int) -> bool:
        """Whether a whole record begins anywhere from here on, on whatever byte: a bad length loses the thread.

        Its sequence number must be a likely one, before it is worth a checksum.
        """
        data, first_bytes = self.data, len(self.data) - _HEADER.size - _BATCH.size + 1
        limit = next_sequence + (1 << 40)
        for candidate in range(offset, first_bytes):
            if data[candidate + 6] in (_FULL, _FIRST):
                if _BLOCK - candidate % _BLOCK >= _HEADER.size + _BATCH.size:
                    sequence, count = _BATCH.unpack_from(data, candidate + _HEADER.size)
                elif (record := self.record(candidate)) is not None:  # its head goes on in the next block
                    sequence, count, _ = record
                else:
                    continue
                likely = next_sequence <= sequence < limit and 0 < count < 1 << 28
                if likely and self.record(candidate) is not None:
                    return True
        return False


@dataclass
class _Walk:
    end: int
    """Where the last good record ends."""
    next_sequence: int
    """The sequence number that must follow, 0 if not known."""
    whole: bool
    """Nothing but zeros is behind the last good record."""


def _walk(reader: _Reader, next_sequence: int) -> _Walk:
    """Read records until the end or until something is wrong."""
    offset = end = 0
    while True:
        offset = reader.next_offset(offset)
        record = reader.record(offset)
        if record is None:
            fragment = reader.fragment(offset)
            if fragment is None or fragment.kind < _IGNORABLE:
                return _Walk(end, next_sequence, reader.rest_is_empty(offset))
            offset = end = fragment.end
            continue
        sequence, count, record_end = record
        if next_sequence and sequence != next_sequence:
            return _Walk(end, next_sequence, False)
        next_sequence = sequence + count
        offset = end = record_end


def check_chain(folder: str) -> bool:
    """A quick look (no checksums) at the logs of a closed database: whether all is well as far as structure says.

    It sees what RocksDB is silent about: a hole of zeros, a log that is missing between others, a length that reaches
    beyond the end of the file. A torn write counts as not well: :func:`drop_torn_tail` looks closer then.
    """
    return _broken_link(write_ahead_logs(folder), verify=False) is None


def _broken_link(paths: list[str], *, verify: bool) -> tuple[int, _Walk] | None:
    """The first log that is not whole: its number, and how far it is good.

    One that stops short is all right if the next goes on exactly where it stops: an earlier start dropped its tail.
    """
    next_sequence = 0
    short: tuple[int, _Walk] | None = None
    for number, path in enumerate(paths):
        walk = _walk(_Reader(_read(path), verify=verify), next_sequence)
        if next_sequence and walk.end:
            short = None
        if short is None and not walk.whole:
            short = number, walk
        next_sequence = walk.next_sequence
    return short


def drop_torn_tail(folder: str) -> None:
    """Cut a torn write off the logs of a closed database, durably. Slow: it computes checksums in Python.

    Raises:
        DataCorrupted: there is damage with something intact behind it, or none that this module can see.
    """
    paths = write_ahead_logs(folder)
    broken = _broken_link(paths, verify=True)
    if broken is None:
        raise DataCorrupted(f"{folder}: damaged, but not in its write-ahead log")
    number, walk = broken
    for later, path in enumerate(paths[number:], number):
        start = walk.end if later == number else 0
        if _Reader(_read(path), verify=True).intact_record_from(start, walk.next_sequence):
            raise DataCorrupted(f"{paths[number]}: damaged at byte {walk.end}, with intact records behind it in {path}")
    for torn in paths[number:]:
        _cut(torn, walk.end if torn == paths[number] else 0)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _cut(path: str, length: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
