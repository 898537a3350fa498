"""etcd's services over one real member with a real disk, on a port, in a process of their own: ``python -m
lab.http2.port_process BYTES HOST``.

BYTES is what the port may keep for its clients, and as much again for answers that are gathered. HOST is the address
that it listens on. It prints where it listens, and serves until its stdin is closed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lab.http2.etcd_port import etcd_port
from raykeeper.actors.proxy.large_blocks import give_back_large_blocks
from raykeeper.limits import (
    BLOCK_CACHE_BYTES,
    LOG_SEGMENT_BYTES,
    MAX_PROXY_LONG_READS,
    PROXY_REMEMBERED_BYTES,
    PROXY_RESERVE_DIVISOR,
    STATE_WRITE_BUFFER_BYTES,
    Limits,
)
from raykeeper.store.engine.rocks import RocksDisk

PAGE_COPIES = 3
"""Of a page on its way: as its member sends it, as it is read, and the items that are made of it..."""
ANSWER_COPIES = 5
"""... and of one answer at a time: its message, its bytes, and those as they are sent, a third longer in JSON."""
REQUEST_COPIES = 3
"""Of a request that its handler works at: as it came, which is what counts as held, what is read from it, and the frame
in which it goes to a member."""
CONNECTION_BYTES = 12 * 1024
"""Of one without anything that is counted..."""
CALL_BYTES = 8 * 1024
"""... and of one call, a watch say."""
MEMBER_BYTES = 2 * STATE_WRITE_BUFFER_BYTES + BLOCK_CACHE_BYTES + Limits().log_cache_bytes + 3 * LOG_SEGMENT_BYTES


def most_memory(before: int, held_bytes: int, connections: int, calls: int) -> int:
    """What such a process may take, answers that are no longer than a page: the sum of all that is bounded.

    Args:
        before: what it had when nobody asked for anything.
        held_bytes: what it may keep for its clients; all of it may be requests that are worked at. Long values that
            were read by their keys alone have as much again (``AnswerRoom``).
        connections, calls: how many there were at most.
    """
    pages = MAX_PROXY_LONG_READS * PAGE_COPIES + ANSWER_COPIES
    return (
        before
        + (held_bytes + held_bytes // PROXY_RESERVE_DIVISOR) * REQUEST_COPIES
        + held_bytes
        + pages * Limits().max_page_bytes
        + PROXY_REMEMBERED_BYTES
        + MEMBER_BYTES
        + connections * CONNECTION_BYTES
        + calls * CALL_BYTES
    )


class PortProcess(NamedTuple):
    """A running one."""

    pid: int
    endpoint: str

    def peak_memory(self) -> int:
        """The most memory that it has had so far, in bytes."""
        return peak_memory(self.pid)


def peak_memory(pid: int) -> int:
    """The most resident memory that a process has had so far, in bytes."""
    return _status(pid, "VmHWM:")


def memory(pid: int) -> int:
    """Its resident memory now, in bytes."""
    return _status(pid, "VmRSS:")


def _status(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


FOR_PROGRAMS = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
}
"""An environment for programs that use what is here."""
PLAIN_MALLOC = {
    name: value
    for name, value in FOR_PROGRAMS.items()
    if not name.startswith("MALLOC_") and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")
}
"""The same for those whose memory is measured: with the C library's own ``malloc``, as it is by itself."""


@contextmanager
def port_process(held_bytes: int, host: str = "127.0.0.1") -> Iterator[PortProcess]:
    """A port for some tests."""
    command = (sys.executable, "-m", "lab.http2.port_process", str(held_bytes), host)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=FOR_PROGRAMS)
    try:
        assert process.stdout is not None
        yield PortProcess(process.pid, process.stdout.readline().strip())
    finally:
        process.communicate(timeout=60)


def main() -> None:
    give_back_large_blocks()
    with TemporaryDirectory() as folder, etcd_port(host=sys.argv[2], disk=RocksDisk(), path=f"{folder}/data") as port:
        held = port.listener.context.held
        held.limit = port.proxy.backend._room.limit = int(sys.argv[1])
        held.reserve = held.limit // PROXY_RESERVE_DIVISOR
        print(port.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
