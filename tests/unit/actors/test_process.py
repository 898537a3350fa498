"""A member's place before the processor, in processes that begin as Ray's actors do: with a niceness of 15."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading
from raykeeper.actors.process import as_daemon

def niceness():
    return [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")]

over = threading.Event()
older = threading.Thread(target=over.wait)
older.start()
if sys.argv[1]:
    os.setuid(int(sys.argv[1]))
as_daemon()
younger = threading.Thread(target=over.wait)
younger.start()
print(*niceness())
over.set()
"""
NOBODY = "65534"


def begun(user: str = "") -> set[int]:
    """The niceness of each thread of a process that began with 15, and then asked for a daemon's."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, user],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: os.nice(15 - os.getpriority(os.PRIO_PROCESS, 0)),
    )
    assert done.returncode == 0, done.stderr
    return set(map(int, done.stdout.split()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may always take a better place")
def test_who_may_takes_the_niceness_of_daemons_for_all_threads() -> None:
    assert begun() == {0}


def test_who_may_not_stays_where_it_is_and_nothing_is_raised() -> None:
    assert begun(NOBODY if os.geteuid() == 0 else "") == {15}
