"""etcd's services over one real member, on a port, in a process of their own: ``python -m lab.http2.port_process
BYTES HOST``.

BYTES is what the port may keep for its clients, HOST the address that it listens on. It prints where it listens, and
serves until its stdin is closed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lab.http2.etcd_port import etcd_port


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
    with etcd_port(host=sys.argv[2]) as port:
        port.listener.context.held.limit = int(sys.argv[1])
        print(port.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
