"""Frames of HTTP/2 as tests write and read them, and an owner of a connection that records what its client asks."""

from __future__ import annotations

import struct
from typing import NamedTuple

from raykeeper.actors.proxy.header_blocks import Fields, encode_block
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http2_connection import Http2Connection
from raykeeper.actors.proxy.http2_frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    pack_frame,
)
from raykeeper.actors.proxy.http2_sender import Stream

HELLO = PREFACE + pack_frame(SETTINGS, 0, 0)
"""What a client says first."""
REQUEST: Fields = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.Test/Echo"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
BLOCK = encode_block(REQUEST)
HEAD = encode_block(((b":status", b"200"),))
TAIL = encode_block(((b"grpc-status", b"0"),))


class Frame(NamedTuple):
    """One frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def split_frames(data: bytes, *, partial: bool = False) -> list[Frame]:
    """All frames of a server's output. They must be whole, unless more is to come."""
    frames = []
    while data:
        if partial and len(data) < 9:
            break
        upper, lower, kind, flags, stream = FRAME_HEADER.unpack_from(data)
        end = 9 + (upper << 8 | lower)
        if partial and len(data) < end:
            break
        assert len(data) >= end, "a frame that ends too soon"
        frames.append(Frame(kind, flags, stream, data[9:end]))
        data = data[end:]
    return frames


class Recorder:
    """Receives what comes on one stream."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False
        self.reset = False
        self.sent = 0
        """Times that there was room again."""

    def receive_data(self, data: bytes, ended: bool) -> None:
        assert not self.ended
        assert not self.reset
        self.data += data
        self.ended = ended

    def receive_reset(self) -> None:
        assert not self.reset
        self.reset = True

    def continue_sending(self) -> None:
        self.sent += 1


class RecordingOwner:
    """The owner of a connection without a socket."""

    def __init__(self, held: HeldBytes | None = None) -> None:
        self.held = held or HeldBytes()
        self.expelled = False
        self.wakes = 0
        self.pongs = 0
        self.requests: dict[int, Fields] = {}
        self.streams: dict[int, Stream] = {}
        self.receivers: dict[int, Recorder] = {}
        self.connection: Http2Connection[Fields] = Http2Connection(self, self.held.open_share(self._expel), self._wake)
        self.time = 1.0

    def understand(self, fields: Fields) -> Fields:
        return fields

    def open_stream(self, stream: Stream, head: Fields) -> None:
        self.requests[stream.id] = head
        self.streams[stream.id] = stream
        receiver = self.receivers[stream.id] = Recorder()
        receiver.ended = stream.ended
        stream.receiver = receiver

    def take_pong(self) -> None:
        self.pongs += 1

    def _expel(self) -> None:
        self.expelled = True

    def _wake(self) -> None:
        self.wakes += 1

    def feed(self, data: bytes) -> list[Frame]:
        """What the connection answers."""
        self.connection.receive(data, self.time)
        return self.output()

    def output(self) -> list[Frame]:
        """All frames that can go out now."""
        frames: list[Frame] = []
        while data := self.connection.take_output():
            frames += split_frames(data)
        return frames

    def resets(self, frames: list[Frame]) -> dict[int, int]:
        """The error codes of the streams that were reset, by stream."""
        return {frame.stream: int.from_bytes(frame.payload, "big") for frame in frames if frame.kind == RST_STREAM}


def connected(held: HeldBytes | None = None) -> RecordingOwner:
    """The owner of a connection whose client has said hello."""
    owner = RecordingOwner(held)
    greeting = owner.feed(HELLO)
    assert [frame.kind for frame in greeting] == [SETTINGS, WINDOW_UPDATE, SETTINGS]
    return owner


def request(stream: int, *, end: bool = False) -> bytes:
    """The head of a call."""
    return pack_frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, BLOCK)


def failure(owner: RecordingOwner, data: bytes) -> int:
    """The code of the GOAWAY that these bytes end the connection with."""
    frames = owner.feed(data)
    assert frames[-1].kind == GOAWAY
    assert owner.connection.failed is not None
    code: int = struct.unpack_from(">LL", frames[-1].payload)[1]
    assert code == owner.connection.failed.code
    return code
