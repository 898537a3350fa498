"""Floods of frames, resets and header blocks end the connection; what honest clients send does not."""

from __future__ import annotations

import pytest

from lab.http2.wire import HEAD, TAIL, connected, failure, request
from raykeeper.actors.proxy.http2_frames import (
    CANCEL,
    CONTINUATION,
    DATA,
    ENHANCE_YOUR_CALM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    pack_frame,
    pack_settings,
    pack_window_update,
)
from raykeeper.limits import (
    MAX_CONTINUATION_FRAMES,
    MAX_FLOOD_FRAMES,
    MAX_FLOOD_RESETS,
    MAX_HEADER_LIST_BYTES,
    PROXY_FLOOD_S,
)

USELESS = {
    "ping": pack_frame(PING, 0, 0, bytes(8)),
    "settings": pack_frame(SETTINGS, 0, 0),
    "empty data": pack_frame(DATA, 0, 1),
    "priority": pack_frame(PRIORITY, 0, 1, bytes(5)),
    "unknown": pack_frame(77, 0, 1, b"x"),
    "window": pack_window_update(1, 1),
}


@pytest.mark.parametrize("frame", USELESS.values(), ids=USELESS.keys())
def test_floods_of_frames_without_use(frame: bytes) -> None:
    owner = connected()
    owner.feed(request(1))
    owner.time = 100.0
    owner.feed(frame * (MAX_FLOOD_FRAMES // 2))
    owner.time += PROXY_FLOOD_S / 2
    assert owner.connection.failed is None
    assert failure(owner, frame * (MAX_FLOOD_FRAMES * 2)) == ENHANCE_YOUR_CALM


def test_rapid_resets() -> None:
    """CVE-2023-44487: opened and reset at once, so never above the limit of streams."""
    owner = connected()
    owner.time = 100.0
    reset = CANCEL.to_bytes(4, "big")
    number = 1
    while owner.connection.failed is None and number < 4 * MAX_FLOOD_RESETS + 100:
        owner.feed(request(number) + pack_frame(RST_STREAM, 0, number, reset))
        number += 2
    assert owner.connection.failed is not None
    assert owner.connection.failed.code == ENHANCE_YOUR_CALM
    assert number // 2 >= MAX_FLOOD_RESETS


def test_a_client_may_cancel_now_and_then() -> None:
    owner = connected()
    for number in range(1, 2 * MAX_FLOOD_RESETS * 3, 2):
        owner.time += 2 * PROXY_FLOOD_S / MAX_FLOOD_RESETS
        owner.feed(request(number) + pack_frame(RST_STREAM, 0, number, bytes(4)))
    assert owner.connection.failed is None


def test_pings_between_answers_are_no_flood() -> None:
    """Go's clients send one for each batch of answers, and window updates for what they get."""
    owner = connected()
    owner.feed(pack_settings({INITIAL_WINDOW_SIZE: 1 << 30}) + pack_window_update(0, 1 << 30))
    number = 1
    for _ in range(MAX_FLOOD_FRAMES * 2):
        owner.feed(request(number, end=True) + USELESS["ping"] + pack_window_update(0, 1))
        owner.connection.answer(owner.streams.pop(number), HEAD, b"data", TAIL)
        owner.requests.clear()
        owner.output()
        number += 2
    assert owner.connection.failed is None


def test_a_block_that_does_not_end() -> None:
    owner = connected()
    owner.feed(pack_frame(HEADERS, 0, 1, b""))
    assert failure(owner, pack_frame(CONTINUATION, 0, 1, b"") * MAX_CONTINUATION_FRAMES) == ENHANCE_YOUR_CALM
    owner = connected()
    owner.feed(pack_frame(HEADERS, 0, 1, b"\x40\x7f\xff\xff\x03" + bytes(10_000)))
    frames = pack_frame(CONTINUATION, 0, 1, bytes(16_000)) * (MAX_HEADER_LIST_BYTES // 16_000 + 1)
    assert failure(owner, frames) == ENHANCE_YOUR_CALM
