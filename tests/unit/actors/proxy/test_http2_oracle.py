"""The HTTP/2 connection against the library h2: arbitrary frames in arbitrary cuts, and whole dialogues.

With arbitrary frames both play the server. They must take the same requests and data from them, acknowledge the same,
and object to the same frames; ``STRICTER`` and the comments in ``check_objections`` say where they may differ. In the
dialogues h2 is the client, which objects to any answer that breaks a rule or exceeds a window.
"""

from __future__ import annotations

import struct

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import hpack
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab.http2.wire import Frame, RecordingOwner, split_frames
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW_BYTES,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FIELDS,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    pack_frame,
)
from raykeeper.limits import MAX_HEADER_LIST_BYTES, MAX_PROXY_STREAMS, PROXY_WINDOW_BYTES

SERVER = h2.config.H2Configuration(client_side=False, header_encoding=None)
CLIENT = h2.config.H2Configuration(client_side=True, header_encoding=None)

# --- arbitrary frames ------------------------------------------------------------------------------------------------

STREAMS = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 2, 0, 9])
FIELDS = st.sampled_from(
    [
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"x")],
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/D"), (b":authority", b"x"), (b"y", b"z" * 99)],
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x"), (b"te", b"trailers")],
    ]
)
BIG = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/E"), (b":authority", b"x")]
TRAILERS = [(b"checksum", b"1")]


@st.composite
def request_frames(draw: st.DrawFn) -> tuple[int, str, object]:
    return draw(STREAMS), "request", (draw(FIELDS), draw(st.integers(0, 63)), draw(st.integers(1, 4)))


@st.composite
def raw_frames(draw: st.DrawFn) -> tuple[int, str, object]:
    """Frames other than HEADERS; most are well-formed."""
    stream = draw(STREAMS)
    kind = draw(st.sampled_from([DATA] * 6 + [WINDOW_UPDATE, RST_STREAM, PING, SETTINGS, PRIORITY, GOAWAY, 11]))
    if kind == DATA:
        size = draw(st.sampled_from([0, 1, 5, 100, 16_000, 16_384]))
        if draw(st.integers(0, 5)) == 0:
            padding = draw(st.sampled_from([0, 1, 200, 255]))
            body = bytes([padding]) + b"d" * min(size, 16_000) + bytes(draw(st.sampled_from([padding, padding, 0])))
            return stream, "raw", pack_frame(DATA, PADDED | draw(st.integers(0, 1)), stream, body)
        return stream, "raw", pack_frame(DATA, draw(st.integers(0, 1)), stream, b"d" * size)
    if kind == WINDOW_UPDATE:
        credit = draw(st.sampled_from([0, 1, 1000, (1 << 31) - 1]))
        payload = credit.to_bytes(4, "big")
    elif kind == RST_STREAM:
        payload = bytes([0, 0, 0, 8])
    elif kind == PING:
        payload = draw(st.binary(min_size=8, max_size=8))
    elif kind == SETTINGS:
        names = st.sampled_from([1, 2, 3, 4, 5, 6, 99])
        values = st.sampled_from([0, 1, 100, 16_384, 65_535, (1 << 24) - 1, 1 << 24, 1 << 31])
        pairs = draw(st.lists(st.tuples(names, values), max_size=3, unique_by=lambda pair: pair[0]))
        payload = b"".join(struct.pack(">HL", name, value) for name, value in pairs)
    elif kind == PRIORITY:
        payload = bytes(4) + b"\x10"
    elif kind == GOAWAY:
        payload = bytes(8)
    else:
        payload = b"extension"
    flags = 0
    if kind in (SETTINGS, PING, GOAWAY) and draw(st.integers(0, 9)):
        stream = 0
    if kind == PING and draw(st.integers(0, 3)) == 0:
        flags = ACK
    if draw(st.integers(0, 19)) == 0:
        payload = payload[:-1]
    return stream, "raw", pack_frame(kind, flags, stream, payload)


