"""The log of a member, supervisor or proxy, read on the node where it runs or ran; and what its crashes left there.

Each has a file of its own among Ray's log files (``log_files.py``), with the older ones beside it. A process that
crashed says why on its standard error, which Ray keeps in a file named after the process; the lines of the member's log
tell which processes it has had.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ...limits import LOG_OLD_FILES, MAX_LOG_TAIL_BYTES
from ..log_files import log_file_name, ray_log_folder

_PID = re.compile(r"^\S+ \S+ [A-Z]+ ([0-9]+) ")
"""As ``log_files.py`` begins a line: date, time, level, process."""
_WORKER = re.compile(r"worker-.*-([0-9]+)\.(err|out)")
_RAYS_OWN = re.compile(r":(actor_name|task_name|job_id):|^\s*$")
"""Lines that Ray itself writes to these files, and that say nothing."""


class LogText(NamedTuple):
    """The end of one file.

    Attributes:
        file: its path on the node.
        lines: oldest first.
    """

    file: str
    lines: list[str]


def read_logs(cluster: str, name: str, lines: int) -> list[LogText]:
    """What this node has: to be run by Ray on it. Empty if it has nothing.

    Args:
        cluster: its name.
        name: of the member (``m1``), or ``supervisor``, or of a proxy's actor.
        lines: the newest ones, of each file, that are wanted.
    """
    folder = ray_log_folder()
    return [] if folder is None else read_logs_in(folder, cluster, name, lines)


def read_logs_in(folder: str, cluster: str, name: str, lines: int) -> list[LogText]:
    """The same in a folder of Ray's log files."""
    path = os.path.join(folder, log_file_name(cluster, name))
    own = deque[str](maxlen=lines)
    pids: set[str] = set()
    for each in [*(f"{path}.{number}" for number in range(LOG_OLD_FILES, 0, -1)), path]:
        said = _tail(each)
        pids.update(match[1] for line in said if (match := _PID.match(line)))
        own.extend(said)
    found = [LogText(path, list(own))] if own else []
    for entry in _listed(folder):
        worker = _WORKER.fullmatch(entry)
        if worker and worker[1] in pids:
            said = [line for line in _tail(os.path.join(folder, entry)) if not _RAYS_OWN.search(line)]
            if said:
                found.append(LogText(os.path.join(folder, entry), said[-lines:]))
    return found


def _listed(folder: str) -> Iterable[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return ()


def _tail(path: str) -> list[str]:
    """The lines at the end of a file, of ``MAX_LOG_TAIL_BYTES`` at most; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LOG_TAIL_BYTES))
            text = file.read(MAX_LOG_TAIL_BYTES).decode(errors="backslashreplace")
    except OSError:
        return []
    lines = text.splitlines()
    return lines[1:] if size > MAX_LOG_TAIL_BYTES else lines
