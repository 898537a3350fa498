"""What a campaign keeps so that a bad end can be explained, and what it says of safety even then.

The diary is written while the campaign runs. The rest is gathered when it ends badly, from processes that may hang,
so each part is tried by itself, and what could not be had is said in ``evidence.txt``:

``diary.jsonl``     each fault: when it began, ended, when all was whole again, and whether it bit
``stacks/``         of each Python process of the campaign's Ray, as it is now (``faulthandler`` on a signal)
``processes.txt``   all of them, with their states
``status.txt``      what the members, the supervisor and Ray say
``ray-logs/``       of Ray, and with them of the members, the supervisor and the workers
``files.txt``       the members' folders; these stay in ``data/``, those on file systems of their own in ``mounted/``
``history.jsonl``, ``changes.jsonl``  what the processes did, and the store's own history, as far as it could be read
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from lab.ray.patches.stacks import SIGNAL
from lab.ray.tools import is_alive, is_stopped
from raykeeper.actors.cluster.supervisor_handle import supervisor_name
from raykeeper.actors.naming import NAMESPACE

MOST = 8 << 20
"""Bytes that are kept of the end of a log."""
STACKS_S = 5.0
"""For processes to write down where they are."""


class Diary:
    """What the nemesis did, line by line, as it happens.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def note(self, fault: str, phase: str, **more: Any) -> None:
        """One more line, with both clocks."""
        line = {"monotonic_ns": time.monotonic_ns(), "wall": time.time(), "fault": fault, "phase": phase, **more}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Write nothing more."""
        self._file.close()


class Evidence:
    """Keeps it in a campaign's folder.

    Args:
        folder: the campaign's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._missing: list[str] = []

    def keep(self, error: BaseException, parts: Iterable[tuple[str, Callable[[], Any]]]) -> list[str]:
        """Do each part; what of it failed.

        Args:
            error: why the campaign ends.
            parts: name and function.
        """
        text = "".join(traceback.format_exception(error))
        for name, part in parts:
            try:
                part()
            except BaseException as failed:
                self._missing.append(f"{name}: {failed!r}")
        (self._folder / "evidence.txt").write_text(text + "".join(f"\nnot kept: {line}" for line in self._missing))
        return self._missing

    def stacks(self, where: Path) -> None:
        """Have each process that notes its stack at a signal do so now, and this one, too.

        Args:
            where: the folder with a file for each process id.
        """
        into = self._folder / "stacks"
        into.mkdir(exist_ok=True)
        asked = []
        for path in where.iterdir():
            pid = int(path.name)
            if is_alive(pid) and not is_stopped(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGNAL)
                    asked.append(path)
        until = time.monotonic() + STACKS_S
        before: list[int] = []
        while time.monotonic() < until:  # they are written piece by piece
            sizes = [path.stat().st_size for path in asked]
            if all(sizes) and sizes == before:
                break
            before = sizes
            time.sleep(0.2)
        for path in where.iterdir():
            if path.stat().st_size:
                shutil.copy(path, into / path.name)
        with (into / "campaign").open("w") as file:  # of all threads: faulthandler's list ends after 100
            for number, frame in sys._current_frames().items():
                file.write(f"Thread {number:#x}:\n{''.join(traceback.format_stack(frame))}\n")

    def processes(self) -> None:
        """All processes of the machine, with their states and what they wait for."""
        listed = subprocess.run(
            ["ps", "-eo", "pid,ppid,stat,wchan:20,etimes,args"], capture_output=True, text=True, timeout=60, check=False
        )
        (self._folder / "processes.txt").write_text(listed.stdout)

    def logs(self, session: Path) -> None:
        """Ray's logs, and those that members write among them; of long ones the end."""
        into = self._folder / "ray-logs"
        for path in sorted(session.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            copy = into / path.relative_to(session)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - MOST))
                copy.write_bytes(file.read())

    def files(self, data: Path, mounts: Iterable[Path] = ()) -> None:
        """A list of the members' files, and copies of those that go with a mount."""
        with (self._folder / "files.txt").open("w", encoding="utf-8") as file:
            for path in sorted(data.rglob("*")):
                with suppress(OSError):
                    found = path.lstat()
                    file.write(f"{found.st_size:>12} {found.st_mtime_ns} {path.relative_to(data)}\n")
        for mounted in mounts:
            with suppress(OSError, shutil.Error):
                shutil.copytree(mounted, self._folder / "mounted" / mounted.name, ignore=_filler)

    def status(self, ask: Iterable[tuple[str, Callable[[], Any]]]) -> None:
        """What is answered to some questions, or that nothing is."""
        with (self._folder / "status.txt").open("w", encoding="utf-8") as file:
            for what, question in ask:
                try:
                    said = question()
                except Exception as error:
                    said = repr(error)
                lines = said if isinstance(said, (list, tuple)) else [said]
                file.write(f"--- {what}\n" + "".join(f"{line}\n" for line in lines))


def questions_to(cluster: Any) -> list[tuple[str, Callable[[], Any]]]:
    """What to ask a cluster that is not as it should be."""

    def supervisor() -> Any:
        return ray.get_actor(supervisor_name(cluster.name), namespace=NAMESPACE)

    return [
        ("members", lambda: cluster.status(timeout=15).members),
        ("alarms", lambda: cluster.status(timeout=15).alarms),
        ("supervisor", lambda: ray.get(supervisor().lines.remote(), timeout=15)),
        ("it does", lambda: ray.get(supervisor().activity.remote(), timeout=15)),
        ("events", lambda: cluster.events(timeout=15)),
    ]


def _filler(folder: str, names: list[str]) -> list[str]:
    """What only takes room on a disk that was to be full."""
    return [name for name in names if name == "filler"]