@st.composite
def mistakes(draw: st.DrawFn) -> tuple[int, str, object]:
    """What no client sends."""
    stream = draw(STREAMS)
    which = draw(st.integers(0, 4))
    if which == 0:
        return stream, "raw", pack_frame(CONTINUATION, END_HEADERS, stream, b"\x82")
    if which == 1:
        return stream, "raw", pack_frame(PUSH_PROMISE, END_HEADERS, stream, bytes(4) + b"\x82")
    if which == 2:
        return stream, "raw", pack_frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\xff\xff\xff\xff\xff\xff")
    if which == 3:
        return stream, "raw", pack_frame(DATA, 0, stream, bytes(16_385))
    return stream, "raw", pack_frame(HEADERS, PADDED | END_HEADERS, stream, b"\xff\x82")


OPENING = st.sampled_from([[], [1], [1, 3], [1, 3, 5]])
"""Streams that a plan begins with, so that most frames after them are on open ones."""
PLANS = st.tuples(
    OPENING.map(lambda streams: [(stream, "request", (BIG, 0, 1)) for stream in streams]),
    st.lists(st.one_of(request_frames(), raw_frames(), raw_frames(), raw_frames(), mistakes()), max_size=25),
).map(lambda parts: parts[0] + parts[1])


def encode_plan(plan: list[tuple[int, str, object]]) -> list[bytes]:
    """The frames of a plan, whole header blocks in one piece."""
    encoder = hpack.Encoder()
    pieces, opened = [], set()
    for stream, kind, what in plan:
        if kind == "raw":
            assert isinstance(what, bytes)
            pieces.append(what)
            continue
        assert isinstance(what, tuple)
        fields, choices, parts = what
        if stream in opened and choices & 32:
            fields = TRAILERS
        opened.add(stream)
        block = encoder.encode(fields)
        size = -(-len(block) // parts) or 1
        cuts = [block[at : at + size] for at in range(0, len(block), size)]
        flags, first = (END_STREAM if choices & 1 else 0), cuts[0]
        if choices & 2:
            flags |= PRIORITY_FIELDS
            first = bytes(4) + b"\x05" + first
        if choices & 4:
            flags |= PADDED
            first = b"\x03" + first + bytes(3)
        rest = cuts[1:]
        frames = [pack_frame(HEADERS, flags | (0 if rest else END_HEADERS), stream, first)]
        frames += [pack_frame(CONTINUATION, 0, stream, each) for each in rest[:-1]]
        frames += [pack_frame(CONTINUATION, END_HEADERS, stream, each) for each in rest[-1:]]
        pieces.append(b"".join(frames))
    return pieces


class Oracle:
    """h2 as the server, and what it has seen."""

    def __init__(self) -> None:
        self.connection = h2.connection.H2Connection(SERVER)
        self.connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_PROXY_STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
            },
        )
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(PROXY_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self.connection.data_to_send()
        self.requests: dict[int, object] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()

    def feed(self, data: bytes) -> tuple[Exception | None, list[Frame]]:
        """What it objects to, and what it answers."""
        failure: Exception | None = None
        try:
            for event in self.connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.requests[event.stream_id] = tuple(event.headers)
                    self.data[event.stream_id] = b""
                elif isinstance(event, h2.events.DataReceived):
                    self.data[event.stream_id] += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    self.ended.add(event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    self.reset.add(event.stream_id)
        except (h2.exceptions.ProtocolError, hpack.HPACKError, IndexError, KeyError) as error:
            failure = error
        return failure, split_frames(self.connection.data_to_send())


def acknowledgements(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame.kind in (PING, SETTINGS) and frame.flags & ACK]


def compare(ours: RecordingOwner, oracle: Oracle) -> None:
    """Both have taken the same from the same frames."""
    assert ours.requests == oracle.requests
    for stream, receiver in ours.receivers.items():
        assert receiver.data == oracle.data[stream]
        assert receiver.ended == (stream in oracle.ended)
        assert receiver.reset == (stream in oracle.reset)


@settings(max_examples=300)
@given(PLANS, st.data())
def test_arbitrary_frames_in_arbitrary_cuts(plan: list[tuple[int, str, object]], data: st.DataObject) -> None:
    ours, oracle = RecordingOwner(), Oracle()
    hello = PREFACE + pack_frame(SETTINGS, 0, 0)
    ours.feed(hello)
    oracle.feed(hello)
    sent, answers = hello, []
    for piece in encode_plan(plan):
        sent += piece
        frames = ours.feed(piece)
        answers += frames
        failure, theirs = oracle.feed(piece)
        resets = ours.resets(frames)
        if ours.connection.failed or failure is not None or resets or any(each.kind == RST_STREAM for each in theirs):
            check_objections(ours, failure, resets, theirs, piece)
            break
        compare(ours, oracle)
        assert acknowledgements(frames) == acknowledgements(theirs)

    again = RecordingOwner()
    first = again.output()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    frames = []
    for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        frames += again.feed(sent[begin:end])
    assert first
    assert [frame for frame in frames if frame.kind != SETTINGS or frame.flags] == [
        frame for frame in [Frame(SETTINGS, ACK, 0, b""), *answers] if frame.kind != SETTINGS or frame.flags
    ]
    assert again.requests == ours.requests
    assert {stream: vars(each) for stream, each in again.receivers.items()} == {
        stream: vars(each) for stream, each in ours.receivers.items()
    }


STRICTER = {
    "RST_STREAM on a stream that was not opened": "RFC 9113, 6.4: a connection error; h2 ignores it",
}
"""Texts of our objections to what h2 tolerates, and why."""
LOOSER = {
    "Received pseudo-header in trailer": "trailers of requests mean nothing to gRPC, so nothing reads them",
    "in state ConnectionState.CLOSED": "h2 takes in nothing after GOAWAY; its sender may still want its answers (6.8)",
    "Received frame with non-compliant data": "WINDOW_UPDATE of nothing on a closed stream, which changes nothing",
}
"""Parts of h2's objections to what we tolerate, and why."""


def check_objections(
    ours: RecordingOwner, failure: Exception | None, resets: dict[int, int], theirs: list[Frame], piece: bytes
) -> None:
    """Where one objects to a piece, the other does. The price may differ: h2 ends the connection for some mistakes that
    the RFC prices at a stream."""
    we_object = bool(ours.connection.failed) or bool(resets)
    it_objects = failure is not None or any(frame.kind == RST_STREAM for frame in theirs)
    if we_object == it_objects:
        return
    if we_object:
        assert ours.connection.failed, f"{piece[:30]!r}: {resets}"
        assert ours.connection.failed.text in STRICTER, piece[:30]
    else:
        text = f"{type(failure).__name__}: {failure}" if failure is not None else "RST_STREAM"
        assert any(known in text for known in LOOSER), f"{piece[:30]!r}: {text} {theirs}"


# --- dialogues -------------------------------------------------------------------------------------------------------


class Dialogue:
    """h2 as the client of one connection, and a server that answers each request with as many bytes as it asks for."""

    def __init__(self, window: int) -> None:
        self.client = h2.connection.H2Connection(CLIENT)
        self.client.initiate_connection()
        self.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.server = RecordingOwner()
        self.answered: set[int] = set()
        self.expected: dict[int, int] = {}
        self.got: dict[int, int] = {}
        self.ended: set[int] = set()
        self.unread: dict[int, int] = {}
        """Bytes that the client has not given credit for, by stream."""

    def ask(self, size: int, upload: int) -> None:
        stream = self.client.get_next_available_stream_id()
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/%d" % size), (b":authority", b"x")]
        self.client.send_headers(stream, fields)
        upload = min(upload, self.client.local_flow_control_window(stream), self.client.max_outbound_frame_size)
        self.client.send_data(stream, b"u" * upload, end_stream=True)
        self.expected[stream], self.got[stream], self.unread[stream] = size, 0, 0

    def exchange(self, cut: int) -> None:
        """Both read what the other has sent; the server in pieces of that size."""
        data = self.client.data_to_send()
        for at in range(0, len(data), cut):
            self.server.connection.receive(data[at : at + cut], 1.0)
            self._read()
        for stream_id, receiver in list(self.server.receivers.items()):
            if receiver.ended and stream_id not in self.answered:
                self.answered.add(stream_id)
                self._answer(stream_id)
        self._read()
        assert self.server.connection.failed is None

    def _answer(self, stream_id: int) -> None:
        connection, stream = self.server.connection, self.server.streams[stream_id]
        size = self.expected[stream_id]
        head = encode_block(((b":status", b"200"),))
        tail = encode_block(((b"grpc-status", b"0"),))
        if size % 2:
            connection.answer(stream, head, b"a" * size, tail)
            return
        connection.send_head(stream, head)
        for at in range(0, size, 10_000):
            connection.send_data(stream, b"a" * min(10_000, size - at))
        connection.end(stream, tail)

    def _read(self) -> None:
        while data := self.server.connection.take_output():
            for event in self.client.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.got[event.stream_id] += len(event.data)
                    self.unread[event.stream_id] += event.flow_controlled_length
                elif isinstance(event, h2.events.StreamEnded):
                    self.ended.add(event.stream_id)
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)

    def give_credit(self, stream: int) -> None:
        if self.unread[stream]:
            self.client.acknowledge_received_data(self.unread[stream], stream)
            self.unread[stream] = 0


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.sampled_from([1, 2, 99, 9_999, 9_999, 10_000, 16_385, 70_001, 300_000]),
            st.integers(0, 9000),
        ),
        st.tuples(st.just("window"), st.sampled_from([0, 1, 100, 65_535, 1 << 20]), st.just(0)),
        st.tuples(st.just("credit"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pause"), st.integers(0, 1), st.just(0)),
    ),
    max_size=20,
)


