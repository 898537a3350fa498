"""How this process comes to Ray: it joins the one it is told of, or, only for ``launch``, starts one of its own."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator

import ray

from ..errors import ClusterNotFound
from ..limits import RAY_CONNECT_TIMEOUT
from .client.deadline import time_left
from .ray_calls import check_not_forked, in_time
from .sites import FAST_DEATH


@contextlib.contextmanager
def _hearing_of_deaths() -> Iterator[None]:
    """Have Ray, which reads its settings while it is started or joined, tell of a death at once; the processes that it
    starts inherit that. Afterwards the user's environment is as it was."""
    if FAST_DEATH in os.environ:
        yield
        return
    os.environ[FAST_DEATH] = "0"
    try:
        yield
    finally:
        os.environ.pop(FAST_DEATH, None)


def join_ray(address: str | None = None) -> None:
    """Attach this process to the Ray that runs, if it is not attached yet; never start one.

    Args:
        address: of the Ray cluster; without one ``RAY_ADDRESS``, and without that the one on this machine.

    Raises:
        ClusterNotFound: no Ray can be reached.
        ForkedProcess: Ray does not work in this process.
        Unavailable: it did not let this process in before the deadline of what runs here.
    """
    check_not_forked()
    if ray.is_initialized():
        return
    wanted = address or os.environ.get("RAY_ADDRESS") or _started_here() or "auto"
    if wanted == "local":
        raise ClusterNotFound("this process is not attached to a Ray cluster, and RAY_ADDRESS is local")
    _check_reachable(wanted)
    try:
        in_time(_attach, wanted)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterNotFound(f"no Ray cluster can be reached at {wanted}: {reason}") from error


_attaching = threading.Lock()
"""Only one thread at a time lets Ray begin; a call that was left behind may still be at it."""


def _attach(address: str) -> None:
    with _attaching:
        if not ray.is_initialized():
            with _hearing_of_deaths():
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)


def _started_here() -> str:
    """The address of the Ray that ``ray start`` has started on this machine last, as it noted it down; or nothing."""
    try:
        with open(os.path.join(tempfile.gettempdir(), "ray", "ray_current_cluster"), encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes to reach an address where nobody listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    patience = max(0.01, min(RAY_CONNECT_TIMEOUT, time_left()))
    try:
        socket.create_connection((host.strip("[]"), int(port)), patience).close()
    except OSError as error:
        raise ClusterNotFound(f"no Ray cluster can be reached at {address}: {error}") from error


def join_or_start_ray() -> None:
    """Attach this process to Ray; if none is named and none was joined, start a local one that ends with this process.

    Raises:
        ClusterNotFound: ``RAY_ADDRESS`` names a Ray that cannot be reached.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        join_ray()
        return
    folder = tempfile.mkdtemp(prefix="raykeeper-")

    process = os.getpid()

    def end() -> None:
        if os.getpid() != process:
            return  # a forked child ends: the Ray is its parent's
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    with _hearing_of_deaths():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
