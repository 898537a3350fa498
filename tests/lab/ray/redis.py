"""A Redis beside a Ray, in which the GCS keeps what it knows, so that it can die and come back (fault tolerance)."""

from __future__ import annotations

import contextlib
import ctypes
import random
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from lab.patience import PATIENCE, until

INSTALL = "there is no redis-server: apt-get install redis-server"
_PROGRAM = "redis-server"
PR_SET_PDEATHSIG = 1


class Redis:
    """One server, at a port of its own; ``close`` ends it.

    Args:
        folder: where it may write; it keeps everything in its memory.
    """

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        """For ``RAY_REDIS_ADDRESS``."""
        command = [_PROGRAM, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._process = process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent)
        try:
            until(lambda: process.poll() is not None or _listens(port), what="Redis listens")
            assert process.poll() is None, f"redis-server has ended with status {process.returncode}"
        except BaseException:
            self.close()
            raise

    @staticmethod
    def available() -> bool:
        """Whether it is installed."""
        return shutil.which(_PROGRAM) is not None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def fixed_port() -> int:
    """A port that is free, and that no connection is given: the GCS must find it free again after each death."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = list(range(ephemeral // 2, ephemeral))
    random.shuffle(ports)
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise OSError("no port is free")


def _die_with_parent() -> None:
    """A campaign may be ended by Ray, without a word."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True
