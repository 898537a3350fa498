"""Commands on a cluster and on the head that it runs on: `status`, `up` and `down`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raykeeper
from lab.commands import good, run
from raykeeper import ClusterNotFound, KeeperError, MembersMissing, SpecError, Unavailable
from raykeeper.actors.cluster.status import ClusterStatus, MemberInfo
from raykeeper.cli import member_commands, ray_head, up_down
from raykeeper.cli.json_forms import FORMS, misfit

STATUS = ClusterStatus(
    name="default",
    id=0xABC,
    leader=1,
    term=4,
    revision=9,
    alarms=("m2 does not serve: no data",),
    members=(
        MemberInfo(
            id=1,
            name="m1",
            role="leader",
            node="0123456789",
            pid=77,
            term=4,
            raft_index=20,
            applied_index=19,
            revision=9,
            db_size=2_000_000,
            actor=object(),
            address="10.0.0.1",
            free_bytes=31 * 10**9,
            version=1,
            role_for=400.0,
        ),
        MemberInfo(
            2,
            "m2",
            "silent",
            why_not_serving="no data",
            address="10.0.0.2",
            folder="/data/default/m2",
            silent_for=75.0,
        ),
        MemberInfo(
            3,
            "m3",
            "follower",
            pid=78,
            raft_index=20,
            applied_index=12,
            lag=7,
            lag_seconds=3.0,
            puts=1204.4,
            without_lane={1: "refused"},
        ),
    ),
    sessions=3,
)


class FakeCluster:
    def __init__(self) -> None:
        self.done: list[str] = []

    def status(self, *, timeout: float = 5.0) -> ClusterStatus:
        return STATUS

    def shutdown(self) -> None:
        self.done.append("shutdown")

    def destroy(self) -> None:
        self.done.append("destroy")


class FakeHead:
    def __init__(self, running: bool = True, idle: bool = True) -> None:
        self.running, self.is_idle = running, idle

    def __call__(self) -> FakeHead:
        return self

    def runs(self) -> bool:
        return self.running

    def start_if_none_runs(self) -> bool:
        return False

    def idle(self, ended: str) -> bool:
        return self.is_idle

    def stop(self) -> None:
        self.running = False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    for file in (member_commands, up_down):
        for name in ("open_cluster", "open_operations"):
            monkeypatch.setattr(file, name, lambda cluster, address: fake, raising=False)
    monkeypatch.setattr(up_down, "RayHead", FakeHead(running=False))
    return fake


def test_status_prints_every_member_and_why_it_does_not_serve(cluster: FakeCluster) -> None:
    shown = run("status")
    assert shown.exit_code == 1, "a member does not serve"
    assert shown.stdout.splitlines() == [
        "cluster default (abc): term 4, revision 9, 3 sessions; one more loss stops writes",
        "m1 leader for 7 min: pid 77 on 10.0.0.1 (node 01234567), applied 19 of 20, 2.0 MB, 31.0 GB free, "
        "commands version 1",
        "m2 silent: last at 10.0.0.2 in /data/default/m2, silent for 75 s",
        "m3 follower: pid 78 on node , applied 12 of 20, lag 7 entries (3 s), 1,204 puts and 0 gets a second, "
        "0.0 MB, by actor calls to m1",
        "alarm: m2 does not serve: no data",
    ]
    said = json.loads(run("status", "-o", "json").stdout)
    assert said["members"][1]["why_not_serving"] == "no data"
    assert "actor" not in said["members"][0]
    assert said["members"][2]["without_lane"] == {"1": "refused"}
    table = run("status", "-o", "table").stdout
    assert "no data" in table
    assert all(f"alarm: {alarm}" in table for alarm in STATUS.alarms)


def test_a_lost_member_is_shown_with_the_moment_that_the_cluster_has_recorded(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = time.time() - 4 * 86_400
    lost = replace(STATUS.members[1], lost_since=since, silent_for=1.0)
    monkeypatch.setattr(cluster, "status", lambda timeout: replace(STATUS, members=(STATUS.members[0], lost)))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    assert f"m2 silent: last at 10.0.0.2 in /data/default/m2, lost since {when} (4.0 d)\n" in run("status").stdout
    assert json.loads(run("status", "-o", "json").stdout)["members"][1]["lost_since"] == since


def test_down_stops_and_keeps_the_data(cluster: FakeCluster) -> None:
    assert "destroyed: False" in good("down")
    assert cluster.done == ["shutdown"]


def test_down_destroys_only_after_a_yes(cluster: FakeCluster) -> None:
    assert run("down", "--destroy", stdin=b"n\n").exit_code == 1
    assert run("down", "--destroy", stdin=b"").exit_code == 1
    assert cluster.done == []
    good("down", "--destroy", stdin=b"y\n")
    good("down", "--destroy", "--yes")
    assert cluster.done == ["destroy", "destroy"]


@pytest.mark.parametrize(
    ("running", "idle", "stopped"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_down_stops_ray_only_if_up_started_it_and_nobody_else_is_on_it(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, running: bool, idle: bool, stopped: bool
) -> None:
    head = FakeHead(running, idle)
    monkeypatch.setattr(up_down, "RayHead", head)
    said = json.loads(good("down", "-o", "json"))
    assert said["ray_stopped"] is stopped
    assert misfit(FORMS["down"], said) == ""
    assert head.running is (running and not stopped)


def test_down_without_a_cluster_stops_the_head_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(cluster: str, address: str | None) -> Any:
        raise ClusterNotFound("no cluster")

    monkeypatch.setattr(up_down, "open_cluster", none)
    monkeypatch.setattr(up_down, "RayHead", FakeHead(running=False))
    assert run("down").exit_code == 1
    monkeypatch.setattr(up_down, "RayHead", FakeHead())
    assert json.loads(good("down", "-o", "json")) == {
        "cluster": "default",
        "stopped": False,
        "destroyed": False,
        "ray_stopped": True,
    }
    monkeypatch.setattr(up_down, "RayHead", FakeHead(idle=False))
    assert run("down").exit_code == 1


# --- a cluster whose nodes are away ----------------------------------------------------------------------------------


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> FakeHead:
    """A head that `up` starts."""
    head = FakeHead(running=False)

    def start() -> bool:
        head.running = True
        return True

    monkeypatch.setattr(head, "start_if_none_runs", start)
    monkeypatch.setattr(up_down, "RayHead", head)
    monkeypatch.setattr(up_down, "join", lambda address: None)
    return head


@pytest.mark.parametrize(
    ("error", "runs_on"),
    [(MembersMissing("m1 is away"), True), (Unavailable("no quorum"), False), (SpecError("s", "f", "more"), False)],
)
def test_up_leaves_the_head_running_only_for_nodes_that_are_missing(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, error: KeeperError, runs_on: bool
) -> None:
    def launch(spec: Any) -> Any:
        raise error

    monkeypatch.setattr("raykeeper.cluster.launch", launch)
    result = run("up")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"raykeeper: {error}"
    assert head.running is runs_on
    assert ("keeps running" in result.stderr) is runs_on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_what_ends_up_while_it_launches_ends_its_head_too(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def launch(spec: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(20)

    monkeypatch.setattr("raykeeper.cluster.launch", launch)
    before = signal.getsignal(number)
    assert run("up").exit_code == 128 + number
    assert not head.running
    assert signal.getsignal(number) is before


def test_what_ends_up_while_its_head_begins_ends_that_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(head: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_head, "_ray_runs", lambda: False)
    monkeypatch.setattr(ray_head, "_RAY", (sys.executable, "-c", "import time; time.sleep(100)"))
    head = ray_head.RayHead(tmp_path)
    monkeypatch.setattr(head, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        head.start_if_none_runs()
    assert not head.runs()


@pytest.mark.parametrize("home", ["/dev/null", "/nonexistent", "x" * 5000, "a\nb\udcff"])
def test_a_home_that_holds_nothing_has_no_head(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        with monkeypatch.context() as patch:
            patch.delenv("XDG_STATE_HOME", raising=False)
            patch.setenv(name, home)
            head = ray_head.RayHead()
            assert not head.runs()
            assert head.address() is None


def test_up_says_on_stderr_what_the_launch_warns_of(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = []

    def launch(spec: Any) -> Any:
        specs.append(spec)
        logging.getLogger("raykeeper").warning("all on one host")
        return FakeCluster()

    monkeypatch.setattr("raykeeper.cluster.launch", launch)
    monkeypatch.setattr(up_down, "UP_SETTLE_S", 0.0)
    result = run("up", "--cluster", "jobs", "--bootstrap", "never")
    assert result.exit_code == 1, "a member does not serve"
    assert "m1 leader" in result.stdout
    assert result.stderr == "raykeeper: warning: all on one host\n"
    assert (specs[0].name, specs[0].bootstrap) == ("jobs", "never")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("--id", "1f"), ("jobs", 0x1F, "~/.raykeeper")),
        (("--id", "1f", "--data-dir", "/d"), ("jobs", 0x1F, "/d")),
        (("--data-dir", "/d"), ("jobs", None, "/d")),
    ],
)
def test_down_gives_up_a_cluster_that_does_not_run(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], given: tuple[Any, ...]
) -> None:
    asked = []
    monkeypatch.setattr(up_down, "join", lambda address: None)
    monkeypatch.setattr(
        "raykeeper.cluster.discard", lambda name, id, *, data_dir: asked.append((name, id, data_dir)) or id
    )
    command = ("down", "--cluster", "jobs", "--destroy", *arguments)
    assert run(*command, stdin=b"n\n").exit_code == 1
    assert asked == []
    good(*command, "--yes")
    assert asked == [given]
    assert cluster.done == []


@pytest.mark.parametrize("error", [None, ClusterNotFound("nothing is there")])
def test_what_an_error_advises_works_where_the_ray_of_its_process_has_ended(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch, error: KeeperError | None
) -> None:
    """A Ray is started to read this machine's disk, and stopped again in any case."""

    def discard(name: str, id: int | None, *, data_dir: str) -> int:
        assert head.running
        if error is not None:
            raise error
        return 0x1F

    monkeypatch.setattr("raykeeper.cluster.discard", discard)
    result = run("down", "--destroy", "--id", "1f", "--data-dir", "/d", "--yes")
    assert result.exit_code == (error is not None), result.output
    assert not head.running


