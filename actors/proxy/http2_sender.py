"""What a server sends on an HTTP/2 connection: answers within the client's windows, in turn (RFC 9113, 5.2 and 6.9).

Nothing here does I/O: bytes gather in ``out`` until the owner takes them. An answer that fits into the windows and into
``PROXY_SEND_BYTES`` goes there at once. Anything else waits in its stream, and all streams that may send take turns, a
frame each, so that a long answer does not hold up short ones. While the owner says that its socket takes no more
(``paused``), all data waits. Unsent bytes are counted in the connection's share.

Frames without data (headers, acknowledgements, resets) go out at once. What bounds those is that an owner whose socket
takes no more does not read either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from ...limits import MAX_PROXY_STREAMS, PROXY_SEND_BYTES, PROXY_STREAM_SEND_BYTES, PROXY_STREAM_WINDOW_BYTES
from .held_bytes import ByteShare
from .http2_frames import (
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    NO_ERROR,
    RST_STREAM,
    pack_frame,
    pack_header_block,
)

_NO_DYNAMIC_TABLE = b"\x20"
"""A size update to 0: how an encoder answers a smaller table (RFC 7541, 4.2)."""
_pack = FRAME_HEADER.pack


class StreamReceiver(Protocol):
    """Takes what comes on one stream."""

    def receive_data(self, data: bytes, ended: bool) -> None:
        """A part of the request, perhaps empty; ``ended`` with the last one."""

    def receive_reset(self) -> None:
        """The stream or the connection is gone: nothing more comes, and nothing can be sent."""

    def continue_sending(self) -> None:
        """Half of what waited, or more, has been sent."""


class _Nobody:
    """Receives nothing: of a stream that is closed, so that the stream and its call do not keep each other."""

    def receive_data(self, data: bytes, ended: bool) -> None:
        """Nothing comes."""

    def receive_reset(self) -> None:
        """It is known."""

    def continue_sending(self) -> None:
        """Nothing is sent."""


_NOBODY = _Nobody()


class Stream:
    """One request and its answer.

    Attributes:
        receiver: takes the request's data.
        ended: the client has sent all.
        closed: nothing more goes either way.
        answered: something was sent.
        window: bytes that the client takes.
        credit: bytes that the client may send.
        unsent: bytes that wait.
        queue: with how many bytes each piece counts as held: as long as a part of it waits, all of it is in memory.
    """

    __slots__ = ("answered", "closed", "credit", "ended", "id", "queue", "receiver", "trailers", "unsent", "window")

    def __init__(self, stream_id: int, window: int) -> None:
        self.id = stream_id
        self.window = window
        self.credit = PROXY_STREAM_WINDOW_BYTES
        self.ended = False
        self.closed = False
        self.answered = False
        self.unsent = 0
        self.queue: deque[tuple[memoryview, int]] | None = None
        self.trailers: bytes | None = None
        self.receiver: StreamReceiver = _NOBODY


class Http2Sender:
    """See the module.

    Args:
        share: where unsent bytes are counted.
        wake: called when there is something in ``out`` that the owner does not know of.
    """

    def __init__(self, share: ByteShare, wake: Callable[[], None]) -> None:
        self.share = share
        self.out: list[bytes] = []
        self.streams: dict[int, Stream] = {}
        """Those that are not closed."""
        self.paused = False
        self.frames_sent = 0
        """Frames with data, roughly: what a client may answer with window updates."""
        self._wake = wake
        self.awake = False
        """The owner knows that there may be something in ``out``, and takes it soon."""
        self._out_bytes = 0
        self._window = DEFAULT_WINDOW_BYTES
        self._stream_window = DEFAULT_WINDOW_BYTES
        self._frame_bytes = DEFAULT_FRAME_BYTES
        self._block_prefix = b""
        self._ready: dict[int, Stream] = {}
        """Streams with data or trailers that wait for something else than their own window, in the order of turns."""
        self._closed_early: dict[int, None] = {}
        """Streams that were closed before the client had ended them: frames on them are not mistakes."""

    def take_output(self) -> bytes:
        """What is to be written to the socket now, and no longer kept here."""
        if not self.out and not self._ready:
            self.awake = False
            return b""
        self.awake = True
        if self._ready and not self.paused:
            self._take_turns()
        data = b"".join(self.out)
        self.out.clear()
        self._out_bytes = 0
        self.awake = False
        return data

    def answer(self, stream: Stream, head: bytes, data: bytes, trailers: bytes) -> None:
        """A whole answer: header block, data, and the header block of the trailers."""
        size = len(data)
        if (
            size > self._frame_bytes
            or size > stream.window
            or size > self._window
            or self.paused
            or self._out_bytes > PROXY_SEND_BYTES
            or self._block_prefix
            or stream.closed
            or stream.answered
        ):
            self.send_head(stream, head)
            self.send_data(stream, data)
            self.end(stream, trailers)
            return
        self._window -= size
        self._out_bytes += size
        self.frames_sent += 1
        stream_id = stream.id
        self._put(
            b"".join(
                (
                    _pack(0, len(head), HEADERS, END_HEADERS, stream_id),
                    head,
                    _pack(size >> 8, size & 0xFF, DATA, 0, stream_id),
                    data,
                    _pack(0, len(trailers), HEADERS, END_HEADERS | END_STREAM, stream_id),
                    trailers,
                )
            )
        )
        self._close_answered(stream)

    def send_head(self, stream: Stream, block: bytes) -> None:
        """The header block that begins an answer."""
        if not stream.closed:
            stream.answered = True
            self._put(pack_header_block(stream.id, self._prefixed(block), end_stream=False))

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Data of an answer; ``stream.unsent`` says afterwards how much waits."""
        size = len(data)
        if stream.closed or not size:
            return
        if (
            not stream.unsent
            and size <= min(self._frame_bytes, stream.window, self._window)
            and not self.paused
            and self._out_bytes <= PROXY_SEND_BYTES
        ):
            self._window -= size
            stream.window -= size
            self._out_bytes += size
            self.frames_sent += 1
            self._put(_pack(size >> 8, size & 0xFF, DATA, 0, stream.id) + data)
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append((memoryview(data), size))
        stream.unsent += size
        self.share.add(size)
        self._get_in_line(stream)

    def end(self, stream: Stream, trailers: bytes) -> None:
        """The end of an answer, once its data has been sent: a header block, or only the mark if it is empty."""
        if stream.closed or stream.trailers is not None:
            return
        stream.trailers = trailers
        if not stream.unsent:
            self._send_end(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream at once; what waits is dropped. The receiver is not told."""
        if not stream.closed:
            self._put(pack_frame(RST_STREAM, 0, stream.id, code.to_bytes(4, "big")))
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """A stream is closed: nothing of it is kept, except its number if the client may not know yet."""
        if stream.queue:
            self.share.add(-sum(held for _, held in stream.queue))
            stream.unsent = 0
            stream.queue = None
        if not stream.ended:
            self._closed_early[stream.id] = None
            if len(self._closed_early) > MAX_PROXY_STREAMS:
                del self._closed_early[next(iter(self._closed_early))]
        stream.closed = True
        stream.receiver = _NOBODY
        self.streams.pop(stream.id, None)
        self._ready.pop(stream.id, None)

    def _put(self, frame: bytes) -> None:
        self.out.append(frame)
        if not self.awake:
            self.awake = True
            self._wake()

    def _prefixed(self, block: bytes) -> bytes:
        prefix, self._block_prefix = self._block_prefix, b""
        return prefix + block

    def _shrink_table(self) -> None:
        """The client wants a smaller dynamic table: the next header block says that it is not used at all."""
        self._block_prefix = _NO_DYNAMIC_TABLE

    def _get_in_line(self, stream: Stream) -> None:
        """A stream with something to send takes its turn, unless its own window is closed, or has closed meanwhile:
        a client may take back what it gave (RFC 9113, 6.9.2)."""
        if stream.window <= 0:
            self._ready.pop(stream.id, None)
        elif stream.id not in self._ready:
            self._ready[stream.id] = stream
            if not self.awake and not self.paused and self._window > 0:
                self.awake = True
                self._wake()

    def _take_turns(self) -> None:
        """Fill ``out`` from the streams that wait, a frame each in turn, as far as windows and bounds allow."""
        ready = self._ready
        while ready and self._window > 0 and self._out_bytes <= PROXY_SEND_BYTES:
            stream = ready.pop(next(iter(ready)))
            self._send_frame(stream)
            if not stream.unsent:
                if stream.trailers is not None:
                    self._send_end(stream)
            elif stream.window > 0:
                ready[stream.id] = stream

    def _send_frame(self, stream: Stream) -> None:
        """One frame of what waits in a stream whose window is open."""
        queue = stream.queue
        assert queue
        room = min(self._frame_bytes, stream.window, self._window)
        assert room > 0
        piece, held = queue.popleft()
        if len(piece) > room:
            queue.appendleft((piece[room:], held))
            piece = piece[:room]
        else:
            self.share.add(-held)
        size = len(piece)
        self.out.append(_pack(size >> 8, size & 0xFF, DATA, 0, stream.id) + piece)
        self.frames_sent += 1
        self._out_bytes += size
        self._window -= size
        stream.window -= size
        before = stream.unsent
        stream.unsent = before - size
        if stream.unsent <= PROXY_STREAM_SEND_BYTES // 2 < before or not stream.unsent:
            stream.receiver.continue_sending()

    def _send_end(self, stream: Stream) -> None:
        if stream.trailers:
            self._put(pack_header_block(stream.id, self._prefixed(stream.trailers), end_stream=True))
        else:
            self._put(pack_frame(DATA, END_STREAM, stream.id))
        self._close_answered(stream)

    def _close_answered(self, stream: Stream) -> None:
        """All is sent. If the client still wants to send, it is told not to (RFC 9113, 8.1)."""
        if not stream.ended:
            self._put(pack_frame(RST_STREAM, 0, stream.id, NO_ERROR.to_bytes(4, "big")))
        self.forget(stream)
