"""The seam between a member's loop and whatever carries messages to its peers.

The loop hands in what arrived and gets messages out, hands over messages to send, and says when a turn is over. It does
not know whether a message rides in an actor call, in the answer to one, or in a stream; nor may it be held up: a
transport may lose, repeat and reorder, as a network may, but it never blocks the loop and never invents.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from typing import Protocol

import msgspec

from ..raft.messages import ClusterId, Id, Message, Number


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """What travels: messages of one sender to one receiver that left together."""

    cluster: ClusterId
    sender: Id
    to: Id
    epoch: Number
    """Grows with every start of the sender's process."""
    sequence: Number
    """Grows with every frame from this sender, in this epoch, to this receiver."""
    messages: tuple[Message, ...]


class Slot:
    """A peer that waits for an answer to its frame, on a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._answer = b""
        self._open = True

    def fill(self, answer: bytes) -> bool:
        """Answer; False if nobody waits any more (and the answer has to go another way)."""
        with self._lock:
            if not self._open:
                return False
            self._open = False
            self._answer = answer
        self._filled.set()
        return True

    def wait(self, seconds: float) -> bytes:
        """The answer, or nothing if there is none in time."""
        if not self._filled.wait(seconds):
            with self._lock:
                self._open = False
        return self._answer


class Received(msgspec.Struct, frozen=True):
    """A frame that waits for the loop, its size in bytes, and who waits for an answer to it, if anybody."""

    frame: Frame
    size: int
    slot: Slot | None = None


class Transport(Protocol):
    """What a member's loop wants of whatever carries its messages. All but ``receive`` and ``close`` are the loop's."""

    due: float
    """The clock time by which :meth:`tell` is to be called."""

    def tell(self) -> None:
        """Send what was held back for a moment, because something else might have made it needless."""
        ...

    def receive(self, frame: bytes) -> bytes:
        """Take a frame that a peer brought by an actor call, and return the frame that answers it, or nothing."""
        ...

    def begin(self, received: Sequence[Received]) -> list[Message]:
        """Begin a turn: the messages of these frames, each sender's in the order it sent them."""
        ...

    def send(self, messages: Sequence[Message]) -> None:
        """Send soon. Messages to one peer keep their order as far as the way allows."""
        ...

    def end(self) -> None:
        """End the turn: whoever waits for an answer to a frame of this turn gets it now."""
        ...

    def counters(self) -> dict[str, int]:
        """How many frames were sent, received, and dropped for which reason. Any thread."""
        ...

    def close(self) -> None:
        """Send nothing more. Any thread."""
        ...


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode
_CHECKSUM_BYTES = 4


def encode_frame(frame: Frame) -> bytes:
    """A frame as it travels, behind its checksum.

    What carries frames checks them too, as a rule. But an entry that one flipped bit changes on its way to one member
    would be committed as it is there, and the members' states would part for ever.
    """
    data = _encode(frame)
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big") + data


def decode_frame(data: bytes) -> Frame | None:
    """The frame, or ``None`` if this is none, a damaged one, or one whose messages belie its sender or receiver."""
    body = memoryview(data)[_CHECKSUM_BYTES:]
    if zlib.crc32(body) != int.from_bytes(data[:_CHECKSUM_BYTES], "big"):
        return None
    try:
        frame = _decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if any(message.sender != frame.sender or message.to != frame.to for message in frame.messages):
        return None
    return frame
