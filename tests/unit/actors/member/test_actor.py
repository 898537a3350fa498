"""What a member does before it looks into a frame, and while it does not serve; without Ray."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from lab.patience import PATIENCE, until
from raykeeper.actors.member import actor
from raykeeper.actors.member.actor import Member, deadline_of
from raykeeper.actors.member.member_actor import MemberHost
from raykeeper.actors.naming import GAVE_UP, MemberSpec, encode_member_spec
from raykeeper.actors.one_thread import NoThreadLeft
from raykeeper.errors import NoSpace
from raykeeper.schema.commands import ClientWrite, ClientWrites
from raykeeper.schema.frames import Close, KeepAlive, Open, Read, Reads, Writes
from raykeeper.schema.operations import KeyRange, Put, Range
from raykeeper.schema.operator_frames import AskStatus
from raykeeper.store import data_lock
from raykeeper.store.data_copies import read_served
from raykeeper.store.data_dir import DataDir, LogDamaged


def public(kind: type) -> dict[str, list[str]]:
    """The methods of a class, and their parameters without the one that Ray adds."""
    return {
        name: [str(each) for each in inspect.signature(method).parameters.values() if each.name != "_ray_trace_ctx"]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_the_actor_class_passes_on_every_method() -> None:
    assert public(MemberHost) == public(Member)


@pytest.mark.parametrize(
    ("request_", "deadline"),
    [
        (Writes(1, 2.5, ClientWrites(7, 1, (ClientWrite(1, Put(b"k", b"v")),))), 2.5),
        (Reads(1, 3.0, False, (Read(Range(KeyRange(b"k"))),)), 3.0),
        (Open(1, 0.25, b"nonce"), 0.25),
        (KeepAlive(1, 4, 7), 4.0),
        (Close(1, 5.0, 7), 5.0),
        (AskStatus(), 0.0),
        (["no", "request"], 0.0),
    ],
)
def test_the_deadline_is_read_without_decoding_the_rest(request_: object, deadline: float) -> None:
    assert deadline_of(msgspec.msgpack.encode(request_)) == deadline


def test_noise_has_no_deadline() -> None:
    assert deadline_of(b"") == deadline_of(b"\xc1") == 0.0


Start = Callable[[Path], Member]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Start]:
    """Starts a member over a folder, whose disk is full for as long as a test lasts, and waits until it has tried a few
    times."""
    tried: list[float] = []
    members: list[Member] = []

    def full(*_: object, **__: object) -> DataDir:
        tried.append(time.monotonic())
        raise NoSpace("no room")

    for name in ("as_daemon", "raise_limit"):
        monkeypatch.setattr(actor, name, lambda: None)
    monkeypatch.setattr(actor, "log_to_ray", lambda cluster, member: None)
    monkeypatch.setattr(actor.sys, "setswitchinterval", lambda seconds: None)
    monkeypatch.setattr(actor.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0a"))
    monkeypatch.setattr(actor, "OPEN_PAUSE_S", 0.001)
    monkeypatch.setattr(actor, "OPEN_MAX_PAUSE_S", 0.001)
    monkeypatch.setattr(actor.DataDir, "open", full)
    caplog.set_level(logging.INFO, "raykeeper.member")

    def begin(folder: Path) -> Member:
        made = Member(encode_member_spec(MemberSpec("c", 7, 1, "m1", str(folder), "pin")))
        members.append(made)
        until = time.monotonic() + PATIENCE
        while len(tried) < 5:
            assert time.monotonic() < until
            time.sleep(0.001)
        return made

    yield begin
    for made in members:
        made.stop()


@pytest.fixture
def member(start: Start, tmp_path: Path) -> Member:
    folder = tmp_path / "m1"
    folder.mkdir(mode=0o700)
    return start(folder)


def test_a_folder_that_others_could_read_is_closed_before_it_serves_and_that_is_said_once(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    folder = base / "m1"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "000001.sst").write_bytes(b"data")
    for path, mode in (
        (folder / "state" / "000001.sst", 0o644),
        (folder / "state", 0o755),
        (folder, 0o755),
        (base, 0o711),
    ):
        path.chmod(mode)
    start(folder).stop()
    found = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in [base, *base.rglob("*")]}
    assert found == {
        "base": 0o700,
        "base/m1": 0o700,
        "base/m1/state": 0o700,
        "base/m1.lock": 0o600,
        "base/m1/state/000001.sst": 0o600,
    }
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [each for each in warnings if "open to other users" in each] == [
        f"cluster c, m1: {path} was open to other users of this machine; now it is not" for path in (base, folder)
    ]


def test_what_is_tried_again_and_again_is_logged_once_and_a_stop_is_no_warning(
    member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    member.stop()
    records = [*caplog.get_records("setup"), *caplog.records]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("WARNING", "cluster c, m1: does not serve: NoSpace: no room"),
        ("INFO", "cluster c, m1: does not serve: it was stopped"),
    ]


def test_a_disk_that_refuses_to_be_read_at_a_start_is_asked_again(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it refuses may be there: neither the log nor the folder is taken for lost."""
    asked: list[bool] = []

    def refuse(*_: object, **__: object) -> DataDir:
        asked.append(True)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(actor.DataDir, "open", refuse)
    until(lambda: len(asked) >= 5, what="it tries again")
    status = member.status()
    assert os.strerror(errno.EIO) in status.why_not_serving
    assert not status.lost
    assert not status.missing