def test_a_head_that_ran_before_is_only_stopped_if_it_is_idle(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.cluster.discard", lambda *_, **__: 1)
    monkeypatch.setattr(head, "start_if_none_runs", lambda: False)
    head.running, head.is_idle = True, False
    good("down", "--destroy", "--id", "1f", "--yes")
    assert head.running


@pytest.mark.parametrize("arguments", [("--cluster", "../x"), ("--data-dir", "relative"), ("--data-dir", "")])
def test_no_folder_is_deleted_that_can_be_no_cluster_s(head: FakeHead, arguments: tuple[str, ...]) -> None:
    result = run("down", "--destroy", "--id", "1f", "--yes", *arguments)
    assert result.exit_code == 1
    assert not head.running
    with pytest.raises(SpecError):
        raykeeper.discard("..", 1)
    with pytest.raises(SpecError):
        raykeeper.discard("x", 1, data_dir="relative")


def test_down_says_how_to_give_up_what_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(cluster: str, address: str | None) -> Any:
        raise ClusterNotFound("no cluster default runs")

    monkeypatch.setattr(up_down, "open_cluster", none)
    monkeypatch.setattr(up_down, "RayHead", FakeHead(running=False))
    assert "add --data-dir" in run("down", "--destroy", "--yes").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--id", "1f"),
        ("--data-dir", "/d"),
        ("--destroy", "--id", "m1"),
        ("--destroy", "--id", "0"),
        ("--destroy", "--id", "-3"),
    ],
)
def test_down_takes_no_half_said_order(cluster: FakeCluster, arguments: tuple[str, ...]) -> None:
    assert run("down", "--yes", *arguments).exit_code == 2
    assert cluster.done == []
