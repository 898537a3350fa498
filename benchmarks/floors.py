"""The floors, below which no system can go: a bare actor call, a bare stream, a bare synced write."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accounting import cpu_seconds, descendants
from measures import Row, distribution
from systems import _start_ray, _stop_ray

PAYLOAD = bytes(256)


def floors(folder: str, seconds: float) -> Iterator[Row]:
    """One row for each floor; more for the actor call, which also goes in crowds."""
    yield from _synced_writes(folder, seconds)
    yield from _stream(folder, seconds)
    yield from _actor_calls(folder, seconds)


def _serial(row: Row, call: Callable[[], Any], seconds: float) -> Row:
    for _ in range(50):
        call()
    pids = [os.getpid(), *descendants(os.getpid())]
    before = cpu_seconds(pids)
    times = []
    end = time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        call()
        times.append(time.monotonic() - started)
    row.cpu_per_op = (cpu_seconds(pids) - before) / len(times)
    row.per_second = len(times) / seconds
    return distribution(row, times)


def _synced_writes(folder: str, seconds: float) -> Iterator[Row]:
    import rocksdict

    database = rocksdict.Rdict(str(Path(folder, "floor")), rocksdict.Options(raw_mode=True))
    numbers = iter(range(1 << 40))

    def write() -> None:
        database.put(b"%020d" % next(numbers), PAYLOAD)
        database.flush_wal(True)

    try:
        yield _serial(Row("floor: RocksDB, synced", "put", "threads"), write, seconds)
    finally:
        database.close()


def _echo(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        line, _ = listener.accept()
        with line, contextlib.suppress(OSError):
            while data := _receive(line):
                line.sendall(struct.pack("!I", len(data)) + data)


def _receive(line: socket.socket) -> bytes:
    data = bytearray()
    while len(data) < 4 or len(data) < 4 + struct.unpack_from("!I", data)[0]:
        part = line.recv(65536)
        if not part:
            return b""
        data += part
    return bytes(data[4:])


def _stream(folder: str, seconds: float) -> Iterator[Row]:
    path = f"{folder}/echo"
    other = multiprocessing.get_context("spawn").Process(target=_echo, args=(path,), daemon=True)
    other.start()
    try:
        line = _connected(path)
        with line:
            packet = struct.pack("!I", len(PAYLOAD)) + PAYLOAD

            def call() -> None:
                line.sendall(packet)
                _receive(line)

            yield _serial(Row("floor: stream, there and back", "call", "threads"), call, seconds)
    finally:
        other.kill()
        other.join()


def _connected(path: str) -> socket.socket:
    end = time.monotonic() + 30
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(path)
            return line
        except OSError:
            line.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _actor_calls(folder: str, seconds: float) -> Iterator[Row]:
    _start_ray(folder)
    try:
        import ray

        class Echo:
            def echo(self, data: bytes) -> bytes:
                return data

        actor: Any = ray.remote(num_cpus=0)(Echo)
        actor = actor.remote()
        name = "floor: Ray actor call"
        yield _serial(Row(name, "call", "threads"), lambda: ray.get(actor.echo.remote(PAYLOAD)), seconds)
        for in_flight in (1, 1000):
            yield asyncio.run(_crowd(Row(name, "call", "coroutines", 1, in_flight), actor, seconds))
    finally:
        _stop_ray()


async def _crowd(row: Row, actor: Any, seconds: float) -> Row:
    pids = [os.getpid(), *descendants(os.getpid())]
    before = cpu_seconds(pids)
    times: list[float] = []
    end = time.monotonic() + seconds

    async def worker() -> None:
        while (started := time.monotonic()) < end:
            await actor.echo.remote(PAYLOAD)
            times.append(time.monotonic() - started)

    await asyncio.gather(*[worker() for _ in range(row.in_flight)])
    row.per_second = len(times) / seconds
    row.cpu_per_op = (cpu_seconds(pids) - before) / len(times)
    return distribution(row, times)
