"""What a process says of itself: host, pid and start, without Ray as well as with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from raykeeper.actors.this_process import current_task, start_of, this_client
from raykeeper.schema.client_identity import is_bounded

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")


def test_without_ray_the_operating_system_is_asked() -> None:
    who = this_client()
    assert (who.host, who.pid) == (socket.gethostname(), os.getpid())
    assert (who.node, who.job, who.actor) == ("", "", "")
    assert abs(who.since - time.time()) < 3600
    assert is_bounded(who)
    assert current_task() == ""


@linux
def test_a_process_is_known_by_its_start() -> None:
    who = this_client()
    assert who.started == start_of(os.getpid()) > 0
    assert len(who.boot) == 36
    assert who.pid_namespace > 0


@linux
def test_two_processes_of_one_name_have_their_own_start() -> None:
    """The name in /proc may hold spaces and parentheses."""
    script = "import sys; open('/proc/self/comm', 'w').write(') S 1 ('); print(open('/proc/self/stat').read()); " + (
        "sys.stdout.flush(); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        line = other.stdout.readline().decode()
        assert ") S 1 (" in line
        assert start_of(other.pid) == int(line.rpartition(")")[2].split()[19]) >= start_of(os.getpid())
        other.communicate()


def test_of_a_process_that_is_gone_there_is_no_start() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        other.wait()
    assert start_of(other.pid) == 0
