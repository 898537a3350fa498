"""Whatever id a cluster has drawn, its members and clients understand each other."""

from __future__ import annotations

import msgspec
import pytest

from raykeeper.actors.protocol import AskLeases, Request
from raykeeper.actors.transport.seam import Frame


@pytest.mark.parametrize("cluster", [1, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 1])
def test_every_cluster_id_travels(cluster: int) -> None:
    frame = Frame(cluster, 1, 2, 1, 1, ())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Frame) == frame
    asked = AskLeases(cluster, 1.0, ())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=Request) == asked
