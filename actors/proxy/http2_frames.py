"""Frames of HTTP/2 (RFC 9113): their kinds, flags, settings and error codes, and how they are packed.

A frame is nine bytes (length, kind, flags, stream) and a payload. The numbers are the RFC's, sections 6, 6.5.2 and 7.
"""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of a client (RFC 9113, 3.4)."""
FRAME_HEADER = struct.Struct(">HBBBL")
"""The upper two bytes of the length, its lowest byte, kind, flags, stream."""
FRAME_HEADER_BYTES = 9
DEFAULT_FRAME_BYTES = 16_384
"""The largest payload that either side may send unless the other allows more; this server does not."""
DEFAULT_WINDOW_BYTES = 65_535
"""Flow-control windows at the start (6.9.2)."""
MAX_WINDOW_BYTES = (1 << 31) - 1
MAX_STREAM_ID = (1 << 31) - 1

DATA = 0
HEADERS = 1
PRIORITY = 2
RST_STREAM = 3
SETTINGS = 4
PUSH_PROMISE = 5
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FIELDS = 0x20

HEADER_TABLE_SIZE = 1
ENABLE_PUSH = 2
MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_SIZE = 5
MAX_HEADER_LIST_SIZE = 6

NO_ERROR = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2
FLOW_CONTROL_ERROR = 3
STREAM_CLOSED = 5
FRAME_SIZE_ERROR = 6
REFUSED_STREAM = 7
CANCEL = 8
COMPRESSION_ERROR = 9
ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """The peer broke a rule whose price is the whole connection (RFC 9113, 5.4.1).

    Attributes:
        code: an error code of HTTP/2.
        text: what happened, for the peer's log and ours.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def pack_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    length = len(payload)
    return FRAME_HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


def pack_settings(settings: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return pack_frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", name, value) for name, value in settings.items()))


def pack_window_update(stream: int, credit: int) -> bytes:
    """A WINDOW_UPDATE frame: ``credit`` more bytes may be sent on a stream, or, for stream 0, on the connection."""
    return pack_frame(WINDOW_UPDATE, 0, stream, credit.to_bytes(4, "big"))


def pack_goaway(last_stream: int, code: int, text: str = "") -> bytes:
    """A GOAWAY frame: streams after ``last_stream`` were not looked at."""
    return pack_frame(GOAWAY, 0, 0, struct.pack(">LL", last_stream, code) + text.encode())


def pack_header_block(stream: int, block: bytes, end_stream: bool, frame_bytes: int = DEFAULT_FRAME_BYTES) -> bytes:
    """A header block as a HEADERS frame, and CONTINUATION frames for what does not fit into ``frame_bytes``."""
    end = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes:
        return pack_frame(HEADERS, END_HEADERS | end, stream, block)
    frames = [pack_frame(HEADERS, end, stream, block[:frame_bytes])]
    for at in range(frame_bytes, len(block), frame_bytes):
        last = END_HEADERS if at + frame_bytes >= len(block) else 0
        frames.append(pack_frame(CONTINUATION, last, stream, block[at : at + frame_bytes]))
    return b"".join(frames)
