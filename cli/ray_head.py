"""The Ray head that `raykeeper up` and `restore` start if no Ray runs, and that `raykeeper down` stops again.

It is `ray start --head --block`, one process that supervises all of Ray's own, in a session of its own: it outlives the
command, and can be ended without touching any other Ray on the machine (`ray stop` would). It holds a lock on the state
file while it lives. The content of the file (its process id, and where `ray start` has written its address, which
depends on the environment) is valid only while the lock is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..actors.ray_local import may_run_here, ray_note
from ..errors import ClusterNotFound
from ..limits import HEAD_IDLE_TIMEOUT_S, HEAD_START_TIMEOUT_S, HEAD_STOP_TIMEOUT_S
from .stdio import tell

if TYPE_CHECKING:
    import subprocess

_RAY = (sys.executable, "-m", "ray.scripts.scripts")


class RayHead:
    """The one Ray head of this user on this machine, whether it runs or not.

    Args:
        folder: for its state and its output.
        options: additional ones for `ray start`.
    """

    def __init__(self, folder: Path | None = None, options: Sequence[str] = ()) -> None:
        self._options = options
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        self._folder = folder or Path(base) / "raykeeper"
        self._state = self._folder / "ray-head.pid"
        self._log = self._folder / "ray-head.log"

    def runs(self) -> bool:
        """Whether the head that was started here still runs."""
        try:
            with self._state.open("rb+") as file:
                return not _try_lock(file.fileno())
        except OSError:  # there is none, nor can there be one if a service's home is /dev/null
            return False

    def address(self) -> str | None:
        """The address of the running head; ``None`` if none runs."""
        if not self.runs():
            return None
        said = re.search(r"--address='([^']+)'", self._log.read_text(errors="replace"))
        return said[1] if said else None

    def start_if_none_runs(self) -> bool:
        """Start the head unless a Ray runs on this machine already; True if it was started.

        Raises:
            ClusterNotFound: Ray did not start; the message says why.
        """
        if self.runs() or _ray_runs():
            return False
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._state.open("ab+") as state, self._log.open("wb") as log:
            if not _try_lock(state.fileno()):
                return False  # another `up` is starting it
            head = self._start(state, log)
        try:
            self._wait(head)
        except BaseException:
            self.stop()
            raise
        return True

    def _start(self, state: IO[bytes], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start `ray start --block`, which inherits the lock on the state file and so holds it while it lives."""
        import subprocess  # here and below: most commands start nothing

        head = subprocess.Popen(
            [
                *_RAY,
                "start",
                "--head",
                "--block",
                "--include-dashboard=false",
                "--disable-usage-stats",
                *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_timeout_ms_task_wait_for_death_info": "0"},
            pass_fds=[state.fileno()],
            start_new_session=True,
        )
        state.truncate(0)
        state.write(b"%d\n%s" % (head.pid, os.fsencode(ray_note())))
        return head

    def _wait(self, head: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + HEAD_START_TIMEOUT_S
        while b"Ray runtime started" not in self._log.read_bytes():
            if head.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace").split("\n")
                reason = next((line.strip() for line in reversed(said) if "rror" in line), f"see {self._log}")
                raise ClusterNotFound(f"Ray did not start: {reason}")
            time.sleep(0.05)

    def idle(self, ended: str) -> bool:
        """Whether no RayKeeper cluster has an actor on the Ray that this process is attached to.

        Args:
            ended: a cluster that has been ended, maybe just now. Ray may name its actors for a moment more. That is
                waited for, for ``HEAD_IDLE_TIMEOUT_S`` at most, unless there are others, too. What is named even then
                is told.
        """
        import ray

        from ..actors.naming import NAMESPACE, actor_name

        deadline = time.monotonic() + HEAD_IDLE_TIMEOUT_S
        while ray.is_initialized():
            actors = ray.util.list_named_actors(all_namespaces=True)
            names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
            if not names:
                break
            if not all(name.startswith(actor_name(ended, "")) for name in names):
                return False
            if time.monotonic() > deadline:
                tell(
                    f"Ray's head keeps running: Ray still names {', '.join(sorted(names))}, after "
                    f"{HEAD_IDLE_TIMEOUT_S:g} s; to stop it, run `raykeeper down --cluster {ended}` again"
                )
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """End the head, if it runs, with all processes of its Ray; returns when they are gone.

        SIGTERM goes to the head alone, which ends its processes in order; SIGKILL to its whole session.
        """
        import ray

        if ray.is_initialized():  # otherwise an abandoned thread may still be using it
            ray.shutdown()
        address = self.address()
        try:
            started = self._state.read_bytes().partition(b"\n")
        except OSError:
            return
        pid, note = int(started[0] or 0), Path(os.fsdecode(started[2]) or ray_note())
        for how in (signal.SIGTERM, signal.SIGKILL):
            if not self.runs() or not pid:
                break
            os.kill(pid, how) if how is signal.SIGTERM else os.killpg(pid, how)
            deadline = time.monotonic() + HEAD_STOP_TIMEOUT_S
            while self.runs() and time.monotonic() < deadline:
                time.sleep(0.05)
        self._state.unlink(missing_ok=True)
        # Ray leaves its address there; a later join of "auto" would wait minutes for a head that is gone.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if address and note.read_text().strip() == address:
                note.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _ray_runs() -> bool:
    """Whether a Ray runs on this machine that this user may join; tried in a process of its own, unless a look says
    that none can: to load Ray there takes a second.

    A process remembers for its lifetime that Ray found no token file, and the head is about to write one.
    """
    if not may_run_here():
        return False
    import subprocess

    asked = [sys.executable, "-c", "from raykeeper.actors.ray_session import join_ray; join_ray()"]
    try:
        done = subprocess.run(
            asked, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=HEAD_START_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False  # it waits for a Ray that is gone
    return done.returncode == 0
