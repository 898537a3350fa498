"""A proxy's port in a process of its own under attack: its memory stays within bounds, and others are served."""

from __future__ import annotations

import math
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lab.http2.attacks import CALLS, IDLE
from lab.http2.http_client import request
from lab.http2.port_process import (
    CONNECTION_BYTES,
    FOR_PROGRAMS,
    PortProcess,
    memory,
    most_memory,
    peak_memory,
    port_process,
)
from lab.http2.wire import HELLO
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest
from raykeeper.limits import (
    MAX_PROXY_CONNECTIONS,
    MAX_PROXY_WAITING,
    PROXY_DESCRIPTOR_DIVISOR,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

HELD = 64 * 1024 * 1024
"""What the process may keep for clients."""
SECONDS = 8.0
AT_ONCE = MAX_PROXY_WAITING // 2
"""Connections that are opened before the port is given time for them."""


@pytest.fixture
def port() -> Iterator[PortProcess]:
    with port_process(HELD) as port:
        yield port


class QuietClient:
    """Writes a key and watches it by server-sent lines, all the time."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._stop = threading.Event()
        self._written = threading.Event()
        """No more is written."""
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._watch)]
        self.waits: list[float] = []
        self.seen = 0
        self.failures: list[Exception] = []
        self._began = threading.Event()

    def __enter__(self) -> QuietClient:
        for thread in reversed(self._threads):
            thread.start()
            assert self._began.wait(PATIENCE)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._threads[0].join()
        self._written.set()
        self._threads[1].join()

    def _write(self) -> None:
        with grpc.insecure_channel(self._endpoint) as channel:
            put = channel.unary_unary("/etcdserverpb.KV/Put", PutRequest.SerializeToString)
            while not self._stop.wait(0.05):
                began = time.monotonic()
                try:
                    put(PutRequest(key=b"hostile/quiet", value=bytes(10_000)), timeout=PATIENCE)
                except grpc.RpcError as error:
                    self.failures.append(error)
                self.waits.append(time.monotonic() - began)

    def _watch(self) -> None:
        host, _, port = self._endpoint.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
            sock.sendall(b"GET /kv/hostile/quiet?watch HTTP/1.1\r\nhost: x\r\n\r\n")
            sock.settimeout(0.1)
            deadline, rest = math.inf, b""
            while not self._written.is_set() or self.seen < len(self.waits):
                try:
                    data = sock.recv(1 << 20)
                except TimeoutError:
                    if self._written.is_set():
                        deadline = min(deadline, time.monotonic() + PATIENCE)
                    if time.monotonic() > deadline:
                        return
                    continue
                if not data:
                    self.failures.append(ConnectionError("the watch has ended"))
                    return
                self._began.set()
                data = rest + data
                self.seen += data.count(b"event: put")
                rest = data[-len(b"event: pu") :]


def test_all_attacks_at_once(port: PortProcess) -> None:
    for number in range(8):
        assert request(port.endpoint, "PUT", f"/kv/hostile/{number}", bytes(500_000)).status == 201
    before = memory(port.pid)
    with QuietClient(port.endpoint) as quiet:
        until(lambda: len(quiet.waits) >= 3)
        command = (sys.executable, "-m", "lab.http2.attacks", port.endpoint, str(SECONDS))
        attack = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=FOR_PROGRAMS)
        during = len(quiet.waits)
        until(lambda: len(quiet.waits) >= during + 3)
    grown = peak_memory(port.pid) - before
    print(f"grown by {grown >> 20} MiB; {len(quiet.waits)} puts, the slowest {max(quiet.waits):.2f} s; {attack.stdout}")
    assert not quiet.failures
    assert quiet.seen == len(quiet.waits)
    assert during > 3, "it was served during the attack, too"
    assert grown < most_memory(0, HELD, 2 * IDLE, CALLS)
    assert request(port.endpoint, "GET", "/readyz").status == 200


def test_ten_thousand_idle_connections(port: PortProcess) -> None:
    """As many as the limit of descriptors lets both ends have; one more displaces an idle one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = min(MAX_PROXY_CONNECTIONS, hard // PROXY_DESCRIPTOR_DIVISOR)
    count = min(10_000, most - 10, hard - 500)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 500)), hard))
    host, _, number = port.endpoint.rpartition(":")
    before = memory(port.pid)
    sockets: list[socket.socket] = []

    def all_are_listed() -> bool:
        figure = f'raykeeper_proxy_connections{{protocol="http2"}} {min(len(sockets), count):.1f}'.encode()
        return figure in request(port.endpoint, "GET", "/metrics").body

    try:
        while len(sockets) < count:
            for _ in range(min(AT_ONCE, count - len(sockets))):
                sockets.append(socket.create_connection((host, int(number)), timeout=PATIENCE))
                sockets[-1].sendall(HELLO)
            until(all_are_listed)
        with QuietClient(port.endpoint) as quiet:
            until(lambda: len(quiet.waits) > 5)
        grown = (memory(port.pid) - before) / count
        print(f"{count} connections, {grown / 1024:.1f} KiB each; {max(quiet.waits):.3f} s for the slowest put")
        assert not quiet.failures
        assert quiet.seen == len(quiet.waits)
        assert grown < CONNECTION_BYTES
        until(all_are_listed)
        for _ in range(most - count + 5):
            sockets.append(socket.create_connection((host, int(number)), timeout=PATIENCE))
        assert request(port.endpoint, "GET", "/readyz").status == 200
    finally:
        for sock in sockets:
            sock.close()
    none = b'raykeeper_proxy_connections{protocol="http2"} 0.0'
    until(lambda: none in request(port.endpoint, "GET", "/metrics").body)
