"""Ending the process that has a member's folder locked: that one, stopped or not, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.patience import PATIENCE, until
from raykeeper.actors.cluster import hung_process
from raykeeper.actors.cluster.hung_process import HungProcess, end_holder, end_hung_member, state_of
from raykeeper.actors.naming import GAVE_UP
from raykeeper.errors import Unavailable
from raykeeper.schema.operator_frames import MemberStatus
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.data_lock import lock_path
from raykeeper.store.engine.rocks import RocksDisk

HOLDS = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
{more}
print("held", flush=True)
sys.stdin.read()
"""
FORKS = "if not os.fork(): sys.stdin.read(), os._exit(0)"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may take its time to be dead."""
    monkeypatch.setattr(hung_process, "HUNG_END_S", PATIENCE)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that holds the lock on m1's folder."""
    made: list[subprocess.Popen[str]] = []

    def start(more: str = "", path: str = "") -> subprocess.Popen[str]:
        path = path or lock_path(str(tmp_path), "m1")
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS.format(more=more), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


def test_the_process_with_the_lock_is_ended_though_it_is_stopped(holder: Start, tmp_path: Path) -> None:
    other = holder(path=lock_path(str(tmp_path), "m2"))
    process = holder()
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: state_of(process.pid).startswith("T"))
    found = end_holder(str(tmp_path), "m1")
    assert (found.pid, found.ended, found.state) == (process.pid, True, "T (stopped)")
    assert process.wait() == -signal.SIGKILL
    assert other.poll() is None
    assert "it is dead now" in str(found)
    assert end_holder(str(tmp_path), "m1") == HungProcess(), "nobody has the lock any more"
    assert end_holder(str(tmp_path), "m3") == HungProcess(), "there is no such lock"


def test_nothing_is_ended_where_several_processes_share_the_lock(holder: Start, tmp_path: Path) -> None:
    process = holder(FORKS)
    assert end_holder(str(tmp_path), "m1") == HungProcess()
    assert process.poll() is None


def test_who_has_the_file_open_without_the_lock_is_left_alone(tmp_path: Path) -> None:
    with open(lock_path(str(tmp_path), "m1"), "w"):
        assert end_holder(str(tmp_path), "m1") == HungProcess()


def test_a_process_that_is_to_be_spared_is(holder: Start, tmp_path: Path) -> None:
    process = holder()
    found = end_holder(str(tmp_path), "m1", spare=process.pid)
    assert (found.pid, found.ended) == (process.pid, False)
    assert "opening its data" in str(found)
    assert process.poll() is None


def test_a_process_that_lets_go_meanwhile_is_left_alone(
    holder: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder()
    found = [process.pid, 0]
    monkeypatch.setattr(hung_process, "_holder", lambda path: found.pop(0))
    assert end_holder(str(tmp_path), "m1") == HungProcess()
    assert process.poll() is None


def test_one_that_no_signal_ends_is_said_to_be_there(
    holder: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder()
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda descriptor, number: None)
    monkeypatch.setattr(hung_process, "HUNG_END_S", 0.0)
    found = end_holder(str(tmp_path), "m1")
    assert (found.pid, found.ended) == (process.pid, False)
    assert "does not end" in str(found)


def test_where_the_system_does_not_let_it_be_done_that_is_an_error(
    holder: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder()

    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with pytest.raises(Unavailable, match="cannot be ended"):
        end_holder(str(tmp_path), "m1")
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(Unavailable, match="no descriptors"):
        end_holder(str(tmp_path), "m1")
    assert process.poll() is None


# --- whose it is -----------------------------------------------------------------------------------------------------


def status_of(**fields: Any) -> MemberStatus:
    numbers = "term commit_index applied_index last_log_index first_log_index revision compact_revision db_size leader"
    plain = {**dict.fromkeys(numbers.split(), 1), "voters": (1, 2, 3), "learners": (), "node": "a", "member": 1}
    names = {"cluster_name": "hung", "cluster": 7, "name": "m1", "role": "follower"}
    return MemberStatus(**{**plain, **names, "stuck_for": 99.0, "pid": 1, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Holds m1 of cluster 7."""
    identity = Identity(cluster_name="hung", cluster=7, member=1, name="m1", members=(FirstMember(1, "m1", "a"),))
    DataDir.create(RocksDisk(), str(tmp_path / "m1"), identity).close()
    return str(tmp_path)


@pytest.mark.parametrize("says", [None, {}], ids=["answers nothing", "says that it is stuck"])
def test_a_member_that_hangs_is_ended(
    says: dict[str, Any] | None, holder: Start, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hung_process, "_ask", lambda *who: None if says is None else status_of(**says))
    process = holder()
    assert end_hung_member(folder, "hung", 7, "m1").ended
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("said", "cluster"),
    [
        ({"stuck_for": 0.0}, 7),
        ({"role": "starting", "pid": "its own"}, 7),
        ({"role": GAVE_UP, "opening": True, "pid": "its own"}, 7),
        ({}, 8),
    ],
    ids=["answers on its node", "opens its data", "opens it again", "of another cluster"],
)
def test_one_that_does_not_or_is_not_it_is_left_alone(
    said: dict[str, Any], cluster: int, holder: Start, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder()
    if "pid" in said:
        said = {**said, "pid": process.pid}
    monkeypatch.setattr(hung_process, "_ask", lambda *who: status_of(**said))
    found = end_hung_member(folder, "hung", cluster, "m1")
    assert not found.ended
    assert found.here == (cluster == 7), "a node without its data says so"
    assert process.poll() is None


def test_one_whose_folder_another_process_keeps_locked_has_that_ended(
    holder: Start, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray took it for dead and started another one, and it hangs."""
    process = holder()
    monkeypatch.setattr(hung_process, "_ask", lambda *who: status_of(role="starting", pid=os.getpid()))
    assert end_hung_member(folder, "hung", 7, "m1").pid == process.pid
    assert process.wait() == -signal.SIGKILL
