"""The files of a Raft log, as a fault sees them."""

from __future__ import annotations

from pathlib import Path

from raykeeper.raft.messages import Entry, EntryKind
from raykeeper.store.log.log_record import SECTOR, RecordPlace, pack_content, pack_record, read_header


def last_segment(folder: Path) -> Path:
    """The segment that is written to: the last that is not blank."""
    segments = sorted(folder.glob("*.wal"))
    return next((path for path in reversed(segments) if any(path.read_bytes()[:SECTOR])), segments[0])


def written_ranges(data: bytes) -> list[tuple[int, int]]:
    """From where to where each record of a segment has content: what changes there is noticed."""
    ranges = []
    offset = 0
    while (header := read_header(data, offset)) is not None:
        ranges.append((offset, offset + header.data_offset + header.data_size))
        offset += header.size
    return ranges


def tear(folder: Path) -> None:
    """Let a log end in a record of which only the first sector was written when the power went."""
    path = last_segment(folder)
    data = path.read_bytes()
    offset, header = 0, None
    while (following := read_header(data, offset)) is not None:
        offset, header = offset + following.size, following
    assert header is not None
    place = RecordPlace(header.log, header.segment, offset, offset, header.chain)
    content = pack_content(b"", [Entry(1 << 40, 1, EntryKind.NORMAL, b"torn" * SECTOR)])
    torn, _ = pack_record(place, 0, content)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(torn[:SECTOR])
