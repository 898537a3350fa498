"""What a nemesis has before it: the cluster, the processes that work, and the folders that they write to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.durable import DurableDisk
from lab.ray.faults import Faults
from lab.ray.proxies import Proxies
from lab.ray.tools import is_alive, is_stopped, start_of, wait_until

RECOVERY = 240.0
"""Seconds within which the cluster must be whole again once a fault is over: on a machine that does much else, a new
member alone may take a minute to start, and one that hangs is waited for."""

Bit = bool | Callable[[], bool]
"""Whether a fault did what it should; a function can tell only when the cluster is whole again."""
Fault = Generator[str, None, Bit]
"""Begins, yields what it did, and when it is let go on undoes itself and returns whether it bit."""


class NotNow(Exception):
    """Another fault, still on, leaves nothing for this one to do; or the machine does not let it be caused."""


@dataclass
class Field:
    """What there is to harm.

    Attributes:
        cluster: its ``Cluster``.
        faults: the switch.
        workers: the processes, by name: actor and pid.
        journals: where members note their syncs.
        folder: finds a member's data by its id.
        replace: starts another process in place of a worker that is dead.
        syncs: the file that says which syncs fail (``patches/sitecustomize.py``).
        mounts: file systems that are to be unmounted at the end.
        proxies: those in the foreground; there may be none.
        layer: knows what of the members' files is durable; there may be none.
        gcs_outlives: whether Ray's GCS finds again what it knew (GCS fault tolerance).
    """

    cluster: Any
    faults: Faults
    workers: dict[str, tuple[Any, int]]
    journals: Path
    folder: Callable[[int], Path]
    replace: Callable[[str], None]
    rng: random.Random
    syncs: Path
    mounts: list[Path]
    proxies: Proxies | None = None
    layer: DurableDisk | None = None
    gcs_outlives: bool = False

    def leader(self) -> Any:
        """The leader.

        Raises:
            NotNow: nobody does.
        """
        status = self.cluster.status()
        found = next((member for member in status.members if member.id == status.leader), None)
        if found is None:
            raise NotNow("nobody leads")
        return found

    def members(self) -> list[Any]:
        """Those that have a process, and say so.

        Raises:
            NotNow: there are none.
        """
        found = [member for member in self.cluster.members() if member.pid]
        if not found:
            raise NotNow("no member answers")
        return found

    def follower(self) -> Any:
        """One that does not lead.

        Raises:
            NotNow: there is none.
        """
        lead = self.leader()
        found = [member for member in self.members() if member.id != lead.id]
        if not found:
            raise NotNow("no follower answers")
        return self.rng.choice(found)

    def proxy(self) -> tuple[Proxies, str]:
        """The proxies, and the endpoint of one.

        Raises:
            NotNow: there are none.
        """
        if self.proxies is None or not self.proxies.endpoints:
            raise NotNow("there are no proxies")
        return self.proxies, self.rng.choice(self.proxies.endpoints)

    def others(self, member: Any) -> list[int]:
        return [each.id for each in self.members() if each.id != member.id]

    def anyone(self) -> Any:
        """A member, whichever it is."""
        return self.rng.choice(self.members())

    def again(self, member: Any) -> Any:
        """The same member as it is now, perhaps in another process; ``None`` if it takes part no more."""
        return next((each for each in self.cluster.members() if each.id == member.id), None)

    @contextmanager
    def breaking(self, rule: str) -> Iterator[None]:
        """Meanwhile syncs are subject to this rule of ``patches/sitecustomize.py``, beside those of other faults."""
        line = f"{rule}\n"
        with self.syncs.open("a") as file:
            file.write(line)
        try:
            yield
        finally:
            others = self.syncs.with_suffix(".others")
            others.write_text(self.syncs.read_text().replace(line, "", 1))
            others.replace(self.syncs)

    def tidy(self) -> None:
        """Unmount what lies over the folders of members that take part no more."""
        alive = {self.folder(member.id) for member in self.cluster.members()}
        for folder in [folder for folder in self.mounts if folder not in alive]:
            self.unmount(folder)

    def mount(self, folder: Path, *arguments: str) -> None:
        """Mount something over a folder, until ``unmount`` or the end.

        Raises:
            NotNow: this process may not.
        """
        done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotNow(f"mount: {done.stderr.strip()}")
        self.mounts.append(folder)

    def unmount(self, folder: Path) -> None:
        """Undo the last ``mount`` over a folder, even if files of it are open."""
        self.mounts.remove(folder)
        unmount(folder)


def unmount(folder: Path) -> None:
    """Take away what was mounted last over a folder, even if files of it are open."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def kill(pid: int) -> bool:
    """SIGKILL; true once the process is dead."""
    started = start_of(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid, started), what=f"process {pid} dead")
    return True


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """The processes are stopped, and dead afterwards: what happens to their files meanwhile they never learn."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(map(is_stopped, pids)), 10, "processes stopped")
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                kill(pid)
