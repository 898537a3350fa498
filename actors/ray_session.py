"""How this process comes to Ray: it joins the one it is told of, or, only for ``launch``, starts one of its own."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile

import ray

from ..errors import ClusterNotFound
from .sites import FAST_DEATH


def join_ray(address: str | None = None) -> None:
    """Attach this process to the Ray that runs, if it is not attached yet; never start one.

    Args:
        address: of the Ray cluster; without one ``RAY_ADDRESS``, and without that the one on this machine.

    Raises:
        ClusterNotFound: no Ray can be reached.
    """
    if ray.is_initialized():
        return
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    os.environ.setdefault(FAST_DEATH, "0")
    try:
        ray.init(address=wanted, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterNotFound(f"no Ray cluster can be reached at {wanted}: {reason}") from error


def join_or_start_ray() -> None:
    """Attach this process to Ray; if none is named and none was joined, start a local one that ends with this process.

    Raises:
        ClusterNotFound: ``RAY_ADDRESS`` names a Ray that cannot be reached.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        join_ray()
        return
    os.environ.setdefault(FAST_DEATH, "0")  # the processes that Ray starts inherit it
    folder = tempfile.mkdtemp(prefix="raykeeper-")

    def end() -> None:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _temp_dir=folder,
    )
