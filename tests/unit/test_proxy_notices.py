"""Notices of proxies: what was left is found by those whom it concerns, and by nobody once its process has ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raykeeper.limits import RELAY_SWEEP_AGE_S
from raykeeper.proxy_notices import ProxyNotice, find_notice, leave_notice, relay_path, start_of, withdraw_notice

HERE = ProxyNotice("c", 7, "10.0.0.1:6379", "http://127.0.0.1:2379", "", False, os.getpid(), start_of(os.getpid()))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def test_a_notice_is_found_by_its_cluster_and_ray_until_it_is_withdrawn(folder: Path) -> None:
    assert find_notice("c", "10.0.0.1:6379") is None
    path = leave_notice(HERE)
    assert find_notice("c", "10.0.0.1:6379") == HERE
    assert find_notice("d", "10.0.0.1:6379") is None
    assert find_notice("c", "10.0.0.2:6379") is None
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    withdraw_notice(path)
    withdraw_notice(path)
    assert find_notice("c", "10.0.0.1:6379") is None


def test_a_process_that_has_ended_leaves_a_stale_notice_which_the_next_proxy_deletes(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stale = leave_notice(HERE._replace(pid=child.pid, started=start_of(child.pid)))
    assert find_notice("c", "10.0.0.1:6379") is not None
    child.kill()
    child.communicate()
    assert find_notice("c", "10.0.0.1:6379") is None
    reused = leave_notice(HERE._replace(started=HERE.started + 1))
    assert find_notice("c", "10.0.0.1:6379") is None
    (folder / "proxy-x.json").write_text("nonsense")
    (folder / "other").write_text("not ours")
    last = leave_notice(HERE)
    assert not os.path.exists(stale)
    assert not os.path.exists(reused)
    assert sorted(os.listdir(folder)) == sorted(["other", os.path.basename(last)])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 5000, json.dumps(HERE), json.dumps({**HERE._asdict(), "id": "7"}), "x" * 100_000]
    + [json.dumps({**HERE._asdict(), "pid": pid}) for pid in (0, -1, True, 1 << 70)],
    ids=range(11),
)
def test_a_file_that_is_none_is_skipped(folder: Path, text: str) -> None:
    leave_notice(HERE._replace(cluster="d"))
    (folder / "proxy-1.json").write_text(text)
    os.chmod(folder / "proxy-1.json", 0o600)
    assert find_notice("c", "10.0.0.1:6379") is None
    assert find_notice("d", "10.0.0.1:6379") is not None


def test_what_others_may_write_is_not_believed(folder: Path) -> None:
    path = leave_notice(HERE)
    os.chmod(path, 0o644)
    assert find_notice("c", "10.0.0.1:6379") is None
    os.chmod(path, 0o600)
    os.chmod(folder, 0o777)
    assert find_notice("c", "10.0.0.1:6379") is None
    with pytest.raises(PermissionError):
        leave_notice(HERE)
    os.chmod(folder, 0o700)
    os.rename(path, folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", path)
    assert find_notice("c", "10.0.0.1:6379") is None


def test_a_notice_that_cannot_be_read_stays_while_its_process_runs(folder: Path) -> None:
    """It may be of another version."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave_notice(HERE)
    other, named = folder / f"proxy-{child.pid}-abcd.json", folder / f"proxy-{1 << 70}-abcd.json"
    for each in (other, named):
        each.write_text(json.dumps({"pid": child.pid, "version": 2}))
        each.chmod(0o600)
    leave_notice(HERE)
    assert other.exists()
    assert not named.exists()
    child.kill()
    child.communicate()
    leave_notice(HERE)
    assert not other.exists()


def test_sockets_that_nobody_listens_on_are_deleted(folder: Path) -> None:
    """A proxy may be killed before it leaves the notice that names its socket."""
    made, before = {}, time.time() - RELAY_SWEEP_AGE_S - 1

    def make(what: str, *, listens: bool) -> socket.socket:
        made[what] = relay_path()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(made[what])
        if listens:
            listener.listen()
        else:
            listener.close()
        if what != "young":
            os.utime(made[what], (before, before))
        return listener

    with make("listens", listens=True), make("left", listens=False), make("young", listens=False):
        file = folder / "relay-file"
        file.write_text("no socket")
        os.utime(file, (before, before))
        leave_notice(HERE)
        assert {what: os.path.exists(path) for what, path in made.items()} == {
            "listens": True,
            "left": False,
            "young": True,
        }
        assert file.exists()
