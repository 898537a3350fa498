"""What a segment holds after a crash: records, and then its end, a torn record, or damage.

The rules, and why they are certain: docs/architecture/log-format.md, "Reading it back".
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import DataCorrupted
from .log_record import OPENS, SEALS, SECTOR, LogRecord, RecordHeader, count_blanks, is_blank, read_header, read_record


class SegmentContent(NamedTuple):
    """What was read of one segment."""

    records: list[LogRecord]
    end: int
    """Where the next record begins."""
    sealed: bool
    torn: bool
    """Something after ``end`` was written and never synced. It must be overwritten with zeros."""


def read_segment(path: str, data: bytes, number: int, log: int | None, chain: int | None) -> SegmentContent:
    """Read the records of a segment.

    Args:
        path: for messages.
        log: the log's number; ``None`` in the first segment that is read: its first record says it.
        chain: the chain before the segment; ``None`` likewise.

    Raises:
        DataCorrupted: something that was on disk has changed since.
    """
    records: list[LogRecord] = []
    offset, torn = 0, False
    while offset < len(data):
        header = read_header(data, offset)
        if header is None:
            if not is_blank(data[offset : offset + SECTOR], 0):
                raise DataCorrupted(f"{path}: damaged at byte {offset}: a record's header has changed")
            torn = not is_blank(data, offset)
            break
        log, chain = header.log if log is None else log, header.previous if chain is None else chain
        if not _fits(header, log, number, offset, chain) or offset + header.size > len(data):
            raise DataCorrupted(f"{path}: damaged at byte {offset}: a record that does not belong there")
        record = read_record(data, header)
        if record is None:
            if count_blanks(data[offset : offset + header.size]) <= header.blanks:
                raise DataCorrupted(f"{path}: damaged in the record at byte {offset}: it was written, and has changed")
            torn = True
            break
        records.append(record)
        chain = header.chain
        offset += header.size
        if header.flags & SEALS:
            return SegmentContent(records, offset, True, False)
    if torn and _was_synced(data, number, log, offset):
        raise DataCorrupted(f"{path}: damaged at byte {offset}: a later record says that this was on disk")
    return SegmentContent(records, offset, False, torn)


def _fits(header: RecordHeader, log: int, number: int, offset: int, chain: int) -> bool:
    opens = bool(header.flags & OPENS)
    place = (header.log, header.segment, header.offset, header.previous)
    return place == (log, number, offset, chain) and opens == (offset == 0)


def _was_synced(data: bytes, number: int, log: int | None, offset: int) -> bool:
    """Whether a header after the torn record at ``offset`` says that more than what is before it was synced."""
    for later in range(offset + SECTOR, len(data), SECTOR):
        header = read_header(data, later)
        if header is None or (header.segment, header.offset) != (number, later) or log not in (None, header.log):
            continue  # entries' data, or a record of something else
        if header.durable > offset:
            return True
    return False
