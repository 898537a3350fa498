"""A server's half of an HTTP/2 connection, without I/O (RFC 9113).

The owner hands in what its socket reads (:meth:`Http2Connection.receive`) and writes what :meth:`take_output` gives.
Each request becomes a :class:`~.http2_sender.Stream`, and the owner says who receives its data. A mistake whose price
is the stream is answered with RST_STREAM here. One whose price is the connection is answered with GOAWAY; ``failed`` is
set, all streams end, and nothing more is taken in.

The libraries for gRPC spend 200 to 300 microseconds on a call, and ``h2`` alone 86; this file exists because it is on
the path of each call. ``h2`` is its oracle: tests/unit/actors/proxy/test_http2_oracle.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ...limits import MAX_CONTINUATION_FRAMES, MAX_HEADER_LIST_BYTES, MAX_PROXY_STREAMS, PROXY_WINDOW_BYTES
from .floods import FloodGuard
from .header_blocks import Fields, HeaderDecoder
from .held_bytes import ByteShare
from .http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW_BYTES,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FIELDS,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Http2Error,
    pack_frame,
    pack_goaway,
    pack_settings,
    pack_window_update,
)
from .http2_sender import Http2Sender, Stream

H = TypeVar("H")

GREETING = pack_settings(
    {MAX_CONCURRENT_STREAMS: MAX_PROXY_STREAMS, MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES}
) + pack_window_update(0, PROXY_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
"""What the server says first."""
_DRAIN_PING = b"draining"
_DEFAULT_TABLE_BYTES = 4096
_unpack_header = FRAME_HEADER.unpack_from


class Http2Owner(Protocol[H]):
    """What a connection asks of its owner. Everything is called by the loop's thread, from :meth:`receive`."""

    def understand(self, fields: Fields) -> H:
        """What a request's header fields mean; kept, and given to later streams with the same fields. Never raises."""

    def open_stream(self, stream: Stream, head: H) -> None:
        """A request has begun. Sets ``stream.receiver``, or closes the stream.

        A stream that has ``ended`` brings no data, and its receiver is not called.
        """

    def take_pong(self) -> None:
        """The client has answered a PING of :meth:`Http2Connection.ping`, or the one of a GOAWAY."""


