"""What travels on a lane, and the tokens that open one."""

from __future__ import annotations

import select
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.lanes import LaneEnd
from raykeeper.actors.transport import lane
from raykeeper.actors.transport.lane import Connection, FrameDecoder, FrameKind, LaneBroken, pack
from raykeeper.actors.transport.lane_listener import Tokens
from raykeeper.limits import LANE_TOKEN_TTL_S, MAX_LANE_TOKENS

# --- frames -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(FrameKind), st.integers(0, 2**64 - 1), st.binary(max_size=300))), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames: list[Any], data: st.DataObject) -> None:
    stream = b"".join(pack(*frame) for frame in frames)
    decoder = FrameDecoder()
    found: list[Any] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert found == frames
    assert decoder.buffered == 0


def test_a_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    decoder = FrameDecoder(limit=100)
    assert len(decoder.feed(pack(FrameKind.REQUEST, 1, b"x" * 100))) == 1
    with pytest.raises(LaneBroken):
        decoder.feed(pack(FrameKind.REQUEST, 1, b"x" * 101)[: lane.HEADER_BYTES])


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_good_once_and_not_for_long() -> None:
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    token, proof = tokens.issue()
    assert tokens.redeem(b"x" * 16) is None
    assert tokens.redeem(token) == proof
    assert tokens.redeem(token) is None
    late, _ = tokens.issue()
    now[0] += LANE_TOKEN_TTL_S
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
    now[0] += LANE_TOKEN_TTL_S
    tokens.issue()
    assert len(tokens) == 1


# --- sending ----------------------------------------------------------------------------------------------------------


def test_a_wire_is_written_by_many_threads_and_frames_stay_whole() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    watch = select.epoll()
    connection = Connection(ours, watch)
    threads = [
        threading.Thread(target=lambda frame=frame: [connection.send(frame) for _ in range(200)])
        for frame in [pack(FrameKind.REPLY, n, bytes([n]) * 3000) for n in range(8)]
    ]
    other = LaneEnd(theirs)
    for thread in threads:
        thread.start()
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            for _, events in watch.poll(0.01):
                if events & select.EPOLLOUT:
                    connection.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    for _ in range(1600):
        _, number, payload = other.receive()
        assert payload == bytes([number]) * 3000
    done.set()
    flusher.join()
    assert connection.backlog == 0
    connection.close()
    other.close()
    watch.close()
