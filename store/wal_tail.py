"""Telling a torn write from damage, in RocksDB's write-ahead logs.

The rule (docs/architecture.md, "Rules of the disk"): torn is what was never written. A loss of power leaves a file that
is too short, or sectors that are blank, in any order; such a write was never synced, so nobody was told that it is
durable, and it is dropped with all that lies behind it, intact or not. All else that does not check was written once
and has changed since: it may have taken promises with it. RocksDB does not make that difference for us: its modes
refuse a bad last record like a bad one in the middle, skip runs of zeros and files that end early without a word, or
lose what follows. So this module reads the logs itself.

A log is a row of blocks of 32 KiB; a record is whole in a block or in fragments over several: masked CRC-32C (4 bytes),
length (2), type (1), payload (rocksdb wiki, "Write Ahead Log File Format"). The payload of a whole record is a batch:
sequence number (8), count of operations (4), ...; sequence numbers have no gaps, over all logs.

What makes it certain is ours. No record has many zeros in a row by nature (see ``raft_log``), and each ends in a
*seal*: so one whose length has rotted is not taken for one that is cut short. The seal names the sequence number up to
which all was synced before: what is blank below that went blank after it had been synced.
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
_SECTOR = 512
"""What a disk writes whole or not at all, at least..."""
_BLANK = 32
"""... and how many zeros at its end, at least, tell of a part of it that was not there yet when it was written."""
_SEAL = struct.Struct(">4sQB")
_SEAL_BEGINS, _SEAL_ENDS = b"\xa5RK\xe1", 0xFF
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


def seal(synced: int) -> bytes:
    """What the payload of each record ends with. It is not blank, and ends in a byte that is not.

    Args:
        synced: the sequence number up to which all was synced before the record was written.
    """
    return _SEAL.pack(_SEAL_BEGINS, synced, _SEAL_ENDS)


def _synced(tail: bytes) -> int | None:
    """What a seal says; ``None`` if it is none."""
    if len(tail) < _SEAL.size:
        return None
    begins, synced, ends = _SEAL.unpack(tail[-_SEAL.size :])
    return int(synced) if (begins, ends) == (_SEAL_BEGINS, _SEAL_ENDS) else None


@dataclass
class _Fragment:
    offset: int
    end: int
    kind: int
    payload: bytes
    """Its beginning..."""
    tail: bytes
    """... and its end."""


@dataclass
class _Record:
    sequence: int
    count: int
    end: int
    synced: int
    """What its seal says; 0 if it has none."""


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
        payload, tail = self.data[start : min(end, start + _BATCH.size)], self.data[max(start, end - _SEAL.size) : end]
        return _Fragment(offset, end, kind, payload, tail)

    def next_offset(self, offset: int) -> int:
        """Where the next fragment may begin: blocks end in up to six bytes that hold nothing."""
        left = _BLOCK - offset % _BLOCK
        return offset + left if left < _HEADER.size else offset

    def record(self, offset: int) -> _Record | None:
        """The whole record that begins at an offset, if there is one."""
        fragment = self.fragment(offset)
        if fragment is None or fragment.kind not in (_FULL, _FIRST):
            return None
        head, tail = fragment.payload, fragment.tail
        while fragment.kind != _FULL and fragment.kind != _LAST:
            following = self.fragment(self.next_offset(fragment.end))
            if following is None or following.kind not in (_MIDDLE, _LAST):
                return None
            fragment = following
            head += fragment.payload  # a record that begins at the very end of a block has its head in two fragments
            tail += fragment.tail
        if len(head) < _BATCH.size:
            return None
        sequence, count = _BATCH.unpack_from(head)
        return _Record(sequence, count, fragment.end, _synced(tail) or 0)

    def rest_is_empty(self, offset: int) -> bool:
        """Whether there is nothing but zeros from here on."""
        return not self.data[offset:].strip(b"\0")

    def is_torn(self, offset: int, next_sequence: int) -> bool:
        """Whether what is no good record here was never written as a whole; otherwise all of it was, and has changed.

        Args:
            next_sequence: of the record that should be here, 0 if not known.
        """
        written = offset + len(self.data[offset:].rstrip(b"\0"))
        if _synced(self._payload_before(written)) is not None and not self._has_blank(offset, written):
            return False  # up to the end of some record
        begins = offset
        while True:
            offset = self.next_offset(offset)
            if offset + _HEADER.size > len(self.data):
                return True
            _, length, kind = _HEADER.unpack_from(self.data, offset)
            end = offset + _HEADER.size + length
            expected = (_FULL, _FIRST) if offset == self.next_offset(begins) else (_MIDDLE, _LAST)
            if kind not in expected or end > offset + _BLOCK - offset % _BLOCK:
                return self._has_blank(offset, -(-(offset + _HEADER.size) // _SECTOR) * _SECTOR)
            if self._has_blank(offset, end):
                return True
            if end > len(self.data):
                head = self.data[offset + _HEADER.size : offset + _HEADER.size + 8]
                is_first = kind in (_FULL, _FIRST) and len(head) == 8 and next_sequence
                return not is_first or int.from_bytes(head, "little") == next_sequence
            if kind in (_FULL, _LAST) or self.fragment(offset) is None:
                return False
            offset = end

    def _has_blank(self, start: int, end: int) -> bool:
        """Whether any sector, or what of it lies between two offsets, is blank or has a blank end."""
        data, end = self.data, min(end, len(self.data))
        while start < end:
            stop = min(end, start - start % _SECTOR + _SECTOR)
            if stop - start - len(data[start:stop].rstrip(b"\0")) >= min(_BLANK, stop - start):
                return True
            start = stop
        return False

    def _payload_before(self, end: int) -> bytes:
        """The end of a record's payload, if one ends here: it may lie in two blocks."""
        block = max(0, end - 1) // _BLOCK * _BLOCK
        if block and end - block < _HEADER.size + _SEAL.size:
            return self.data[block - _SEAL.size : block] + self.data[block + _HEADER.size : end]
        return self.data[max(0, end - _SEAL.size) : end]

    def proof_of_sync(self, offset: int, next_sequence: int) -> bool:
        """Whether an intact record from here on says that what should begin at an offset was synced.

        It may begin on whatever byte: a bad length loses the thread. Its sequence number must be a likely one, before
        it is worth a checksum.
        """
        data, first_bytes = self.data, len(self.data) - _HEADER.size - _BATCH.size + 1
        limit = next_sequence + (1 << 40)
        for candidate in range(offset, first_bytes):
            if data[candidate + 6] in (_FULL, _FIRST):
                if _BLOCK - candidate % _BLOCK >= _HEADER.size + _BATCH.size:
                    sequence, count = _BATCH.unpack_from(data, candidate + _HEADER.size)
                elif (record := self.record(candidate)) is not None:  # its head goes on in the next block
                    sequence, count = record.sequence, record.count
                else:
                    continue
                likely = next_sequence <= sequence < limit and 0 < count < 1 << 28
                record = self.record(candidate) if likely else None
                if record is not None and record.synced >= (next_sequence or sequence - 1) > 0:
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
        if next_sequence and record.sequence != next_sequence:
            return _Walk(end, next_sequence, False)
        next_sequence = record.sequence + record.count
        offset = end = record.end


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
        DataCorrupted: there is damage, or none that this module can see.
    """
    paths = write_ahead_logs(folder)
    broken = _broken_link(paths, verify=True)
    if broken is None:
        raise DataCorrupted(f"{folder}: damaged, but not in its write-ahead log")
    number, walk = broken
    where = f"{paths[number]}: damaged at byte {walk.end}"
    if not _Reader(_read(paths[number]), verify=True).is_torn(walk.end, walk.next_sequence):
        raise DataCorrupted(f"{where}: what was written there is not what is there now")
    for later, path in enumerate(paths[number:], number):
        start = walk.end if later == number else 0
        if _Reader(_read(path), verify=True).proof_of_sync(start, walk.next_sequence):
            raise DataCorrupted(f"{where}: what is blank there was synced, says a record behind it in {path}")
    for torn in paths[number:]:
        _cut(torn, walk.end if torn == paths[number] else 0)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _cut(path: str, length: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
