"""What a member that could not be built, or was not started, leaves behind: nothing."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from typing import Any

import pytest

from lab.patience import until
from raykeeper.actors.member import event_loop, wiring
from raykeeper.actors.member.event_loop import EventLoop
from raykeeper.actors.member.wiring import ProcessLocation
from raykeeper.actors.one_thread import NoThreadLeft
from raykeeper.actors.transport import lane_listener
from raykeeper.actors.transport.lane import HAS_LANES
from raykeeper.actors.transport.lane_server import LaneServer
from raykeeper.limits import Settings
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from simulation.disk import SimDisk

HERE = ProcessLocation("here", "127.0.0.1")


def data(disk: SimDisk) -> DataDir:
    first = (FirstMember(1, "m1", ""),)
    identity = Identity(cluster_name="c", cluster=7, member=1, name="m1", members=first, settings=Settings())
    return DataDir.create(disk, "data", identity)


def build(folder: DataDir) -> EventLoop:
    return EventLoop(folder, lambda member: None, lambda: None, HERE)  # type: ignore[arg-type, return-value]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lanes that were made, and then the pools of threads."""
    found: list[Any] = []

    def note(kind: Any) -> Any:
        def make(*arguments: Any, **named: Any) -> Any:
            found.append(kind(*arguments, **named))
            return found[-1]

        return make

    monkeypatch.setattr(wiring, "LaneServer", note(LaneServer))
    monkeypatch.setattr(wiring, "ThreadPoolExecutor", note(wiring.ThreadPoolExecutor))
    return found


def assert_ended(made: list[Any]) -> None:
    lanes, *workers = made
    assert lanes._closed
    until(lambda: not lanes._listener._thread.is_alive(), what="its listener has ended")
    for pool in workers:
        with pytest.raises(RuntimeError):
            pool.submit(print)


@pytest.mark.skipif(not HAS_LANES, reason="there are no lanes")
@pytest.mark.parametrize(
    ("where", "part"), [(wiring, "Replica"), (wiring, "DeathReports"), (event_loop, "MemberMetrics")]
)
def test_a_member_that_cannot_be_built_ends_its_lanes_and_threads(
    where: Any, part: str, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again and again: without descriptors, each try would take more of them."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(where, part, refuse)
    folder = data(SimDisk())
    with pytest.raises(OSError, match="Too many open files"):
        build(folder)
    folder.close()
    assert len(made) == 3
    assert_ended(made)


@pytest.mark.skipif(not HAS_LANES, reason="there are no lanes")
@pytest.mark.parametrize("pool", ["background", "operator"])
def test_a_member_without_a_thread_for_slow_work_does_not_start(
    pool: str, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries again. Later it may lack one more, but never all."""
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name.startswith(pool):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    folder = data(SimDisk())
    with pytest.raises(NoThreadLeft):
        build(folder)
    folder.close()
    assert_ended(made)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not HAS_LANES, reason="there are no lanes")
@pytest.mark.parametrize("lacks", ["socket", "epoll", "thread"])
def test_lanes_that_cannot_be_built_leave_no_descriptor(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data(SimDisk())
    refused: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        refused.append(lacks)
        if lacks == "thread":
            raise RuntimeError("can't start new thread")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    class Epoll:
        """Takes the end of the listener's wait, and no socket."""

        def __init__(self) -> None:
            self._epoll = epoll()
            self.close = self._epoll.close

        def register(self, fd: int, events: int) -> None:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                refuse()
            self._epoll.register(fd, events)

    epoll = select.epoll
    if lacks == "socket":
        monkeypatch.setattr(socket, "socket", refuse)
    elif lacks == "thread":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(lane_listener.select, "epoll", Epoll)
    before, errors = descriptors(), []
    for _ in range(5):
        try:
            build(folder)
        except (OSError, NoThreadLeft) as error:
            errors.append(str(error))  # its traceback would keep what is left
    monkeypatch.undo()
    folder.close()
    assert len(errors) == 5
    assert len(refused) >= 5
    until(lambda: descriptors() <= before, what="all is closed")


@pytest.mark.skipif(not HAS_LANES, reason="there are no lanes")
def test_a_loop_that_was_not_started_can_be_stopped(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data(SimDisk())
    closed = threading.Event()
    close = folder.close

    def note() -> None:
        close()
        closed.set()

    monkeypatch.setattr(folder, "close", note)
    loop = build(folder)
    loop.stop("no thread could be started")
    assert closed.is_set()
    assert_ended(made)
