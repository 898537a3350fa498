"""What processes cost, read from /proc, and how often they sync, counted by strace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds, by user and system together, that processes have used; those that are gone count nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def come_to_rest(busy: float = 0.1, patience: float = 20.0) -> None:
    """Wait until the machine has nothing to do: what was just started may still be at its start (Ray's workers, a
    database's first files), which is not part of what is measured.

    Args:
        busy: the share of all cores that may be in use.
        patience: seconds after which it is measured as it is.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = _cpu_time()
        time.sleep(1.0)
        used, total = (now - then for now, then in zip(_cpu_time(), before, strict=True))
        if used <= busy * total:
            return


def _cpu_time() -> tuple[int, int]:
    """Ticks of all cores together: in use, and in all."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def resident(pid: int) -> int:
    """Bytes of a process that are in memory and its own: what files back, such as libraries, is left out."""
    with contextlib.suppress(OSError, AttributeError):
        text = Path(f"/proc/{pid}/status").read_text()
        match = re.search(r"RssAnon:\s+(\d+)", text)
        return int(match[1]) * 1024 if match else 0
    return 0


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    count = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return count


def descendants(root: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def file_system(folder: str) -> str:
    """What kind of file system a folder lies on."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if (folder == mount or folder.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def count_syncs(pids: list[int], work: Callable[[], None]) -> list[int] | str:
    """How many fsync and fdatasync calls each of some processes makes meanwhile; or why that is not known."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    tracers = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for pid in pids:
                command = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-p", str(pid)]
                tracers.append(
                    subprocess.Popen(
                        [*command, "-o", f"{folder}/{pid}"], stderr=subprocess.DEVNULL, start_new_session=True
                    )
                )
            if not all(_traced(pid) for pid in pids):
                return "strace is not allowed to look at other processes here"
            work()
        finally:
            for tracer in tracers:
                tracer.send_signal(signal.SIGINT)
            for tracer in tracers:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    tracer.wait(10)
                if tracer.poll() is None:
                    tracer.kill()
        calls = [Path(f"{folder}/{pid}").read_text() for pid in pids]
    # A call that another thread's interrupts is written in two lines; only one of them begins it.
    return [len(re.findall(r"\bf(?:data)?sync\(", text)) for text in calls]


def _traced(pid: int, seconds: float = 5.0) -> bool:
    """Wait until all threads of a process are traced; whether they are."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            if all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads):
                return True
        except OSError:
            pass
        time.sleep(0.02)
    return False
