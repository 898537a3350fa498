"""A record's bytes: what is packed is read, any other bytes are not, and its blank sectors are counted."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.store.log.log_record import (
    OPENS,
    SECTOR,
    LogBase,
    LogNote,
    RecordPlace,
    count_blanks,
    crc32c,
    encode_note,
    pack_record,
    read_header,
    read_record,
    record_size,
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
    packed = pack_record(place, OPENS, encode_note(note), entries)
    assert len(packed.data) == record_size(entries, encode_note(note))
    segment = b"\xaa" * place.offset + packed.data + b"\xaa" * SECTOR
    header = read_header(segment, place.offset)
    assert header is not None
    assert header[:2] + header[3:6] == place
    assert header.chain == packed.chain
    assert header.size == len(packed.data)
    assert header.blanks == count_blanks(packed.data)
    record = read_record(segment, header)
    assert record is not None
    assert record.note == note
    start = place.offset + header.data_offset
    for n, entry in enumerate(entries):
        assert segment[start : start + record.rows.sizes[n]] == entry.data
        assert (record.rows.terms[n], record.rows.kinds[n]) == (4, 1)
        start += record.rows.sizes[n]


@given(datas=DATAS, note=NOTES, seed=st.integers(0, 1 << 30))
def test_a_flipped_bit_is_noticed(datas: list[bytes], note: LogNote | None, seed: int) -> None:
    rng = random.Random(seed)
    entries = [Entry(7 + n, 4, EntryKind.NORMAL, data) for n, data in enumerate(datas)]
    data = pack_record(RecordPlace(1, 1, 0, 0, 99), 0, encode_note(note), entries).data
    whole = read_header(data, 0)
    assert whole is not None
    flipped = bytearray(data)
    position = rng.randrange(whole.data_offset + whole.data_size)
    flipped[position] ^= 1 << rng.randrange(8)
    header = read_header(bytes(flipped), 0)
    assert header is None or read_record(bytes(flipped), header) is None
