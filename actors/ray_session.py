"""How this process comes to Ray: it joins the one it is told of, or, only for ``launch``, starts one of its own."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import ray

from ..errors import ClusterNotFound, Unavailable
from .ray_admission import check_admitted, check_token, command_line_in_unicode, showing_token
from .ray_calls import check_not_forked, in_time
from .ray_here import check_reachable, running_here
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
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    if wanted == "auto":  # Ray itself would go by a note that may be of one that is gone
        wanted = running_here() or "auto"
    if wanted == "local":
        raise ClusterNotFound("this process is not attached to a Ray cluster, and RAY_ADDRESS is local")
    try:
        in_time(check_reachable, wanted)
        in_time(_attach, wanted)
    except Unavailable as error:
        where = "on this machine" if wanted == "auto" else f"at {wanted}"
        raise Unavailable(f"the Ray {where} did not let this process in in time") from error
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if wanted == "auto":
            where = "give its address (RAY_ADDRESS, or --address in a shell)"
            raise ClusterNotFound(f"no Ray runs on this machine, or more than one does: {where}") from error
        reason = " ".join(str(error).split())
        raise ClusterNotFound(f"no Ray cluster can be reached at {wanted}: {reason}") from error


_attaching = threading.Lock()
"""Only one thread at a time lets Ray begin; a call that was left behind may still be at it."""


def _attach(address: str) -> None:
    with _attaching:
        if not ray.is_initialized():
            with _hearing_of_deaths(), showing_token(), command_line_in_unicode(), _without_signal_handler():
                check_admitted(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)


@contextlib.contextmanager
def _without_signal_handler() -> Iterator[None]:
    """Ray warns where it cannot take the process's SIGTERM for itself. That is the user's, so it need not be told."""

    def worth_telling(record: logging.LogRecord) -> bool:
        return "SIGTERM handler is not set" not in record.getMessage()

    log = logging.getLogger("ray._private.worker")
    log.addFilter(worth_telling)
    try:
        yield
    finally:
        log.removeFilter(worth_telling)


@contextlib.contextmanager
def _leaving_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it is started on the main thread, to end with the process. A handler that the
    user has chosen stays his; it may well end the process in a way that ends Ray, too."""
    chosen = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if chosen not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, chosen)


def ray_is_own() -> bool:
    """Whether this process has started its Ray itself, by ``launch`` or by ``ray.init()``, instead of joining one: no
    other host is expected in it, and it ends with this process."""
    try:
        node: Any = ray._private.worker._global_node
        return ray.is_initialized() and bool(node.is_head())
    except AttributeError:  # Ray Client, or a Ray that keeps it elsewhere: that is no part of what it promises
        return False


def join_or_start_ray() -> None:
    """Attach this process to Ray; if none is named and none was joined, start a local one that ends with this process.

    Raises:
        ClusterNotFound: ``RAY_ADDRESS`` names a Ray that cannot be reached; or what is there for a token is none.
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
    check_token()
    with _hearing_of_deaths(), _leaving_sigterm():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
