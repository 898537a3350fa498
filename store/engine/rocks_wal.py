"""Telling a torn write from damage in RocksDB's write-ahead logs.

The rule: a torn write was never written completely. A loss of power leaves a file that is too short, or blank sectors,
in any order. Such a write was never synced, so nothing has been promised about it, and it is dropped with everything
after it, intact or not. Anything else that fails its check was written once and has changed since: promises may be lost
with it. RocksDB does not make that distinction. Depending on its mode, it refuses a bad last record like one in the
middle, silently skips runs of zeros and files that end early, or loses what follows. So this module reads the logs
itself.

A log is a sequence of blocks of 32 KiB. A record is whole in one block or in fragments over several. A fragment is
masked CRC-32C (4 bytes), length (2), type (1), payload (RocksDB wiki, "Write Ahead Log File Format"). The payload of a
record is a batch: sequence number (8), count of operations (4), ...; sequence numbers have no gaps, across all logs.

Two properties of our own writes make the distinction certain. No record has many zeros in a row by nature (see
``raft_log``), and each ends in a *seal*, so a record whose length is damaged is not taken for one that is cut short.
The seal names the sequence number up to which everything was synced before: blank sectors below it were not blank then.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from ...errors import DataCorrupted

_BLOCK = 32 * 1024
_HEADER = struct.Struct("<IHB")
_BATCH = struct.Struct("<QI")
_ZERO, _FULL, _FIRST, _MIDDLE, _LAST = range(5)
_SECTOR = 512
"""The least that a disk writes completely or not at all..."""
_BLANK = 32
"""... and the number of zeros at the end of a sector that shows that this part was not written yet."""
_SEAL = struct.Struct(">4sQB")
_SEAL_BEGINS, _SEAL_ENDS = b"\xa5RK\xe1", 0xFF
_IGNORABLE = 1 << 7
"""Readers may skip fragments of types from here on that they do not know."""


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
    """The end of each record's payload. It is not blank, and neither is its last byte.

    Args:
        synced: the sequence number up to which everything was synced before the record was written.
    """
    return _SEAL.pack(_SEAL_BEGINS, synced, _SEAL_ENDS)


def _synced(tail: bytes) -> int | None:
    """The sequence number in a seal; ``None`` if these bytes do not end in a seal."""
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
    """The beginning of its payload..."""
    tail: bytes
    """... and its end."""


@dataclass
class _Record:
    sequence: int
    count: int
    end: int
    synced: int
    """The sequence number in its seal; 0 if it has none."""


class _Reader:
    """Reads the fragments and records of one log. ``verify`` also checks checksums, which is slow in Python."""

    def __init__(self, data: bytes, *, verify: bool) -> None:
        self.data = data
        self.verify = verify

    def fragment(self, offset: int) -> _Fragment | None:
        """The fragment at an offset; ``None`` if there is none or it is damaged."""
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
        """Where the next fragment can begin: up to six bytes at the end of a block are unused."""
        left = _BLOCK - offset % _BLOCK
        return offset + left if left < _HEADER.size else offset

    def record(self, offset: int) -> _Record | None:
        """The complete record that begins at an offset, if there is one."""
        fragment = self.fragment(offset)
        if fragment is None or fragment.kind not in (_FULL, _FIRST):
            return None
        head, tail = fragment.payload, fragment.tail
        while fragment.kind != _FULL and fragment.kind != _LAST:
            following = self.fragment(self.next_offset(fragment.end))
            if following is None or following.kind not in (_MIDDLE, _LAST):
                return None
            fragment = following
            head += fragment.payload  # at the very end of a block, a record's head is split over two fragments
            tail += fragment.tail
        if len(head) < _BATCH.size:
            return None
        sequence, count = _BATCH.unpack_from(head)
        return _Record(sequence, count, fragment.end, _synced(tail) or 0)

    def rest_is_empty(self, offset: int) -> bool:
        """Whether there are only zeros from here on."""
        return not self.data[offset:].strip(b"\0")

    def is_torn(self, offset: int, next_sequence: int) -> bool:
        """Whether the bad record here was never written completely. Otherwise it was, and has changed since.

        It was written completely if the file ends in a seal and no sector before that is blank. Otherwise follow the
        fragments of the record: it is torn if one has a blank sector, or runs past the end of the file. A damaged
        length may run past the end too, so a first fragment must also hold the expected sequence number.

        Args:
            next_sequence: of the record that should be here; 0 if unknown.
        """
        written = offset + len(self.data[offset:].rstrip(b"\0"))
        if _synced(self._payload_before(written)) is not None and not self._has_blank(offset, written):
            return False  # written up to the end of some record
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
        """Whether any sector between two offsets is blank, or has a blank end."""
        data, end = self.data, min(end, len(self.data))
        while start < end:
            stop = min(end, start - start % _SECTOR + _SECTOR)
            if stop - start - len(data[start:stop].rstrip(b"\0")) >= min(_BLANK, stop - start):
                return True
            start = stop
        return False

    def _payload_before(self, end: int) -> bytes:
        """The end of a record's payload, if one ends here; it may be split over two blocks."""
        block = max(0, end - 1) // _BLOCK * _BLOCK
        if block and end - block < _HEADER.size + _SEAL.size:
            return self.data[block - _SEAL.size : block] + self.data[block + _HEADER.size : end]
        return self.data[max(0, end - _SEAL.size) : end]

    def proves_sync(self, offset: int, next_sequence: int) -> bool:
        """Whether an intact record from here on says that the record which should begin at an offset was synced.

        It may begin at any byte, because after a bad length the next record cannot be found. Its sequence number must
        be plausible before its checksum is computed.
        """
        data, first_bytes = self.data, len(self.data) - _HEADER.size - _BATCH.size + 1
        limit = next_sequence + (1 << 40)
        for candidate in range(offset, first_bytes):
            if data[candidate + 6] in (_FULL, _FIRST):
                if _BLOCK - candidate % _BLOCK >= _HEADER.size + _BATCH.size:
                    sequence, count = _BATCH.unpack_from(data, candidate + _HEADER.size)
                elif (record := self.record(candidate)) is not None:  # its head continues in the next block
                    sequence, count = record.sequence, record.count
                else:
                    continue
                likely = next_sequence <= sequence < limit and 0 < count < 1 << 28
                record = self.record(candidate) if likely else None
                if record is not None and record.synced >= (next_sequence or sequence - 1) > 0:
                    return True
        return False


