"""What a member does before it looks into a frame, and while it does not serve; without Ray."""

from __future__ import annotations

import msgspec
import pytest

from raykeeper.actors.member import deadline_of
from raykeeper.actors.protocol import AskStatus, Close, KeepAlive, Open, Read, Reads, Writes
from raykeeper.store.commands import ClientWrite, ClientWrites, KeyRange, Put, Range


@pytest.mark.parametrize(
    ("request_", "deadline"),
    [
        (Writes(1, 2.5, ClientWrites(7, 1, (ClientWrite(1, Put(b"k", b"v")),))), 2.5),
        (Reads(1, 3.0, False, (Read(Range(KeyRange(b"k"))),)), 3.0),
        (Open(1, 0.25, b"nonce"), 0.25),
        (KeepAlive(1, 4, 7), 4.0),
        (Close(1, 5.0, 7), 5.0),
        (AskStatus(), 0.0),
        (["no", "request"], 0.0),
    ],
)
def test_the_deadline_is_read_without_decoding_the_rest(request_: object, deadline: float) -> None:
    assert deadline_of(msgspec.msgpack.encode(request_)) == deadline


def test_noise_has_no_deadline() -> None:
    assert deadline_of(b"") == deadline_of(b"\xc1") == 0.0
