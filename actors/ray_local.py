"""Finding the Ray that runs on this machine, without joining it, and without loading Ray unless there is no other way.

``ray start`` writes the address of the Ray that it started to a file, in a folder named by the environment. The file
outlives a Ray that was killed, and is not seen under another ``TMPDIR``. So it counts only if something listens at the
address; otherwise the processes of this machine are searched.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ..errors import ClusterNotFound
from ..limits import RAY_CONNECT_TIMEOUT_S
from .deadline import time_left


def ray_note() -> Path:
    """The file to which ``ray start``, with this process's environment, writes the address of the Ray it started."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"


def running_here() -> str:
    """The address of a Ray that runs on this machine: the one that was started last, if it still runs. Empty if there
    is none, or if it is unclear which of several is meant."""
    noted = noted_here()
    if noted:
        return noted
    try:
        from ray._private import services  # it searches this machine's processes

        find: Callable[[], set[str]] = services.find_gcs_addresses
        running = {address for address in find() if _listens(address)}
    except Exception:  # it is not part of Ray's public interface
        return ""
    return running.pop() if len(running) == 1 else ""


def noted_here() -> str:
    """The address of the Ray that was started last on this machine, if it still listens; else empty."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        noted = ray_note().read_text(encoding="ascii").strip()
        if _listens(noted):
            return noted
    return ""


def may_run_here(processes: str = "/proc") -> bool:
    """Whether a Ray may run on this machine, by a look of milliseconds: one was noted and listens, or there is a
    process with the name of one of Ray's own. ``running_here`` knows more, and loads Ray for that.

    Args:
        processes: where the kernel shows them; without that, it may.
    """
    if noted_here():
        return True
    try:
        numbers = [name for name in os.listdir(processes) if name.isdigit()]
    except OSError:
        return True
    names = set()
    for number in numbers:
        with contextlib.suppress(OSError), open(os.path.join(processes, number, "comm"), "rb") as file:
            names.add(file.read().strip())
    return not names or not names.isdisjoint(_RAYS_PROCESSES)


_RAYS_PROCESSES = (b"gcs_server", b"raylet")
"""Those whose arguments Ray searches for the address of its control service."""


def host_and_port(address: str) -> tuple[str, int] | None:
    """Host and port of an address of a Ray; ``None`` for what is not such an address, such as ``auto``."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isascii() and port.isdigit() else None


def _listens(address: str) -> bool:
    try:
        check_reachable(address)
    except ClusterNotFound:
        return False
    return host_and_port(address) is not None


def check_reachable(address: str) -> None:
    """Check an address before Ray uses it: Ray itself retries for minutes if nothing listens there.

    The system's own timeout applies to resolving a name.

    Raises:
        ClusterNotFound: nothing listens at the address, or it is malformed. What is not a host and port, but may mean
            something to Ray (``auto``, an address of another kind), passes.
    """
    place = host_and_port(address)
    if place is None:
        kind, named, rest = address.rpartition("://")
        if address == "auto" or (named and rest and kind != "ray"):
            return
        raise ClusterNotFound(
            f"no Ray cluster can be reached at {address!r}: that is not an address such as 10.0.0.1:6379, "
            "ray://10.0.0.1:10001 or auto"
        )
    patience = max(0.01, min(RAY_CONNECT_TIMEOUT_S, time_left()))
    try:
        socket.create_connection(place, patience).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterNotFound(f"no Ray cluster can be reached at {address}: {error}") from error
