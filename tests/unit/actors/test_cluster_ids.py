"""Whatever id a cluster has drawn, its members and clients understand each other."""

from __future__ import annotations

import msgspec
import pytest

from raykeeper.actors.transport.peer_frames import PeerFrame
from raykeeper.schema.frames import AskLeases, Request


@pytest.mark.parametrize("cluster", [1, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 1])
def test_every_cluster_id_travels(cluster: int) -> None:
    frame = PeerFrame(cluster, 1, 2, 1, 1, ())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=PeerFrame) == frame
    asked = AskLeases(cluster, 1.0, ())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=Request) == asked