@dataclass
class _Extent:
    end: int
    """Where the last good record ends."""
    next_sequence: int
    """The sequence number that must follow; 0 if unknown."""
    whole: bool
    """Whether only zeros follow the last good record."""


def _read_records(reader: _Reader, next_sequence: int) -> _Extent:
    """Read records up to the end, or to the first that is wrong: damaged, or out of sequence."""
    offset = end = 0
    while True:
        offset = reader.next_offset(offset)
        record = reader.record(offset)
        if record is None:
            fragment = reader.fragment(offset)
            if fragment is None or fragment.kind < _IGNORABLE:
                return _Extent(end, next_sequence, reader.rest_is_empty(offset))
            offset = end = fragment.end
            continue
        if next_sequence and record.sequence != next_sequence:
            return _Extent(end, next_sequence, False)
        next_sequence = record.sequence + record.count
        offset = end = record.end


def write_ahead_logs(folder: str) -> list[str]:
    """The paths of a database's write-ahead logs, oldest first."""
    names = [name for name in os.listdir(folder) if name.endswith(".log") and name[:-4].isdigit()]
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: int(name[:-4]))]


def check_chain(folder: str) -> bool:
    """A quick check of the structure of a closed database's logs, without checksums. Returns whether they are whole.

    It finds what RocksDB does not report: a hole of zeros, a missing log between others, a length that reaches past the
    end of the file. A torn write is reported as not whole; :func:`drop_torn_tail` then tells it from damage.
    """
    return _first_broken(write_ahead_logs(folder), verify=False) is None


def _first_broken(paths: list[str], *, verify: bool) -> tuple[int, _Extent] | None:
    """The first log that is not whole: its position in ``paths``, and how far it is good.

    A log that stops short is fine if the next one continues exactly there: an earlier start has dropped its tail.
    """
    next_sequence = 0
    short: tuple[int, _Extent] | None = None
    for number, path in enumerate(paths):
        extent = _read_records(_Reader(_read(path), verify=verify), next_sequence)
        if next_sequence and extent.end:
            short = None
        if short is None and not extent.whole:
            short = number, extent
        next_sequence = extent.next_sequence
    return short


def drop_torn_tail(folder: str) -> None:
    """Drop a torn write from the end of a closed database's logs, durably. Slow: it computes checksums in Python.

    Nothing is dropped that may have been synced: the bad record must be torn, and no later record may prove that the
    bytes there were synced.

    Raises:
        DataCorrupted: there is damage, or no torn write in the logs.
    """
    paths = write_ahead_logs(folder)
    broken = _first_broken(paths, verify=True)
    if broken is None:
        raise DataCorrupted(f"{folder}: damaged, but not in its write-ahead log")
    number, extent = broken
    where = f"{paths[number]}: damaged at byte {extent.end}"
    if not _Reader(_read(paths[number]), verify=True).is_torn(extent.end, extent.next_sequence):
        raise DataCorrupted(f"{where}: the bytes there have changed since they were written")
    for later, path in enumerate(paths[number:], number):
        start = extent.end if later == number else 0
        if _Reader(_read(path), verify=True).proves_sync(start, extent.next_sequence):
            raise DataCorrupted(f"{where}: blank bytes there were synced once, according to a later record in {path}")
    for torn in paths[number:]:
        _truncate(torn, extent.end if torn == paths[number] else 0)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _truncate(path: str, length: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