def test_a_folder_that_the_disk_refuses_to_show_is_not_a_missing_one(start: Start, tmp_path: Path) -> None:
    """A member whose data is missing is replaced. A symbolic link to itself is refused like a sector that is bad."""

    def point(target: str) -> None:
        (tmp_path / "new").symlink_to(target)
        os.replace(tmp_path / "new", tmp_path / "base")

    (tmp_path / "disk" / "m1").mkdir(parents=True)
    point("disk")
    member = start(tmp_path / "base" / "m1")
    point("base")
    until(lambda: os.strerror(errno.ELOOP) in member.status().why_not_serving, what="its folder is refused")
    status = member.status()
    assert not status.lost
    assert not status.missing
    point("disk")
    until(lambda: "no room" in member.status().why_not_serving, what="it tries again")


def test_it_says_whether_it_opens_its_data_or_waits_for_the_lock(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def opens(*_: object, **__: object) -> DataDir:
        entered.set()
        go_on.wait(PATIENCE)
        raise NoSpace("no room")

    monkeypatch.setattr(actor.DataDir, "open", opens)
    assert entered.wait(PATIENCE)
    status = member.status()
    assert status.opening
    assert (status.role, status.why_not_serving) == ("starting", "NoSpace: no room"), "after many attempts"
    member.open()
    assert member.status().role == "starting"
    monkeypatch.setattr(actor, "try_lock", lambda base, name: None)
    go_on.set()
    until(lambda: "holds the lock" in member.status().why_not_serving, what="it waits for the lock")
    assert not member.status().opening


def test_a_lock_that_the_file_system_refuses_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def refuse(fd: int, how: int) -> None:
        opened.append(fd)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(data_lock.fcntl, "flock", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        data_lock.try_lock(str(tmp_path), "m1")
    lock = os.path.realpath(data_lock.lock_path(str(tmp_path), "m1"))
    assert opened
    assert not any(os.path.realpath(f"/proc/self/fd/{fd}") == lock for fd in opened)


def refuse_at_length(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """From now on the pauses are longer than a test; returns by whom it is tried."""
    tried: list[threading.Thread] = []

    def full(*_: object, **__: object) -> DataDir:
        tried.append(threading.current_thread())
        raise NoSpace("no room at all")

    for name in ("OPEN_PAUSE_S", "OPEN_MAX_PAUSE_S"):
        monkeypatch.setattr(actor, name, 10 * PATIENCE)
    monkeypatch.setattr(actor.DataDir, "open", full)
    return tried


def test_who_asks_it_to_open_its_data_ends_the_pause_and_starts_no_second_thread(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = refuse_at_length(monkeypatch)
    for _ in range(5):
        before = len(tried)
        member.open()
        until(lambda before=before: len(tried) > before, what="it tries again")
        assert "NoSpace" in member.status().why_not_serving
    assert len(set(tried)) == 1
    until(lambda: member.status().role == GAVE_UP, what="it says that it has given up")


def test_a_start_that_fails_for_good_is_tried_once(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another attempt is under way nothing is said of what the first one has found."""
    tried: list[bool] = []

    def lost(*_: object, **__: object) -> DataDir:
        tried.append(True)
        raise LogDamaged("it is damaged")

    monkeypatch.setattr(actor.DataDir, "open", lost)
    until(lambda: not member._opens, what="it has given up")
    for times in range(1, 20):
        tried.clear()
        member.open()
        until(lambda: not member._opens, what="it has given up again")
        assert len(tried) == 1, times
        assert member.status().lost


def test_a_stop_ends_the_pause_and_it_can_be_opened_after_it(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refuse_at_length(monkeypatch)
    member.open()
    until(lambda: tried, what="it tries again")
    member.stop()
    tried[0].join(PATIENCE)
    assert not tried[0].is_alive()
    assert member.status().why_not_serving == "it was stopped"
    member.open()
    until(lambda: tried[-1] is not tried[0], what="another thread tries")


def test_the_pauses_grow_up_to_a_bound(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Pause(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return super().wait(timeout)

    monkeypatch.setattr(actor, "OPEN_MAX_PAUSE_S", 0.003)
    member._open_now = Pause()
    until(lambda: pauses.count(0.003) >= 3, what="the longest pauses")
    assert pauses == sorted(pauses)
    assert set(pauses) <= {0.001, 0.002, 0.003}


@pytest.mark.parametrize("lacks", [NoThreadLeft("none is left"), MemoryError("none is left")], ids=["thread", "memory"])
def test_a_start_that_lacks_a_thread_or_memory_is_tried_again(
    lacks: Exception, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def starve(*_: object, **__: object) -> DataDir:
        asked.append(True)
        raise lacks

    monkeypatch.setattr(actor.DataDir, "open", starve)
    until(lambda: len(asked) >= 5, what="it tries again")
    status = member.status()
    assert "none is left" in status.why_not_serving
    assert not status.lost


def test_without_a_thread_to_open_its_data_it_says_so_and_can_be_asked_again(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    member.stop()
    until(lambda: not member._opens, what="it tries no more")
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == "open data":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as starved:
        starved.setattr(threading.Thread, "start", start_or_not)
        with pytest.raises(NoThreadLeft):
            member.open()
        status = member.status()
        assert (status.role, "no thread" in status.why_not_serving) == (GAVE_UP, True)
    member.open()
    until(lambda: "no room" in member.status().why_not_serving, what="it tries again")


def refuse(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Opened:
    """The disk lets a member open its data from now on, with a loop that does nothing. Without Ray."""

    def __init__(self, member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stopped: list[bool] = []
        """For each loop whether the lock was held when it was stopped."""
        self.tried = 0
        stopped = self.stopped

        class Loop:
            replica = backups = SimpleNamespace(drop_idle=None)
            start = staticmethod(lambda: None)

            def __init__(self, *_: object) -> None:
                pass

            def stop(self, why: str) -> None:
                stopped.append(member._lock_fd >= 0)

        monkeypatch.setattr(actor, "check_room", lambda *_: None)
        memory = SimpleNamespace(collect=lambda: None, freeze=lambda: None, unfreeze=lambda: None)
        monkeypatch.setattr(actor, "gc", memory)
        monkeypatch.setattr(actor, "_util", SimpleNamespace(get_node_ip_address=lambda: ""))
        monkeypatch.setattr(actor, "EventLoop", Loop)
        monkeypatch.setattr(actor, "register_in_background", lambda *_: None)
        monkeypatch.setattr(actor, "administer_as", lambda *_: None)
        monkeypatch.setattr(actor, "Maintenance", lambda *_: SimpleNamespace(stop=lambda: None))

    def __call__(self, *_: object, **__: object) -> SimpleNamespace:
        self.tried += 1
        log = SimpleNamespace(size_bytes=0, last_index=lambda: 0)
        return SimpleNamespace(identity=SimpleNamespace(cluster=7, member=1), log=log, close=lambda: None)


def test_a_start_that_fails_at_its_end_stops_the_loop_before_it_gives_up_the_lock(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another process could take the data while this one's loop writes it."""
    opened = Opened(member, monkeypatch)
    monkeypatch.setattr(actor, "administer_as", refuse)
    monkeypatch.setattr(actor.DataDir, "open", opened)
    until(lambda: len(opened.stopped) >= 3, what="it tries again")
    assert all(opened.stopped)
    assert os.strerror(errno.EMFILE) in member.status().why_not_serving


@pytest.mark.parametrize(("part", "noted"), [("EventLoop", 0), ("Maintenance", 1)])
def test_starts_that_fail_do_not_make_a_folder_newer_than_one_that_has_served(
    part: str, noted: int, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several folders of a member the newest is the one that has started to serve most often."""
    opened = Opened(member, monkeypatch)
    whole = getattr(actor, part)
    monkeypatch.setattr(actor, part, refuse)
    monkeypatch.setattr(actor.DataDir, "open", opened)
    until(lambda: opened.tried >= 5, what="it tries again")
    folder = member._spec.folder
    assert read_served(folder).times == noted
    monkeypatch.setattr(actor, part, whole)
    until(lambda: not member._opens, what="it serves")
    assert read_served(folder).times == 1
    member.stop()
    member.open()
    until(lambda: not member._opens, what="it serves again")
    assert read_served(folder).times == 2
