"""Which deaths are noticed: those of which the kernel is certain, and nothing that only looks like one."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from raykeeper.actors.transport.process_monitors import ProcessMonitors, open_process, peer_process
from raykeeper.limits import MAX_SESSIONS_MONITORED, MONITOR_LINGER_S

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs descriptors of processes")


class Kernel:
    """Processes by id; ids are given again."""

    def __init__(self) -> None:
        self.lives: dict[int, str] = {}
        self.opened: dict[int, str] = {}
        self.monitors = ProcessMonitors(self.open, self.close)

    def open(self, pid: int) -> int:
        if pid not in self.lives:
            raise ProcessLookupError(pid)
        fd = 100 + len(self.opened)
        self.opened[fd] = self.lives[pid]
        return fd

    def close(self, fd: int) -> None:
        self.opened[fd] += ", closed"

    def readable(self) -> list[int]:
        return [fd for fd, who in self.opened.items() if "closed" not in who and who not in self.lives.values()]


def test_a_process_takes_its_sessions_along() -> None:
    kernel = Kernel()
    kernel.lives = {7: "one", 8: "other"}
    monitors = kernel.monitors
    fd = monitors.monitor("lane", 7, 70)
    assert monitors.monitor("lane", 7, 71) == fd
    monitors.monitor("lane of another", 8, 80)
    del kernel.lives[7]
    assert kernel.readable() == [fd]
    assert monitors.process_ended(fd) == (70, 71)
    assert monitors.process_ended(fd) == ()
    assert len(monitors) == 1


def test_the_end_of_a_lane_ends_nothing_and_the_death_is_still_noticed_for_a_while() -> None:
    kernel = Kernel()
    kernel.lives = {7: "one"}
    monitors = kernel.monitors
    fd = monitors.monitor("lane", 7, 70)
    assert monitors.lane_ended("lane", 1000.0) is None  # type: ignore[func-returns-value]
    monitors.expire(1000.0 + 0.9 * MONITOR_LINGER_S)
    assert len(monitors) == 1
    again = monitors.monitor("next lane", 7, 70)
    monitors.expire(1000.0 + MONITOR_LINGER_S)
    assert "closed" in kernel.opened[fd]
    assert monitors.process_ended(fd) == ()
    assert monitors.process_ended(again) == (70,)


def test_an_id_that_is_given_again_is_another_process() -> None:
    """The second process of that id has a session of its own, which the death of the first does not end."""
    kernel = Kernel()
    kernel.lives = {7: "first"}
    monitors = kernel.monitors
    fd = monitors.monitor("lane", 7, 70)
    kernel.lives = {7: "second"}
    other = monitors.monitor("lane of the second", 7, 71)
    assert kernel.readable() == [fd]
    assert monitors.process_ended(fd) == (70,)
    assert kernel.readable() == []
    assert monitors.process_ended(other) == (71,)


def test_who_cannot_be_seen_is_not_monitored() -> None:
    kernel = Kernel()
    with pytest.raises(OSError, match="seen"):
        kernel.monitors.monitor("lane", 0, 70)
    with pytest.raises(ProcessLookupError):
        kernel.monitors.monitor("lane", 7, 70)
    assert len(kernel.monitors) == 0


def test_a_process_has_only_so_many_sessions() -> None:
    kernel = Kernel()
    kernel.lives = {7: "one"}
    for session in range(1, MAX_SESSIONS_MONITORED + 1):
        kernel.monitors.monitor("lane", 7, session)
    with pytest.raises(OSError, match="so many"):
        kernel.monitors.monitor("lane", 7, 1000)
    kernel.monitors.monitor("lane", 7, 1)


# --- the real kernel -------------------------------------------------------------------------------------------------

CONNECT = """
import os, socket, sys, threading, time
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
{}
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")
        sock.listen()
        sock.settimeout(60)
        yield sock


def start(listener: socket.socket, then: str) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """A process that connects; its connection, and a descriptor of what the kernel says has connected."""
    name = listener.getsockname()[1:].decode()
    process = subprocess.Popen([sys.executable, "-c", CONNECT.format(then), name], stdin=subprocess.PIPE)
    sock, _ = listener.accept()
    assert peer_process(sock) == process.pid
    return process, sock, open_process(process.pid)


def is_readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def end(process: subprocess.Popen[bytes], sock: socket.socket, fd: int) -> None:
    process.kill()
    process.wait(60)
    assert is_readable(fd, 60)
    os.close(fd)
    sock.close()


def read_until_end(sock: socket.socket) -> None:
    sock.settimeout(60)
    while sock.recv(100):
        pass


def test_a_stopped_process_is_not_dead_and_a_killed_one_is(listener: socket.socket) -> None:
    process, sock, fd = start(listener, "time.sleep(600)")
    process.send_signal(signal.SIGSTOP)
    assert os.waitpid(process.pid, os.WUNTRACED)[0] == process.pid
    assert not is_readable(fd, 0.1)
    end(process, sock, fd)


def test_a_closed_connection_and_another_program_are_no_death(listener: socket.socket) -> None:
    """``exec`` closes the lane; the process is the same."""
    process, sock, fd = start(listener, 'os.execvp("sleep", ["sleep", "600"])')
    read_until_end(sock)
    assert not is_readable(fd, 0.1)
    end(process, sock, fd)


def test_a_thread_that_outlives_the_first_one_keeps_the_process_alive(listener: socket.socket) -> None:
    then = """
import ctypes
def other():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    sock.sendall(b"alone")
    time.sleep(600)
threading.Thread(target=other, daemon=True).start()
ctypes.CDLL(None).syscall(60, 0)  # the end of this thread, not of the process
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the number of a system call")
    process, sock, fd = start(listener, then)
    sock.settimeout(60)
    assert sock.recv(5) == b"alone"
    assert not is_readable(fd, 0.1)
    end(process, sock, fd)


def test_a_child_with_the_inherited_socket_is_not_its_parent(listener: socket.socket) -> None:
    """It keeps the connection open, and the parent is dead."""
    then = """
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
sock.sendall(b"forked")
time.sleep(600)
"""
    process, sock, fd = start(listener, then)
    sock.settimeout(60)
    assert sock.recv(6) == b"forked"
    process.kill()
    assert is_readable(fd, 60)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    assert process.stdin is not None
    process.stdin.close()  # which ends the child
    sock.setblocking(True)
    read_until_end(sock)
    end(process, sock, fd)


def test_only_a_process_of_this_machine_has_an_id() -> None:
    with socket.socket() as tcp:
        assert peer_process(tcp) == 0
    assert peer_process("no socket") == 0
    one, other = socket.socketpair()
    assert peer_process(one) == os.getpid()
    one.close()
    other.close()