SMALL_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([1, 2, 99, 150]), st.integers(0, 9)),
        st.tuples(st.just("window"), st.sampled_from([0, 1, 2, 100]), st.just(0)),
        st.tuples(st.just("credit"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("pause"), st.integers(0, 1), st.just(0)),
    ),
    max_size=20,
)
"""Answers about as large as the windows, so that windows open, close and shrink below nothing while answers wait."""


@settings(max_examples=150)
@example(1, [("ask", 2, 0), ("pause", 1, 0), ("window", 100, 0), ("window", 0, 0), ("pause", 0, 0)], 20)
@given(st.sampled_from([0, 1, 10_000, 65_535, 1 << 20]), st.one_of(STEPS, SMALL_STEPS), st.integers(1, 40_000))
def test_whole_dialogues(window: int, steps: list[tuple[str, int, int]], cut: int) -> None:
    """Whatever windows the client gives, and whenever: no answer exceeds them, and all arrive whole in the end."""
    dialogue = Dialogue(window)
    cut = max(cut, 20)
    for what, number, more in steps:
        if what == "ask":
            dialogue.ask(number, more)
        elif what == "window":
            dialogue.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: number})
        elif what == "pause":
            dialogue.server.connection.paused = bool(number)
        else:
            for stream in list(dialogue.unread)[number : number + 1]:
                dialogue.give_credit(stream)
        dialogue.exchange(cut)
    dialogue.server.connection.paused = False
    dialogue.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    for _ in range(100 + 30 * len(steps)):
        if len(dialogue.ended) == len(dialogue.expected):
            break
        for stream in dialogue.unread:
            dialogue.give_credit(stream)
        dialogue.exchange(1 << 20)
    assert dialogue.got == dialogue.expected
    assert dialogue.ended == set(dialogue.expected)
    assert dialogue.server.connection.share.held == 0
    assert not dialogue.server.connection.streams
