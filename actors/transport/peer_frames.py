"""Frames between members: what they hold, how they are encoded, and how they wait for the loop.

A frame travels in an actor call, in the result of one, or on a lane. The network may lose, repeat and reorder frames.
"""

from __future__ import annotations

import threading
import zlib
from typing import Annotated

import msgspec

from ...raft.messages import ClusterId, MemberId, Message, RaftNumber
from ...schema.frames import Traceparent


class BarePeerFrame(msgspec.Struct, frozen=True, array_like=True):
    """What travels together: messages from one sender to one receiver. Most frames hold no more than this."""

    cluster: ClusterId
    sender: MemberId
    to: MemberId
    epoch: RaftNumber
    """Grows with every start of the sender's process. It orders frames of one turn; nothing else depends on it."""
    sequence: RaftNumber
    """Grows with every frame from this sender to this receiver, within an epoch."""
    messages: tuple[Message, ...]


class EntryTrace(msgspec.Struct, frozen=True, array_like=True):
    """A sampled entry that a frame carries."""

    index: RaftNumber
    traceparent: Traceparent
    """The leader's span."""


class PeerFrame(BarePeerFrame, frozen=True, array_like=True):
    """A frame with what few carry, at its end. A receiver of an older version skips it."""

    wall: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    """The sender's clock when it made the frame, in seconds since 1970; 0: not said (see ``peer_clocks``)."""
    traces: tuple[EntryTrace, ...] = ()
    """Which of the entries are sampled."""


class ReplySlot:
    """The thread that carries a peer's actor call, which waits for the frame to answer with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._answer = b""
        self._open = True

    def fill(self, answer: bytes) -> bool:
        """Answer; False if the thread no longer waits, and the answer has to take another route."""
        with self._lock:
            if not self._open:
                return False
            self._open = False
            self._answer = answer
        self._filled.set()
        return True

    def wait(self, seconds: float) -> bytes:
        """The answer, empty if there is none in time."""
        if not self._filled.wait(seconds):
            with self._lock:
                self._open = False
        return self._answer


class ReceivedFrame(msgspec.Struct, frozen=True):
    """A frame that waits for the loop, its size in bytes, and the slot for its answer if it came by actor call."""

    frame: PeerFrame
    size: int
    slot: ReplySlot | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PeerFrame).decode
_CHECKSUM_BYTES = 4


def encode_frame(frame: BarePeerFrame) -> bytes:
    """A frame as it travels: its checksum, then the frame.

    The network has checksums of its own. But an entry with one bit flipped on its way to one member would be committed
    there as it is, and that member's state would differ from then on.
    """
    data = _encode(frame)
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big") + data


def decode_frame(data: bytes) -> PeerFrame | None:
    """The frame; ``None`` if this is not one, or damaged, or if a message contradicts the sender or receiver."""
    body = memoryview(data)[_CHECKSUM_BYTES:]
    if zlib.crc32(body) != int.from_bytes(data[:_CHECKSUM_BYTES], "big"):
        return None
    try:
        frame = _decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    sender, to = frame.sender, frame.to
    for message in frame.messages:
        if message.sender != sender or message.to != to:
            return None
    return frame
