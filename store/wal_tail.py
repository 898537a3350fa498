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
        if fragment is None or fragment.kind not in (_FULL, _FIRST) or len(fragment.payload) < _BATCH.size:
            return None
        sequence, count = _BATCH.unpack(fragment.payload)
        while fragment.kind != _FULL and fragment.kind != _LAST:
            following = self.fragment(self.next_offset(fragment.end))
            if following is None or following.kind not in (_MIDDLE, _LAST):
                return None
            fragment = following
        return sequence, count, fragment.end

    def rest_is_empty(self, offset: int) -> bool:
        """Whether there is nothing but zeros from here on."""
        return not self.data[offset:].strip(b"\0")

    def intact_record_from(self, offset: int) -> bool:
        """Whether a whole record begins anywhere from here on, on whatever byte: a bad length loses the thread."""
        end = len(self.data)
        while offset < end:
            block_end = offset - offset % _BLOCK + _BLOCK
            for candidate in range(offset, min(block_end, end) - _HEADER.size + 1):
                if self.data[candidate + 6] in (_FULL, _FIRST) and self.record(candidate) is not None:
                    return True
            offset = block_end
        return False


@dataclass
class _Walk:
    end: int
    """Where the last good record ends."""
    next_sequence: int
    """The sequence number that must follow, 0 if not known."""
    clean: bool
    """The file goes on to its end, or to nothing but zeros, without anything wrong."""
    whole: bool
    """Clean, and no record is cut short either."""


def _walk(reader: _Reader, next_sequence: int) -> _Walk:
    """Read records until the end or until something is wrong."""
    offset = end = 0
    data = reader.data
    while True:
        offset = reader.next_offset(offset)
        if offset >= len(data):
            return _Walk(end, next_sequence, True, True)
        record = reader.record(offset)
        if record is None:
            fragment = reader.fragment(offset)
            if fragment is not None and fragment.kind >= _IGNORABLE:
                offset = end = fragment.end
                continue
            if reader.rest_is_empty(offset):
                return _Walk(end, next_sequence, True, True)
            return _Walk(end, next_sequence, _ends_early(reader, offset), False)
        sequence, count, record_end = record
        if next_sequence and sequence != next_sequence:
            return _Walk(end, next_sequence, False, False)
        next_sequence = sequence + count
        offset = end = record_end


def _ends_early(reader: _Reader, offset: int) -> bool:
    """Whether the record at an offset is good as far as it goes, and the file ends inside it."""
    size = len(reader.data)
    while True:
        offset = reader.next_offset(offset)
        if offset + _HEADER.size > size:
            return True
        fragment = reader.fragment(offset)
        if fragment is None:
            _, length, kind = _HEADER.unpack_from(reader.data, offset)
            left = _BLOCK - offset % _BLOCK
            return bool(
                _ZERO < kind <= _LAST and length <= left - _HEADER.size and offset + _HEADER.size + length > size
            )
        if fragment.kind in (_FULL, _LAST):
            return False
        offset = fragment.end


def check_chain(folder: str) -> bool:
    """A quick look (no checksums) at the logs of a closed database: whether all is well as far as structure says.

    It sees what RocksDB is silent about: a hole of zeros, a log that is missing between others or ends too early.
    """
    next_sequence = 0
    for path in write_ahead_logs(folder):
        walk = _walk(_Reader(_read(path), verify=False), next_sequence)
        if not walk.clean:
            return False
        next_sequence = walk.next_sequence
    return True


def drop_torn_tail(folder: str) -> None:
    """Cut a torn write off the logs of a closed database, durably. Slow: it computes checksums in Python.

    Raises:
        DataCorrupted: there is damage with something intact behind it, or none that this module can see.
    """
    next_sequence = 0
    paths = write_ahead_logs(folder)
    for number, path in enumerate(paths):
        reader = _Reader(_read(path), verify=True)
        walk = _walk(reader, next_sequence)
        next_sequence = walk.next_sequence
        if walk.whole:
            continue
        if reader.intact_record_from(walk.end):
            raise DataCorrupted(f"{path}: damaged at byte {walk.end}, and intact records follow")
        for later in paths[number + 1 :]:
            if _Reader(_read(later), verify=True).intact_record_from(0):
                if walk.clean and check_chain(folder):
                    break  # a tail that an earlier start has dropped already; the next log goes on where this one ends
                raise DataCorrupted(f"{path}: damaged at byte {walk.end}, and {later} has intact records")
        else:
            for torn in paths[number:]:
                _cut(torn, walk.end if torn == path else 0)
            return
    raise DataCorrupted(f"{folder}: damaged, but not in its write-ahead log")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _cut(path: str, length: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
