"""One HTTP/2 connection without a socket: windows, turns, limits, floods and mistakes."""

from __future__ import annotations

import struct

import hpack
import pytest

from lab.http2.wire import (
    BLOCK,
    HEAD,
    HELLO,
    REQUEST,
    TAIL,
    Frame,
    RecordingOwner,
    connected,
    failure,
    request,
    split_frames,
)
from raykeeper.actors.proxy import http2_connection
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http2_frames import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW_BYTES,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_STREAM_ID,
    NO_ERROR,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    pack_frame,
    pack_settings,
    pack_window_update,
)
from raykeeper.limits import (
    MAX_HEADER_LIST_BYTES,
    MAX_PROXY_STREAMS,
    PROXY_SEND_BYTES,
    PROXY_STREAM_WINDOW_BYTES,
    PROXY_WINDOW_BYTES,
)


def sent_data(frames: list[Frame], stream: int) -> int:
    return sum(len(frame.payload) for frame in frames if frame.kind == DATA and frame.stream == stream)


# --- sending ---------------------------------------------------------------------------------------------------------


def test_an_answer_in_one_piece() -> None:
    owner = connected()
    owner.feed(request(1, end=True))
    owner.connection.answer(owner.streams[1], HEAD, b"data", TAIL)
    assert owner.wakes == 1
    assert owner.output() == [
        Frame(HEADERS, END_HEADERS, 1, HEAD),
        Frame(DATA, 0, 1, b"data"),
        Frame(HEADERS, END_HEADERS | END_STREAM, 1, TAIL),
    ]
    assert not owner.connection.streams


def test_answers_of_one_pass_wake_the_owner_once() -> None:
    owner = connected()
    owner.feed(b"".join(request(stream, end=True) for stream in range(1, 100, 2)))
    for stream in owner.streams.values():
        owner.connection.answer(stream, HEAD, b"data", TAIL)
    assert owner.wakes == 1


def test_an_answer_before_the_end_of_its_request() -> None:
    """What the client still sends is ignored, and gets its credit back."""
    owner = connected()
    owner.feed(request(1))
    owner.connection.end(owner.streams[1], TAIL)
    frames = owner.output()
    assert frames[-1] == Frame(RST_STREAM, 0, 1, NO_ERROR.to_bytes(4, "big"))
    late = pack_frame(DATA, 0, 1, bytes(16_384))
    frames = []
    for _ in range(PROXY_WINDOW_BYTES // 16_384):
        frames += owner.feed(late)
    assert owner.connection.failed is None
    assert sum(int.from_bytes(each.payload, "big") for each in frames if each.kind == WINDOW_UPDATE) > 0
    owner.feed(pack_frame(DATA, END_STREAM, 1, b""))
    assert owner.connection.failed is None
    assert failure(owner, late) == STREAM_CLOSED


@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_s_window_holds_an_answer_up(whole: bool) -> None:
    owner = connected()
    owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 10}))
    owner.feed(request(1, end=True))
    stream = owner.streams[1]
    if whole:
        owner.connection.answer(stream, HEAD, b"a" * 25, TAIL)
    else:
        owner.connection.send_head(stream, HEAD)
        owner.connection.send_data(stream, b"a" * 25)
        owner.connection.end(stream, TAIL)
    assert sent_data(owner.output(), 1) == 10
    assert owner.connection.share.held == 25, "as long as a part waits, all of it is in memory"
    frames = owner.feed(pack_window_update(1, 5))
    assert sent_data(frames, 1) == 5
    frames = owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 12}))
    assert sent_data(frames, 1) == 2
    assert owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 0})) == [Frame(SETTINGS, ACK, 0, b"")]
    assert owner.feed(pack_window_update(1, 12)) == [], "the window was negative"
    frames = owner.feed(pack_window_update(1, 100))
    assert sent_data(frames, 1) == 8
    assert frames[-1] == Frame(HEADERS, END_HEADERS | END_STREAM, 1, TAIL)
    assert owner.connection.share.held == 0


def test_the_connection_s_window_holds_whole_answers_up() -> None:
    owner = connected()
    owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 1 << 20}))
    owner.feed(b"".join(request(stream, end=True) for stream in (1, 3, 5, 7, 9)))
    for stream in owner.streams.values():
        owner.connection.answer(stream, HEAD, bytes(16_000), TAIL)
    frames = owner.output()
    assert sum(sent_data(frames, stream) for stream in owner.streams) == DEFAULT_WINDOW_BYTES
    frames = owner.feed(pack_window_update(0, 1 << 20))
    assert sent_data(frames, 9) == 5 * 16_000 - DEFAULT_WINDOW_BYTES
    assert not owner.connection.streams


