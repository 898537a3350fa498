"""Calls that are given up while long answers are made for them leave nothing behind, also before garbage is collected:
an answer of megabytes may not wait for the collector, which counts objects and not bytes."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator

import pytest

from lab.http2.attacks import RANGE, rpc
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from lab.http2.wire import HELLO
from lab.patience import until
from raykeeper.schema.answers import RangeAnswer, RangePart

VALUE = bytes(200_003)
"""Of a length that no other test's values have: another test's answers may still be in this process."""
CALLS = {
    "HTTP/1.1": b"GET /kv/hostile/?prefix HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
    "gRPC": HELLO + b"".join(rpc(stream, b"/etcdserverpb.KV/Range", RANGE) for stream in range(1, 40, 2)),
}


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        for number in range(8):
            assert request(port.endpoint, "PUT", f"/kv/hostile/{number}", VALUE).status == 201
        yield port


def answers() -> int:
    """How many answers to this test's calls are in memory."""
    ranges = [each for each in gc.get_objects() if type(each) in (RangeAnswer, RangePart)]
    return sum(any(len(item.value) == len(VALUE) for item in each.items) for each in ranges)


@pytest.mark.parametrize("how", CALLS)
def test_answers_of_calls_that_were_given_up_are_gone_at_once(port: EtcdPort, how: str) -> None:
    """The first answers wait for a client that reads nothing, and others are being made, when the client goes."""
    host, _, number = port.endpoint.rpartition(":")
    held = port.listener.context.held
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect((host, int(number)))
                sock.sendall(CALLS[how])
                until(lambda: held.held > 0)
            until(lambda: held.held == 0)
        until(lambda: answers() == 0)
    finally:
        gc.enable()
