"""Which Ray runs on this machine, found without joining it, and without loading Ray unless there is no other way.

``ray start`` notes the address of what it has started in a file, whose folder the environment names. The note outlives
a Ray that was killed, and is not seen under another ``TMPDIR``: so it counts only if somebody listens there, and else
the processes of this machine are asked.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ..errors import ClusterNotFound
from ..limits import RAY_CONNECT_TIMEOUT
from .client.deadline import time_left


def ray_note() -> Path:
    """The file in which ``ray start``, with this process's environment, notes the address of what it has started."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"


def running_here() -> str:
    """The address of a Ray that runs on this machine: the one that was started last, if that is still there; nothing
    if there is none, or if nobody can tell which of several is meant."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        noted = ray_note().read_text(encoding="ascii").strip()
        if _listens(noted):
            return noted
    try:
        from ray._private import services  # it looks at this machine's processes

        find: Callable[[], set[str]] = services.find_gcs_addresses
        running = {address for address in find() if _listens(address)}
    except Exception:  # it is no part of what Ray promises
        return ""
    return running.pop() if len(running) == 1 else ""


def host_and_port(address: str) -> tuple[str, int] | None:
    """Where an address of a Ray leads; ``None`` for what is no address, such as ``auto``."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isascii() and port.isdigit() else None


def _listens(address: str) -> bool:
    try:
        check_reachable(address)
    except ClusterNotFound:
        return False
    return host_and_port(address) is not None


def check_reachable(address: str) -> None:
    """Ray itself tries for minutes to reach an address where nobody listens, and what is no address makes it say much.

    Names are looked up in the system's own time.

    Raises:
        ClusterNotFound: nobody listens at the address, or it is none. What is no host and port, but may mean something
            to Ray (``auto``, an address of another kind) is let pass.
    """
    place = host_and_port(address)
    if place is None:
        kind, named, rest = address.rpartition("://")
        if address == "auto" or (named and rest and kind != "ray"):
            return
        raise ClusterNotFound(
            f"no Ray cluster can be reached at {address!r}: that is no address such as 10.0.0.1:6379, "
            "ray://10.0.0.1:10001 or auto"
        )
    patience = max(0.01, min(RAY_CONNECT_TIMEOUT, time_left()))
    try:
        socket.create_connection(place, patience).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterNotFound(f"no Ray cluster can be reached at {address}: {error}") from error