def test_streams_take_turns() -> None:
    """A short answer does not wait for the end of a long one."""
    owner = connected()
    owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 1 << 20}) + request(1, end=True) + request(3, end=True))
    for stream, size in ((1, 1_000_000), (3, 20_000)):
        owner.connection.answer(owner.streams[stream], HEAD, bytes(size), TAIL)
    frames = owner.output() + owner.feed(pack_window_update(0, 1 << 20))
    order = [frame.stream for frame in frames if frame.kind == DATA]
    assert order[:5] == [1, 3, 1, 3, 1]
    assert sent_data(frames, 1) == 1_000_000


def test_one_write_is_bounded() -> None:
    owner = connected()
    owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 1 << 30}) + pack_window_update(0, 1 << 30))
    owner.feed(b"".join(request(stream, end=True) for stream in range(1, 200, 2)))
    for stream in owner.streams.values():
        owner.connection.answer(stream, HEAD, bytes(16_000), TAIL)
    sizes = []
    while data := owner.connection.take_output():
        sizes.append(len(data))
    assert sum(sizes) > 100 * 16_000
    assert max(sizes) < PROXY_SEND_BYTES + 50_000


def test_nothing_but_control_frames_while_the_socket_takes_no_more() -> None:
    owner = connected()
    owner.feed(request(1, end=True))
    owner.connection.paused = True
    owner.connection.answer(owner.streams[1], HEAD, b"data", TAIL)
    assert owner.output() == [Frame(HEADERS, END_HEADERS, 1, HEAD)]
    assert owner.connection.share.held == 4
    owner.connection.paused = False
    assert [frame.kind for frame in owner.output()] == [DATA, HEADERS]


def test_a_handler_that_waits_is_told_when_there_is_room() -> None:
    owner = connected()
    owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 1000}) + request(1))
    stream = owner.streams[1]
    owner.connection.send_head(stream, HEAD)
    for _ in range(100):
        owner.connection.send_data(stream, bytes(10_000))
    owner.output()
    assert stream.unsent == 999_000
    owner.feed(pack_window_update(1, 1 << 20) + pack_window_update(0, 1 << 20))
    assert stream.unsent == 0
    assert owner.receivers[1].sent == 2, "once when half has gone, and at the end"


def test_a_smaller_table_is_acknowledged_in_the_next_block() -> None:
    owner = connected()
    decoder = hpack.Decoder()
    owner.feed(pack_frame(SETTINGS, 0, 0, struct.pack(">HL", 1, 0)) + request(1, end=True))
    decoder.max_allowed_table_size = 0
    owner.connection.answer(owner.streams[1], HEAD, b"data", TAIL)
    frames = owner.output()
    assert [tuple(decoder.decode(each.payload)) for each in frames if each.kind == HEADERS] == [
        ((":status", "200"),),
        (("grpc-status", "0"),),
    ]


def test_a_long_header_block_is_continued() -> None:
    owner = connected()
    owner.feed(request(1, end=True))
    block = encode_block(((b"x", b"v" * 40_000),))
    owner.connection.end(owner.streams[1], block)
    frames = owner.output()
    assert [(frame.kind, frame.flags) for frame in frames] == [
        (HEADERS, END_STREAM),
        (CONTINUATION, 0),
        (CONTINUATION, END_HEADERS),
    ]
    assert b"".join(frame.payload for frame in frames) == block


# --- receiving -------------------------------------------------------------------------------------------------------


def test_data_beyond_a_stream_s_window_ends_the_stream() -> None:
    owner = connected()
    owner.feed(request(1))
    frames = []
    for _ in range(5):
        frames += owner.feed(pack_frame(DATA, 0, 1, bytes(16_384)))
    assert owner.resets(frames) == {1: FLOW_CONTROL_ERROR}
    assert owner.receivers[1].reset
    assert len(owner.receivers[1].data) <= PROXY_STREAM_WINDOW_BYTES


def test_credit_that_was_given_may_be_used() -> None:
    owner = connected()
    owner.feed(request(1))
    owner.connection.open_window(owner.streams[1], 100_000)
    assert owner.output() == [Frame(WINDOW_UPDATE, 0, 1, (100_000).to_bytes(4, "big"))]
    for _ in range(10):
        owner.feed(pack_frame(DATA, 0, 1, bytes(16_384)))
    assert len(owner.receivers[1].data) == 163_840


