"""A record's bytes: what is packed is read, any other bytes are not, and its blank sectors are counted."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.store.log.log_record import (
    OPENS,
    ROW,
    SECTOR,
    LogBase,
    LogNote,
    RecordPlace,
    count_blanks,
    crc32c,
    encode_note,
    pack_content,
    pack_record,
    read_header,
    read_record,
)

DATAS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.integers(0, 3000).map(bytes),
        st.tuples(st.integers(0, 2000), st.binary(max_size=9)).map(lambda part: bytes(part[0]) + part[1]),
    ),
    max_size=5,
)
NOTES = st.sampled_from(
    [None, LogNote(HardState(3, 1, 2)), LogNote(HardState(), LogBase(5, 2), Configuration((1, 2)), True, LogBase(9, 1))]
)


def test_the_checksum() -> None:
    # 32 zeros, and 32 ones: RFC 3720, B.4.
    assert crc32c(0, bytes(32)) == 0x8A9136AA
    assert crc32c(0, b"\xff" * 32) == 0x62A8AB43
    assert crc32c(crc32c(0, b"1234"), b"56789") == crc32c(0, b"123456789") == 0xE3069283


@given(datas=DATAS, note=NOTES, previous=st.integers(0, (1 << 32) - 1), before=st.integers(0, 3))
def test_what_is_packed_is_read(datas: list[bytes], note: LogNote | None, previous: int, before: int) -> None:
    entries = [Entry(7 + n, 4, EntryKind.CONFIGURATION, data) for n, data in enumerate(datas)]
    place = RecordPlace(1 << 63, 12, before * SECTOR, 0, previous)
    content = pack_content(encode_note(note), entries)
    packed, chain = pack_record(place, OPENS, content)
    assert len(packed) == content.size
    segment = b"\xaa" * place.offset + packed + b"\xaa" * SECTOR
    header = read_header(segment, place.offset)
    assert header is not None
    assert header[:2] + header[3:6] == place
    assert header.chain == chain
    assert header.size == len(packed)
    assert header.data_offset == content.data_offset
    assert header.blanks == count_blanks(packed)
    record = read_record(segment, header)
    assert record is not None
    assert record.note == note
    start = place.offset + header.data_offset
    for entry, row in zip(entries, ROW.iter_unpack(record.rows), strict=True):
        assert segment[start : start + len(entry.data)] == entry.data
        assert row == (4, len(entry.data), crc32c(0, entry.data), EntryKind.CONFIGURATION)
        start += len(entry.data)


@given(datas=DATAS, note=NOTES, seed=st.integers(0, 1 << 30))
def test_a_flipped_bit_is_noticed(datas: list[bytes], note: LogNote | None, seed: int) -> None:
    rng = random.Random(seed)
    entries = [Entry(7 + n, 4, EntryKind.NORMAL, data) for n, data in enumerate(datas)]
    data, _ = pack_record(RecordPlace(1, 1, 0, 0, 99), 0, pack_content(encode_note(note), entries))
    whole = read_header(data, 0)
    assert whole is not None
    flipped = bytearray(data)
    position = rng.randrange(whole.data_offset + whole.data_size)
    flipped[position] ^= 1 << rng.randrange(8)
    header = read_header(bytes(flipped), 0)
    assert header is None or read_record(bytes(flipped), header) is None
