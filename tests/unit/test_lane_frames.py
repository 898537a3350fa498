"""What travels on a lane, and the tokens that open one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykeeper.actors.transport import lane_frames
from raykeeper.actors.transport.lane_frames import (
    FrameKind,
    LaneBroken,
    Splitter,
    pack,
)
from raykeeper.actors.transport.lane_gate import Tokens
from raykeeper.limits import (
    LANE_TOKEN_TTL,
    MAX_LANE_TOKENS,
)

CLUSTER = 77
PATIENCE = 5.0
"""Seconds: a machine may be slow, and no test waits for time to pass."""


def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.002)


# --- frames -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(FrameKind), st.integers(0, 2**64 - 1), st.binary(max_size=300))), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames: list[Any], data: st.DataObject) -> None:
    stream = b"".join(pack(*frame) for frame in frames)
    splitter = Splitter()
    found: list[Any] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:cut])
        stream = stream[cut:]
    assert found == frames
    assert splitter.buffered == 0


def test_a_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    splitter = Splitter(limit=100)
    assert len(splitter.feed(pack(FrameKind.REQUEST, 1, b"x" * 100))) == 1
    with pytest.raises(LaneBroken):
        splitter.feed(pack(FrameKind.REQUEST, 1, b"x" * 101)[: lane_frames.HEADER_BYTES])


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_good_once_and_not_for_long() -> None:
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    token, proof = tokens.issue()
    assert tokens.redeem(b"x" * 16) is None
    assert tokens.redeem(token) == proof
    assert tokens.redeem(token) is None
    late, _ = tokens.issue()
    now[0] += LANE_TOKEN_TTL
    assert tokens.redeem(late) is None


def test_tokens_that_nobody_uses_are_few() -> None:
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    first, _ = tokens.issue()
    for _ in range(MAX_LANE_TOKENS):
        newest, _ = tokens.issue()
    assert len(tokens) == MAX_LANE_TOKENS
    assert tokens.redeem(first) is None
    assert tokens.redeem(newest)
    now[0] += LANE_TOKEN_TTL
    tokens.issue()
    assert len(tokens) == 1
