"""Attaching this process to Ray: it joins the Ray that it is told of, or, for ``launch`` alone, starts its own."""

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
from .ray_auth import check_admitted, check_token, command_line_in_unicode, showing_token
from .ray_calls import check_not_forked, in_time
from .ray_env import FAST_DEATH
from .ray_local import check_reachable, running_here


@contextlib.contextmanager
def _fast_death_reports() -> Iterator[None]:
    """Have Ray report the death of an actor at once. Ray reads its settings while it is started or joined, and the
    processes that it starts inherit them; the user's environment is restored afterwards."""
    if FAST_DEATH in os.environ:
        yield
        return
    os.environ[FAST_DEATH] = "0"
    try:
        yield
    finally:
        os.environ.pop(FAST_DEATH, None)


def join_ray(address: str | None = None) -> None:
    """Attach this process to a running Ray, if it is not attached yet; never start one.

    Args:
        address: of the Ray cluster; without one ``RAY_ADDRESS``, and without that the one on this machine.

    Raises:
        ClusterNotFound: no Ray can be reached.
        ForkedProcess: Ray does not work in this process.
        Unavailable: Ray did not accept this process before the deadline of the current call.
    """
    check_not_forked()
    if ray.is_initialized():
        return
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    if wanted == "auto":  # Ray itself would use a file that may name one that is gone
        wanted = running_here() or "auto"
    if wanted == "local":
        raise ClusterNotFound("this process is not attached to a Ray cluster, and RAY_ADDRESS is local")
    try:
        in_time(check_reachable, wanted)
        in_time(_attach, wanted)
    except Unavailable as error:
        where = "on this machine" if wanted == "auto" else f"at {wanted}"
        raise Unavailable(f"the Ray {where} did not accept this process in time") from error
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if wanted == "auto":
            where = "give its address (RAY_ADDRESS, or --address in a shell)"
            raise ClusterNotFound(f"no Ray runs on this machine, or more than one does: {where}") from error
        reason = " ".join(str(error).split())
        raise ClusterNotFound(f"no Ray cluster can be reached at {wanted}: {reason}") from error


_attaching = threading.Lock()
"""Only one thread at a time starts Ray; an abandoned call may still be doing so."""


def _attach(address: str) -> None:
    with _attaching:
        if not ray.is_initialized():
            with _fast_death_reports(), showing_token(), command_line_in_unicode(), _without_signal_handler():
                check_admitted(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)


@contextlib.contextmanager
def _without_signal_handler() -> Iterator[None]:
    """Suppress Ray's warning that it could not install its SIGTERM handler: that signal is the user's."""

    def not_about_sigterm(record: logging.LogRecord) -> bool:
        return "SIGTERM handler is not set" not in record.getMessage()

    log = logging.getLogger("ray._private.worker")
    log.addFilter(not_about_sigterm)
    try:
        yield
    finally:
        log.removeFilter(not_about_sigterm)


@contextlib.contextmanager
def _users_sigterm_kept() -> Iterator[None]:
    """Keep the user's SIGTERM handler: Ray installs its own when it is started on the main thread, to end with the
    process. The user's handler may well end the process in a way that ends Ray too."""
    chosen = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if chosen not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, chosen)


def ray_is_own() -> bool:
    """Whether this process started its Ray itself, by ``launch`` or ``ray.init()``, instead of joining one: then no
    other host is expected in it, and it ends with this process."""
    try:
        node: Any = ray._private.worker._global_node
        return ray.is_initialized() and bool(node.is_head())
    except AttributeError:  # Ray Client, or another version: this is not part of Ray's public interface
        return False


def join_or_start_ray() -> None:
    """Attach this process to Ray; if none is named and none was joined, start a local Ray that ends with this process.

    Raises:
        ClusterNotFound: ``RAY_ADDRESS`` names a Ray that cannot be reached; or the token that was found is not one.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        join_ray()
        return
    folder = tempfile.mkdtemp(prefix="raykeeper-")

    process = os.getpid()

    def end_ray() -> None:
        if os.getpid() != process:
            return  # a forked child: Ray is its parent's
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end_ray)
    check_token()
    with _fast_death_reports(), _users_sigterm_kept():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=folder,
        )
