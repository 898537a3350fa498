"""What the examples share: a Ray and a cluster of their own, which are gone at the end, and a few helpers.

with stage() as cluster:
    kv = cluster.client()
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

import raykeeper

FAST_DEATH = "RAY_timeout_ms_task_wait_for_death_info"


@contextlib.contextmanager
def stage(spec: str | None = None, dashboard: bool = False) -> Iterator[raykeeper.Cluster]:
    """A local Ray with a cluster, of three members unless a spec says otherwise; both are gone at the end.

    With a dashboard, the command ``ray job`` finds it (``RAY_API_SERVER_ADDRESS``).
    """
    folder = tempfile.mkdtemp(prefix="rk-")  # short: Ray puts sockets into it
    os.environ[FAST_DEATH] = "0"  # callers learn of a death in milliseconds
    try:
        context = ray.init(
            address="local",
            num_cpus=max(2, os.cpu_count() or 1),
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=f"{folder}/ray",
        )
        if dashboard:
            os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{context.dashboard_url}"
        cluster = raykeeper.launch(spec, data_dir=f"{folder}/data")
        yield cluster
        cluster.destroy()
    finally:
        ray.shutdown()
        remove(folder)


def remove(folder: str) -> None:
    """Remove a folder to which processes that just end may still write."""
    deadline = time.monotonic() + 10
    while os.path.exists(folder) and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    """Tell what happens."""
    print(text, flush=True)


def check(right: object, what: str) -> None:
    """End with status 1 if something is not as it must be."""
    if not right:
        sys.exit(f"wrong: {what}")
    say(f"right: {what}")


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait for something; end with status 1 if it does not come."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"wrong: not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return value


def kill(pid: int, what: str) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
    say(f"killed {what} (pid {pid})")


def kill_leader(cluster: raykeeper.Cluster) -> raykeeper.MemberInfo:
    """SIGKILL the process of the cluster's leader; returns who that was."""

    def leader() -> raykeeper.MemberInfo | None:
        status = cluster.status()
        return next((member for member in status.members if member.id == status.leader and member.pid), None)

    member: raykeeper.MemberInfo = until(leader, "a leader")
    kill(member.pid, f"the cluster's leader, {member.name}")
    return member
