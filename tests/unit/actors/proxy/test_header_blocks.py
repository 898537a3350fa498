"""Header blocks are decoded as the library hpack decodes them, whatever comes."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raykeeper.actors.proxy.header_blocks import Fields, HeaderDecoder, encode_block
from raykeeper.actors.proxy.held_bytes import ByteShare, HeldBytes
from raykeeper.actors.proxy.http2_frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, Http2Error
from raykeeper.limits import MAX_HEADER_LIST_BYTES, PROXY_REMEMBERED_BYTES, REMEMBERED_FACTOR

NAMES = st.sampled_from(
    [b":path", b":method", b"te", b"grpc-timeout", b"user-agent", b"x", b"y" * 200, b"content-type"]
)
VALUES = st.one_of(
    st.sampled_from([b"", b"POST", b"GET", b"/etcdserverpb.KV/Range", b"trailers", b"4999876u", b"v" * 1500]),
    st.binary(max_size=40),
)
BLOCKS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=12)
PLANS = st.lists(st.tuples(BLOCKS, st.booleans(), st.sampled_from([None, 0, 100, 4096])), min_size=1, max_size=12)


def share() -> ByteShare:
    return HeldBytes().open_share(lambda: None)


def plain(fields: Fields) -> Fields:
    return fields


@given(PLANS)
def test_blocks_of_an_encoder(plans: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]]) -> None:
    """Fields with and without indexing, Huffman codes or plain, tables that shrink and grow."""
    encoder, decoder, oracle = hpack.Encoder(), HeaderDecoder(plain, share()), hpack.Decoder()
    for fields, huffman, size in plans:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(fields, huffman=huffman)
        assert decoder.decode(block) == tuple((name, value) for name, value, _ in fields)
        assert tuple(oracle.decode(block, raw=True)) == tuple((name, value) for name, value, _ in fields)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
@example([b"\x80"])
@example([b"\xff\xff\xff\xff\xff\xff\xff"])
@example([b"\x40\x01a\x85\xff\xff\xff\xff\xff"])
@example([b"\x20\x20\x20\x82"])
@example([b"\x3f\xe2\x1f"])
def test_arbitrary_bytes(blocks: list[bytes]) -> None:
    decoder, oracle = HeaderDecoder(plain, share()), hpack.Decoder()
    for block in blocks:
        try:
            expected = tuple(oracle.decode(block, raw=True))
        except (hpack.HPACKError, IndexError):  # hpack itself trips over some cut literals
            with pytest.raises(Http2Error):
                decoder.decode(block)
            return
        try:
            assert decoder.decode(block) == expected
        except Http2Error:
            assert sum(byte & 0xE0 == 0x20 for byte in block) > 2, "only because of its size updates"
            return


def test_the_same_block_is_understood_once() -> None:
    understood = []
    encoder = hpack.Encoder()
    decoder = HeaderDecoder(lambda fields: understood.append(fields) or len(understood), share())
    fields = [(":path", "/a"), ("te", "trailers")]
    first = encoder.encode(fields)  # puts fields into the table
    again = encoder.encode(fields)
    assert [decoder.decode(block) for block in (first, again, again, again)] == [1, 2, 2, 2]
    changing = encoder.encode([("x", "y")])
    assert decoder.decode(changing) == 3
    assert decoder.decode(encoder.encode(fields)) == 4, "the indexes have moved"


def test_an_entry_that_displaces_another_of_its_size_is_noticed() -> None:
    """The table is full, so its size says nothing of a change."""
    encoder, decoder = hpack.Encoder(), HeaderDecoder(plain, share())
    size = 4096 // 4 - 32 - 1
    decoder.decode(encoder.encode([("x", f"{i}" + "v" * (size - 1)) for i in range(4)]))
    last = encoder.encode([("x", "3" + "v" * (size - 1))])
    assert decoder.decode(last)[0][1][:1] == b"3"
    decoder.decode(encoder.encode([("x", "4" + "v" * (size - 1))]))
    assert decoder.decode(last)[0][1][:1] == b"4", "the same bytes mean another field"


def test_a_field_that_is_put_into_the_table_twice_is_there_twice() -> None:
    decoder = HeaderDecoder(plain, share())
    for _ in range(2):
        assert decoder.decode(b"\x40\x01a\x01b") == ((b"a", b"b"),)
    assert decoder.decode(b"\xbf") == ((b"a", b"b"),), "the older one"


def test_a_header_bomb_is_refused() -> None:
    """One long field in the table, and a block of nothing but its index."""
    encoder, decoder = hpack.Encoder(), HeaderDecoder(plain, share())
    decoder.decode(encoder.encode([("x", "v" * 4000)]))
    index = encoder.encode([("x", "v" * 4000)])
    assert len(index) == 1
    with pytest.raises(Http2Error) as caught:
        decoder.decode(index * (MAX_HEADER_LIST_BYTES // 4000 + 1))
    assert caught.value.code == ENHANCE_YOUR_CALM


def test_many_size_updates_are_refused() -> None:
    with pytest.raises(Http2Error) as caught:
        HeaderDecoder(plain, share()).decode(b"\x20" * 1000 + b"\x82")
    assert caught.value.code == COMPRESSION_ERROR


def test_what_is_remembered_is_bounded() -> None:
    decoder = HeaderDecoder(plain, share())
    for number in range(1000):
        decoder.decode(encode_block(((b"x", b"%d" % number), (b"y", b"v" * 100))))
    assert len(decoder._remembered) <= 16
    decoder.decode(encode_block(((b"x", b"v" * 3000),)))
    assert all(len(block) < 3000 for block in decoder._remembered)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_encoded_blocks_need_no_table(fields: list[tuple[bytes, bytes]]) -> None:
    block = encode_block(tuple(fields))
    oracle = hpack.Decoder()
    for _ in range(2):
        assert tuple(oracle.decode(block, raw=True)) == tuple(fields)
    assert not oracle.header_table.dynamic_entries


def test_what_all_connections_remember_is_bounded() -> None:
    """With no room a block is understood again each time; a connection that ends makes room."""
    held = HeldBytes()
    first, second = held.open_share(lambda: None), held.open_share(lambda: None)
    block = encode_block(((b":path", b"/x"),))
    size = REMEMBERED_FACTOR * (32 + len(b":path") + len(b"/x"))
    understood: list[Fields] = []
    decoder = HeaderDecoder(lambda fields: understood.append(fields) or len(understood), second)  # type: ignore[func-returns-value]
    assert first.remember(PROXY_REMEMBERED_BYTES - size + 1)
    for _ in range(3):
        decoder.decode(block)
    assert len(understood) == 3
    first.close()
    for _ in range(3):
        decoder.decode(block)
    assert (len(understood), held.remembered) == (4, size)
    second.close()
    assert held.remembered == 0
