"""The bytes of the log: one record for each batch. docs/architecture/log-format.md has the tables and the reasons.

A record begins at a sector and fills its last one, and each sector is written once, over zeros. So on disk a sector is
blank or as it was written; a record whose content does not check is torn if it has more blank sectors than it was
written with, and damaged otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import google_crc32c
import msgspec

from ...raft.messages import Configuration, Entry, HardState

SECTOR = 512
"""The least that a disk writes completely or not at all."""
OPENS, SEALS = 1, 2
"""Flags: the first record of a segment, and the last."""
END_MARK = b"\xff"
"""The end of a record's content: its last sector is never blank."""

_MAGIC = b"RKL\1"
"""The last byte is the version of the format."""
_HEADER = struct.Struct("<4sIQIIIIIIQIIII")
_CHECKED = struct.Struct("<QIIIIIIQIIII")
"""The header from the log's number on."""
ROW = struct.Struct("<QIIB")
"""What a record says of each entry besides its data: term, size, check and kind."""
_pack_row = ROW.pack
_SECTOR_OF_ZEROS = bytes(SECTOR)

crc32c = google_crc32c.extend
assert _HEADER.size == 8 + _CHECKED.size


class LogBase(msgspec.Struct, frozen=True, array_like=True):
    """An entry that is not held any more: the last one that was trimmed, after which the log begins."""

    index: int = 0
    term: int = 0


class LogNote(msgspec.Struct, frozen=True, array_like=True):
    """What a record says besides its entries. ``None`` is unchanged."""

    hard_state: HardState | None = None
    base: LogBase | None = None
    configuration: Configuration | None = None
    reset: bool = False
    """All entries so far are gone: the log begins after ``base``."""
    last: LogBase | None = None
    """In a record that opens a segment: the last entry before this record."""


_encode_note = msgspec.msgpack.Encoder().encode
_decode_note = msgspec.msgpack.Decoder(LogNote).decode


class RecordPlace(NamedTuple):
    """Where a record is to be written: what its header says besides its content."""

    log: int
    segment: int
    offset: int
    durable: int
    previous: int


class RecordHeader(NamedTuple):
    """The header of a record, in the order of its bytes."""

    log: int
    segment: int
    flags: int
    offset: int
    durable: int
    previous: int
    chain: int
    first: int
    entries: int
    note_size: int
    data_size: int
    blanks: int

    @property
    def data_offset(self) -> int:
        """Where the entries' data begins, from the beginning of the record."""
        return _HEADER.size + self.note_size + self.entries * ROW.size

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return to_sector(self.data_offset + self.data_size + len(END_MARK))


class RecordContent(NamedTuple):
    """What a record says and holds, wherever it is to be written."""

    first: int
    sizes: list[int]
    """Bytes of each entry's data."""
    rows: bytes
    note_size: int
    data: bytes
    """Note, rows, the entries' data, and the end mark."""
    blanks: int

    @property
    def data_offset(self) -> int:
        """Where the entries' data begins, from the beginning of the record."""
        return _HEADER.size + self.note_size + len(self.rows)

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return to_sector(_HEADER.size + len(self.data))


class LogRecord(NamedTuple):
    """An intact record that was read."""

    header: RecordHeader
    note: LogNote | None
    rows: bytes
    """One ``ROW`` for each entry."""


def to_sector(offset: int) -> int:
    """The offset, or the next one at which a sector begins."""
    return -(-offset // SECTOR) * SECTOR


def encode_note(note: LogNote | None) -> bytes:
    """A note as it is written."""
    return b"" if note is None else _encode_note(note)


def pack_content(note: bytes, entries: Sequence[Entry]) -> RecordContent:
    """The content of a record. The entries' indexes are consecutive."""
    datas = [entry.data for entry in entries]
    rows = b"".join([_pack_row(entry.term, len(entry.data), crc32c(0, entry.data), entry.kind) for entry in entries])
    data = b"".join((note, rows, *datas, END_MARK))
    blanks = 0
    if _SECTOR_OF_ZEROS in data:  # else no sector of it is blank
        blanks = count_blanks(END_MARK * _HEADER.size + data)
    return RecordContent(entries[0].index if entries else 0, list(map(len, datas)), rows, len(note), data, blanks)


def pack_record(place: RecordPlace, flags: int, content: RecordContent) -> tuple[bytes, int]:
    """The bytes of a record, and the chain up to it."""
    log, segment, offset, durable, previous = place
    first, sizes, rows, note_size, data, blanks = content
    described = note_size + len(rows)
    chain = crc32c(previous, data[:described])
    data_size = len(data) - described - len(END_MARK)
    checked = _CHECKED.pack(
        log, segment, flags, offset, durable, previous, chain, first, len(sizes), note_size, data_size, blanks
    )
    padding = -(_HEADER.size + len(data)) % SECTOR
    head = _MAGIC + crc32c(0, checked).to_bytes(4, "little") + checked
    return b"".join((head, data, _SECTOR_OF_ZEROS[:padding])), chain


def read_header(data: bytes, offset: int) -> RecordHeader | None:
    """The header at an offset; ``None`` if there is none that checks."""
    if offset + _HEADER.size > len(data) or data[offset : offset + 4] != _MAGIC:
        return None
    checked = data[offset + 8 : offset + _HEADER.size]
    if int.from_bytes(data[offset + 4 : offset + 8], "little") != crc32c(0, checked):
        return None
    return RecordHeader(*_CHECKED.unpack(checked))


def read_record(data: bytes, header: RecordHeader) -> LogRecord | None:
    """The record with this header in a segment's data; ``None`` if its content does not check."""
    start = header.offset
    rows_offset = start + _HEADER.size + header.note_size
    data_offset = start + header.data_offset
    described = data[start + _HEADER.size : data_offset]
    if crc32c(header.previous, described) != header.chain:
        return None
    rows = data[rows_offset:data_offset]
    end = data_offset
    for _, size, check, _ in ROW.iter_unpack(rows):
        if crc32c(0, data[end : end + size]) != check:
            return None
        end += size
    if end != data_offset + header.data_size:
        return None
    try:
        note = _decode_note(described[: header.note_size]) if header.note_size else None
    except msgspec.MsgspecError:
        return None
    return LogRecord(header, note, rows)


def count_blanks(data: bytes) -> int:
    """Sectors that are blank, of data that begins with one. A sector at the end that is not whole is not counted."""
    ends = range(SECTOR, len(data) + 1, SECTOR)
    return sum([data[end - SECTOR : end] == _SECTOR_OF_ZEROS for end in ends])


def is_blank(data: bytes, start: int) -> bool:
    """Whether there are only zeros from here on."""
    rest = data[start:]
    return rest == bytes(len(rest))
