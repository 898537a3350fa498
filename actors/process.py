"""The priority and the umask of the process of a member or of the supervisor.

Ray starts the processes of actors with a niceness of 15 (``RAY_worker_niceness``), so that work never delays Ray's own
daemons, which run at 0. A member is such a daemon itself: its heartbeats and answers must not wait for other programs
of a busy node, nor be counted as lost because of that. So it takes the daemons' niceness where it may: as root, or with
CAP_SYS_NICE, or as far as RLIMIT_NICE allows. Elsewhere nothing changes.

What it writes, or a library writes for it, is for its owner alone (``store/engine/private_files.py``).
"""

from __future__ import annotations

import contextlib
import os


def as_daemon() -> None:
    """Give this process the niceness of a daemon, if it is allowed to, and let nobody else read what it writes."""
    os.umask(0o077)
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) <= 0:
            return
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        # On Linux each thread has a niceness of its own, which those it starts inherit.
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)
