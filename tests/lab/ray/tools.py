"""What the cluster tests share: clusters, signals, and waiting for conditions."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray

import raykeeper
from raykeeper.actors.cluster.proxy_handle import stop_proxies
from raykeeper.actors.cluster.supervisor_handle import stop_supervisor
from raykeeper.actors.discovery import actors_gone, member_actors
from raykeeper.actors.naming import actor_name, member_name

T = TypeVar("T")
_numbers = itertools.count(1)


def wait_until(condition: Callable[[], T], seconds: float = 90.0, what: str | Callable[[], str] = "") -> T:
    """Wait until the condition is true, and return what made it so; fail at the deadline, and say what was missing."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            missing = what() if callable(what) else what
            raise AssertionError(f"not within {seconds} s: {missing or condition}")
        pause.wait(0.02)


def remove(folder: Path) -> None:
    """Remove a folder and all in it, though a member may be at work there and files come and go."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(gone, 30, f"the end of {folder}")


def told(watch: Any, revision: int) -> Iterator[Any]:
    """All that a watch has to tell up to a revision."""
    patience = time.monotonic() + 90.0
    while watch.revision < revision:
        assert time.monotonic() < patience, f"the watch has come to {watch.revision}, not to {revision}"
        event = watch.next(timeout=0.5)
        if event is not None:
            yield event


class Lateness:
    """The tolerance of a bound on time on a machine that others use too: three times the longest that a write and
    the news of it took meanwhile, since the end of a lease takes some such steps, and each may be late. A context
    manager."""

    def __init__(self, kv: Any) -> None:
        self._worst = 0.0
        self._kv = kv
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self._kv.watch("lateness") as watch:
            while not self._over.wait(0.02):
                began = time.monotonic()
                self._kv.put("lateness", "", timeout=60)
                watch.next(timeout=60)
                self._worst = max(self._worst, time.monotonic() - began)

    @property
    def tolerance(self) -> float:
        """Seconds."""
        return 3 * self._worst

    def __enter__(self) -> Lateness:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(60)


class Made:
    """Clusters of one test."""

    def __init__(self, folder: Path, test: str) -> None:
        self.data_dir = folder / "data"
        self.name = f"{re.sub('[^A-Za-z0-9]+', '-', test)[:40].strip('-')}-{next(_numbers)}"
        self._names = {self.name}

    def launch(self, **fields: Any) -> Any:
        # Most tests want to see what a cluster does by itself when something happens to it.
        fields = {"name": self.name, "data_dir": str(self.data_dir), "supervised": False, **fields}
        self._names.add(fields["name"])
        return raykeeper.launch(**fields)

    def also(self, name: str) -> None:
        """A cluster of that name is this test's too."""
        self._names.add(name)

    def folder(self, member: int, name: str | None = None) -> Path:
        """The data directory of a member."""
        return self.data_dir / (name or self.name) / member_name(member)

    def end(self) -> None:
        for name in self._names:
            kill_actors(name)


def kill_actors(name: str) -> None:
    """Take a cluster's actors away for good, as a crash of all of Ray would: no member gets to say goodbye."""
    stop_supervisor(name)
    stop_proxies(name, graceful=False)
    actors = member_actors(name)
    pids = [pid_of(actor) for actor in actors.values()]
    for actor in actors.values():
        ray.kill(actor, no_restart=True)
    names = [actor_name(name, member_name(member)) for member in actors]
    wait_until(lambda: actors_gone(names), what=f"actors of {name} gone")
    for pid in pids:
        if pid:
            wait_until(lambda pid=pid: not is_alive(pid), what=f"process {pid} gone")  # type: ignore[misc]


def pid_of(actor: Any) -> int:
    """The process id of a member, 0 if it does not say."""
    try:
        return int(ray.get(actor.status.remote(), timeout=2).pid)
    except (ray.exceptions.RayError, TimeoutError):
        return 0


def is_alive(pid: int, started: str = "") -> bool:
    """Whether the process runs (one that is only not yet reaped does not). Ids are used again soon on a busy machine.

    Args:
        started: what ``start_of`` said of it; another process that has its id by now does not count.
    """
    try:
        threads = [Path(f"/proc/{pid}/task/{thread}/stat").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
        if f"Tgid:\t{pid}\n" not in Path(f"/proc/{pid}/status").read_text() or (started and start_of(pid) != started):
            return False  # a thread of another process has the id now, or another process
    except (FileNotFoundError, ProcessLookupError):
        return os.path.exists(f"/proc/{pid}") and is_alive(pid, started)  # a thread has just ended, or the process has
    return any(stat.rpartition(")")[2].split()[0] not in "ZX" for stat in threads)


def start_of(pid: int) -> str:
    """When a process started, in the kernel's words; with its id, that names it for good. Empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_stopped(pid: int) -> bool:
    """Whether every thread of the process is stopped (SIGSTOP takes a moment)."""
    stats = [Path(f"/proc/{pid}/task/{thread}/stat").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    return all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats)


def leader(cluster: Any) -> Any:
    """The member that leads, once one does."""

    def find() -> Any:
        status = cluster.status()
        return next((member for member in status.members if member.id == status.leader), None)

    return wait_until(find, what="a leader")


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is dead."""
    started = start_of(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid, started), what=f"process {pid} dead")


def serving(cluster: Any, members: int = 3) -> bool:
    """Whether that many members serve and one of them leads."""
    status = cluster.status()
    return bool(status.leader) and sum(not member.why_not_serving for member in status.members) == members


def not_serving(cluster: Any) -> dict[str, str]:
    """Why each member that does not serve does not."""
    return {member.name: member.why_not_serving for member in cluster.status().members if member.why_not_serving}


def kill_stragglers() -> None:
    """Nothing is to be left, but if something is, it is at least not left running."""
    with contextlib.suppress(Exception):
        ray.shutdown()