def test_data_beyond_the_connection_s_window_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = connected()
    owner.feed(request(1))
    owner.connection.open_window(owner.streams[1], 1 << 22)
    monkeypatch.setattr(http2_connection, "PROXY_WINDOW_BYTES", 1 << 40)  # so that no credit is given back
    frame = pack_frame(DATA, 0, 1, bytes(16_384))
    for _ in range(PROXY_WINDOW_BYTES // 16_384):
        owner.feed(frame)
    assert failure(owner, frame) == FLOW_CONTROL_ERROR


@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_a_request_in_pieces(cut: int) -> None:
    owner = RecordingOwner()
    data = HELLO + request(1) + pack_frame(DATA, 0, 1, b"first") + pack_frame(DATA, END_STREAM, 1, b" last")
    for at in range(0, len(data), cut):
        owner.feed(data[at : at + cut])
    assert owner.requests == {1: REQUEST}
    assert owner.receivers[1].data == b"first last"
    assert owner.receivers[1].ended


def test_a_block_in_pieces() -> None:
    owner = connected()
    owner.feed(pack_frame(HEADERS, END_STREAM, 1, BLOCK[:5]))
    assert owner.connection.partial_since
    owner.time = 5.0
    owner.feed(pack_frame(CONTINUATION, 0, 1, BLOCK[5:9]))
    assert owner.connection.partial_since == 1.0, "an attacker gains no time with a frame"
    owner.feed(pack_frame(CONTINUATION, END_HEADERS, 1, BLOCK[9:]))
    assert owner.requests == {1: REQUEST}
    assert not owner.connection.partial_since


def test_the_time_of_an_incomplete_frame_begins_with_it() -> None:
    owner = connected()
    frame = pack_frame(PING, 0, 0, bytes(8))
    owner.feed(frame[:5])
    owner.time = 2.0
    owner.feed(frame[5:8])
    assert owner.connection.partial_since == 1.0
    owner.feed(frame[8:] + frame[:3])
    assert owner.connection.partial_since == 2.0
    owner.feed(frame[3:])
    assert owner.connection.partial_since == 0.0


def test_streams_beyond_the_limit_are_refused() -> None:
    owner = connected()
    owner.feed(b"".join(request(1 + 2 * number) for number in range(MAX_PROXY_STREAMS)))
    extra = 1 + 2 * MAX_PROXY_STREAMS
    assert owner.resets(owner.feed(request(extra))) == {extra: REFUSED_STREAM}
    assert extra not in owner.requests
    owner.feed(pack_frame(RST_STREAM, 0, 1, CANCEL.to_bytes(4, "big")))
    owner.feed(request(extra + 2))
    assert extra + 2 in owner.requests


def test_after_goaway_no_stream_begins() -> None:
    owner = connected()
    owner.feed(request(1))
    owner.connection.announce_end()
    first, ping = owner.output()
    assert struct.unpack(">LL", first.payload) == (MAX_STREAM_ID, NO_ERROR)
    owner.feed(request(3))
    assert 3 in owner.requests, "it was on its way"
    (second,) = owner.feed(pack_frame(PING, ACK, 0, ping.payload))
    assert struct.unpack(">LL", second.payload) == (3, NO_ERROR)
    owner.feed(request(5) + pack_frame(DATA, END_STREAM, 5, b"x"))
    assert 5 not in owner.requests
    assert not owner.connection.is_drained()
    for stream in (1, 3):
        owner.connection.end(owner.streams[stream], TAIL)
    assert owner.connection.is_drained()


# --- mistakes --------------------------------------------------------------------------------------------------------

SETTINGS_OF = {name: struct.pack(">HL", *pair) for name, pair in {"push": (2, 2), "frame": (5, 100)}.items()}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (pack_frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (pack_frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        (pack_frame(DATA, 8, 1, b""), PROTOCOL_ERROR),
        (pack_frame(HEADERS, END_HEADERS, 2, BLOCK), PROTOCOL_ERROR),
        (pack_frame(HEADERS, END_HEADERS, 1, b"\xff\xff"), COMPRESSION_ERROR),
        (pack_frame(HEADERS, END_HEADERS | 8, 1, b"\xff" + BLOCK), PROTOCOL_ERROR),
        (pack_frame(HEADERS, END_HEADERS | 32, 1, b"abc"), FRAME_SIZE_ERROR),
        (pack_frame(HEADERS, 0, 1, BLOCK) + pack_frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
        (pack_frame(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL_ERROR),
        (pack_frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
        (pack_frame(SETTINGS, 0, 0, b"12345"), FRAME_SIZE_ERROR),
        (pack_frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
        (pack_frame(SETTINGS, 0, 0, SETTINGS_OF["push"]), PROTOCOL_ERROR),
        (pack_frame(SETTINGS, 0, 0, SETTINGS_OF["frame"]), PROTOCOL_ERROR),
        (pack_settings({INITIAL_WINDOW_SIZE: 1 << 31}), FLOW_CONTROL_ERROR),
        (pack_frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
        (pack_frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
        (pack_frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
        (pack_frame(5, END_HEADERS, 1, bytes(4) + BLOCK), PROTOCOL_ERROR),
        (pack_frame(RST_STREAM, 0, 1, bytes(4)), PROTOCOL_ERROR),
        (pack_frame(RST_STREAM, 0, 0, bytes(4)), PROTOCOL_ERROR),
        (pack_window_update(0, 0), PROTOCOL_ERROR),
        (pack_window_update(1, 5), PROTOCOL_ERROR),
        (pack_window_update(0, (1 << 31) - 1), FLOW_CONTROL_ERROR),
        (pack_frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
        (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", FRAME_SIZE_ERROR),
    ],
)
def test_mistakes_that_end_the_connection(data: bytes, code: int) -> None:
    assert failure(connected(), data) == code


def test_a_connection_that_failed_takes_nothing() -> None:
    owner = connected()
    owner.feed(request(1))
    owner.feed(pack_window_update(0, 0))
    assert owner.receivers[1].reset
    assert owner.feed(request(3)) == []
    owner.connection.answer(owner.streams[1], HEAD, b"late", TAIL)
    assert owner.output() == []


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01"])
def test_not_the_preface(first: bytes) -> None:
    assert failure(RecordingOwner(), first) == PROTOCOL_ERROR


def test_the_first_frame_must_be_settings() -> None:
    assert failure(RecordingOwner(), HELLO[:24] + pack_frame(PING, 0, 0, bytes(8))) == PROTOCOL_ERROR


def test_mistakes_that_end_a_stream() -> None:
    owner = connected()
    owner.feed(b"".join(request(stream) for stream in (1, 3, 5)))
    frames = owner.feed(pack_window_update(1, 0) + pack_window_update(3, (1 << 31) - 1))
    assert owner.resets(frames) == {1: PROTOCOL_ERROR, 3: FLOW_CONTROL_ERROR}
    assert owner.resets(owner.feed(request(5))) == {5: PROTOCOL_ERROR}, "trailers that do not end"
    assert owner.connection.failed is None


@pytest.mark.parametrize("data", [pack_frame(DATA, 0, 1, b"x"), request(1)])
def test_frames_after_the_end_of_a_request(data: bytes) -> None:
    owner = connected()
    owner.feed(request(1, end=True))
    assert failure(owner, data) == STREAM_CLOSED


# --- memory -----------------------------------------------------------------------------------------------------------


def test_what_a_client_does_not_read_is_bounded() -> None:
    """The connection that holds the most is closed, even if it is not the one that exceeds the bound."""
    held = HeldBytes(limit=1_000_000)
    greedy, modest = connected(held), connected(held)
    for owner, size in ((greedy, 900_000), (modest, 90_000), (modest, 90_000)):
        number = 1 + 2 * len(owner.streams)
        owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 0}) + request(number, end=True))
        owner.connection.answer(owner.streams[number], HEAD, bytes(size), TAIL)
    assert greedy.expelled
    assert not modest.expelled
    assert held.held == modest.connection.share.held == 180_000


def test_the_greeting_is_what_h2_expects() -> None:
    owner = RecordingOwner()
    frames = split_frames(owner.connection.take_output())
    assert frames[0].kind == SETTINGS
    assert dict(struct.iter_unpack(">HL", frames[0].payload)) == {3: MAX_PROXY_STREAMS, 6: MAX_HEADER_LIST_BYTES}
    assert frames[1].payload == (PROXY_WINDOW_BYTES - DEFAULT_WINDOW_BYTES).to_bytes(4, "big")