class Http2Connection(Http2Sender, Generic[H]):
    """See the module.

    Args:
        owner: decides what requests mean.
        share: where bytes kept for the client are counted.
        wake: called when there is output that the owner does not know of.
    """

    def __init__(self, owner: Http2Owner[H], share: ByteShare, wake: Callable[[], None]) -> None:
        super().__init__(share, wake)
        self.failed: Http2Error | None = None
        self.partial_since = 0.0
        """Since when a frame or a header block is incomplete, in monotonic seconds; 0 if none is."""
        self._owner = owner
        self._decoder = HeaderDecoder(owner.understand, share)
        self._floods = FloodGuard()
        self._now = 0.0
        self._rest = b""
        self._rest_counted = 0
        self._preface = False
        self._settled = False
        self._last_stream = 0
        self._final_stream = MAX_STREAM_ID
        self._end_announced = False
        self._credit = PROXY_WINDOW_BYTES
        self._taken = 0
        self._block: list[bytes] = []
        self._block_stream = 0
        self._block_ends = False
        self._control: dict[int, Callable[[int, int, bytes], None]] = {
            PRIORITY: self._take_priority,
            RST_STREAM: self._take_reset,
            SETTINGS: self._take_settings,
            PUSH_PROMISE: self._take_push,
            PING: self._take_ping,
            GOAWAY: self._take_goaway,
            WINDOW_UPDATE: self._take_window_update,
            CONTINUATION: self._take_continuation,
        }
        self.out.append(GREETING)

    def receive(self, data: bytes, now: float) -> None:
        """Take in what the socket has read. Output may be waiting afterwards.

        Args:
            now: monotonic seconds.
        """
        if self.failed:
            return
        self.awake = True
        self._now = now
        if self._rest:
            data = self._rest + data
        try:
            at = self._take_frames(data) if self._preface else self._take_preface(data)
        except Http2Error as error:
            self.fail(error)
            return
        self._rest = data[at:]
        if self._rest or self._block or self._rest_counted:
            self._count_rest()
        if self._block_stream:
            self.partial_since = self.partial_since or now
        elif self._rest:
            self.partial_since = now if at or not self.partial_since else self.partial_since
        else:
            self.partial_since = 0.0

    def _count_rest(self) -> None:
        """Count what is kept of a frame or a header block that is not complete."""
        kept = len(self._rest) + sum(map(len, self._block))
        change, self._rest_counted = kept - self._rest_counted, kept
        self.share.add(change)

    def open_window(self, stream: Stream, credit: int) -> None:
        """The client may send ``credit`` bytes more on a stream."""
        if credit > 0 and not stream.ended and not stream.closed:
            stream.credit += credit
            self._put(pack_window_update(stream.id, credit))

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        self._put(pack_frame(PING, 0, 0, bytes(8)))

    def announce_end(self) -> None:
        """Tell the client to open no more streams; those that are on their way are still served (RFC 9113, 6.8)."""
        self._end_announced = True
        self._put(pack_goaway(MAX_STREAM_ID, NO_ERROR))
        self._put(pack_frame(PING, 0, 0, _DRAIN_PING))

    def refuse_streams(self) -> None:
        """... and later, that those which it has opened so far were the last."""
        if self._final_stream == MAX_STREAM_ID:
            self._final_stream = self._last_stream
            self._put(pack_goaway(self._final_stream, NO_ERROR))

    def is_drained(self) -> bool:
        """Whether the client knows that no more streams are served, and those that it had opened are closed."""
        return self._final_stream < MAX_STREAM_ID and not self.streams

    def end_streams(self) -> None:
        """The connection is gone."""
        for stream in list(self.streams.values()):
            receiver = stream.receiver
            self.forget(stream)
            receiver.receive_reset()

    def fail(self, error: Http2Error) -> None:
        """End the connection because of a mistake of the client: GOAWAY is the last thing that it is sent."""
        self.failed = error
        self._put(pack_goaway(self._last_stream, error.code, error.text))
        self._rest, self._block = b"", []
        self.end_streams()

    # --- frames ------------------------------------------------------------------------------------------------------

    def _take_preface(self, data: bytes) -> int:
        if len(data) < len(PREFACE) and PREFACE.startswith(data):
            return 0
        if not data.startswith(PREFACE):
            raise Http2Error(PROTOCOL_ERROR, "not the preface of HTTP/2")
        self._preface = True
        return self._take_frames(data, len(PREFACE))

    def _take_frames(self, data: bytes, at: int = 0) -> int:
        """Take in all whole frames; returns where the first incomplete one begins."""
        end = len(data) - FRAME_HEADER_BYTES
        while at <= end:
            upper, lower, kind, flags, stream_id = _unpack_header(data, at)
            length = upper << 8 | lower
            if length > DEFAULT_FRAME_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            begin = at + FRAME_HEADER_BYTES
            if begin + length > end + FRAME_HEADER_BYTES:
                break
            at = begin + length
            payload = data[begin:at]
            stream_id &= MAX_STREAM_ID
            if self._block_stream and (kind != CONTINUATION or stream_id != self._block_stream):
                raise Http2Error(PROTOCOL_ERROR, "a frame inside a header block")
            if not self._settled and (kind != SETTINGS or flags & ACK):
                raise Http2Error(PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if kind == DATA:
                self._take_data(flags, stream_id, payload)
            elif kind == HEADERS:
                if flags & ~END_STREAM == END_HEADERS:  # as most: a whole block, and nothing else
                    self._take_block(stream_id, payload, flags & END_STREAM > 0)
                else:
                    self._take_headers(flags, stream_id, payload)
            else:
                take = self._control.get(kind)
                if take is not None:
                    take(flags, stream_id, payload)
                else:  # an extension: ignored (5.5)
                    self._count_frame()
        return at

    def _count_frame(self) -> None:
        self._floods.count_frame(self._now, self.frames_sent)

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if size > self._credit:
            raise Http2Error(FLOW_CONTROL_ERROR, "more data than the connection's window")
        if size:
            self._credit -= size
            self._taken += size
            if self._taken >= PROXY_WINDOW_BYTES // 2:
                self._put(pack_window_update(0, self._taken))
                self._credit += self._taken
                self._taken = 0
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended:
            self._take_on_closed(stream_id, "DATA")
            if flags & END_STREAM:
                self._closed_early.pop(stream_id, None)
            return
        if flags & PADDED:
            payload = _unpadded(payload)
        if size > stream.credit:
            self._break(stream, FLOW_CONTROL_ERROR)
            return
        stream.credit -= size
        if size > len(payload):  # the receiver gives credit for what it sees
            self.open_window(stream, size - len(payload))
        if flags & END_STREAM:
            stream.ended = True
            stream.receiver.receive_data(payload, True)
        elif payload:
            stream.receiver.receive_data(payload, False)
        else:
            self._count_frame()

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (PADDED | PRIORITY_FIELDS):
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & PRIORITY_FIELDS:
                if len(payload) < 5:
                    raise Http2Error(FRAME_SIZE_ERROR, "HEADERS without the priority that it announces")
                payload = payload[5:]
        if flags & END_HEADERS:
            self._take_block(stream_id, payload, bool(flags & END_STREAM))
        else:
            if not stream_id & 1:
                raise Http2Error(PROTOCOL_ERROR, "a client's stream has an even number")
            self._block = [payload]
            self._block_stream = stream_id
            self._block_ends = bool(flags & END_STREAM)
            self.partial_since = self._now

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._block_stream:
            raise Http2Error(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block.append(payload)
        if len(self._block) > MAX_CONTINUATION_FRAMES or sum(map(len, self._block)) > MAX_HEADER_LIST_BYTES:
            raise Http2Error(ENHANCE_YOUR_CALM, "a header block that does not end")
        if flags & END_HEADERS:
            block, self._block, self._block_stream = b"".join(self._block), [], 0
            self._take_block(stream_id, block, self._block_ends)

    def _take_block(self, stream_id: int, block: bytes, ends: bool) -> None:
        """A whole header block. It is decoded even if its stream is refused: later ones build on its table."""
        head = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._take_trailers(stream, ends)
            return
        if stream_id <= self._last_stream or not stream_id & 1:
            if stream_id not in self._closed_early:
                raise Http2Error(PROTOCOL_ERROR if not stream_id & 1 else STREAM_CLOSED, "HEADERS on an old stream")
            self._count_frame()
            if ends:
                del self._closed_early[stream_id]
            return
        self._last_stream = stream_id
        if stream_id > self._final_stream:
            self._closed_early[stream_id] = None
            self._count_frame()
            return
        stream = Stream(stream_id, self._stream_window)
        stream.ended = ends
        if len(self.streams) >= MAX_PROXY_STREAMS:
            self.reset(stream, REFUSED_STREAM)
            self._floods.count_reset(self._now, self.frames_sent)
            return
        self.streams[stream_id] = stream
        self._owner.open_stream(stream, head)

    def _take_trailers(self, stream: Stream, ends: bool) -> None:
        """Trailers of a request mean nothing to gRPC; they only end it."""
        if stream.ended:
            raise Http2Error(STREAM_CLOSED, "HEADERS after the end of a request")
        if not ends:
            self._break(stream, PROTOCOL_ERROR)
            return
        stream.ended = True
        stream.receiver.receive_data(b"", True)

    def _break(self, stream: Stream, code: int) -> None:
        """A mistake that ends one stream."""
        receiver = stream.receiver
        self.reset(stream, code)
        self._floods.count_reset(self._now, self.frames_sent)
        receiver.receive_reset()

    def _take_on_closed(self, stream_id: int, what: str) -> None:
        """A frame on a stream that is not open: late if the stream was closed early, a mistake otherwise (5.1)."""
        if stream_id in self._closed_early:
            self._count_frame()
        elif stream_id > self._last_stream or not stream_id & 1:
            raise Http2Error(PROTOCOL_ERROR, f"{what} on a stream that was not opened")
        else:
            raise Http2Error(STREAM_CLOSED, f"{what} on a closed stream")

    def _require_opened(self, stream_id: int, what: str) -> None:
        if not stream_id & 1 or stream_id > self._last_stream:
            raise Http2Error(PROTOCOL_ERROR, f"{what} on a stream that was not opened")

    # --- control frames ----------------------------------------------------------------------------------------------

    def _take_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise Http2Error(PROTOCOL_ERROR, "PRIORITY on the connection")
        if len(payload) != 5:
            raise Http2Error(FRAME_SIZE_ERROR, "PRIORITY of a wrong length")
        self._count_frame()

    def _take_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "RST_STREAM of a wrong length")
        self._require_opened(stream_id, "RST_STREAM")
        self._closed_early.pop(stream_id, None)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._count_frame()
            return
        if not stream.answered:
            self._floods.count_reset(self._now, self.frames_sent)
        stream.ended = True
        receiver = stream.receiver
        self.forget(stream)
        receiver.receive_reset()

    def _take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise Http2Error(FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        self._count_frame()
        if flags & ACK:
            return
        self._settled = True
        for name, value in struct.iter_unpack(">HL", payload):
            self._take_setting(name, value)
        self._put(pack_frame(SETTINGS, ACK, 0))

    def _take_setting(self, name: int, value: int) -> None:
        if name == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW_BYTES:
                raise Http2Error(FLOW_CONTROL_ERROR, "a window that is too large")
            change, self._stream_window = value - self._stream_window, value
            for stream in self.streams.values():
                stream.window += change
                if stream.window > MAX_WINDOW_BYTES:
                    raise Http2Error(FLOW_CONTROL_ERROR, "a window that is too large")
                if stream.unsent:
                    self._get_in_line(stream)
        elif name == MAX_FRAME_SIZE:
            if not DEFAULT_FRAME_BYTES <= value < 1 << 24:
                raise Http2Error(PROTOCOL_ERROR, "a frame size that may not be")
        elif name == ENABLE_PUSH:
            if value > 1:
                raise Http2Error(PROTOCOL_ERROR, "a value that ENABLE_PUSH cannot have")
        elif name == HEADER_TABLE_SIZE and value < _DEFAULT_TABLE_BYTES:
            self._shrink_table()

    def _take_push(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise Http2Error(PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _take_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise Http2Error(FRAME_SIZE_ERROR, "PING of a wrong length")
        self._count_frame()
        if not flags & ACK:
            self._put(pack_frame(PING, ACK, 0, payload))
            return
        if payload == _DRAIN_PING and self._end_announced:  # otherwise the client has made it up
            self.refuse_streams()
        self._owner.take_pong()

    def _take_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """A client that wants to end: it closes the connection when it has its answers."""
        if stream_id:
            raise Http2Error(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise Http2Error(FRAME_SIZE_ERROR, "GOAWAY of a wrong length")
        self._count_frame()

    def _take_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong length")
        self._floods.count_frame(self._now, self.frames_sent)
        credit = int.from_bytes(payload, "big") & MAX_WINDOW_BYTES
        if not stream_id:
            if not credit:
                raise Http2Error(PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            self._window += credit
            if self._window > MAX_WINDOW_BYTES:
                raise Http2Error(FLOW_CONTROL_ERROR, "a window that is too large")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._require_opened(stream_id, "WINDOW_UPDATE")
            return
        if not credit:
            self._break(stream, PROTOCOL_ERROR)
        elif stream.window + credit > MAX_WINDOW_BYTES:
            self._break(stream, FLOW_CONTROL_ERROR)
        else:
            stream.window += credit
            if stream.unsent:
                self._get_in_line(stream)


def _unpadded(payload: bytes) -> bytes:
    """The payload of a padded frame without length and padding (6.1)."""
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
