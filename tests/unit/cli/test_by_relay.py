"""Commands go by a proxy of this node if there is one, by Ray otherwise; they print the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from lab.relay import AROUND, Served
from raykeeper.actors import member_access
from raykeeper.actors.client import hub_pool
from raykeeper.actors.cluster import cluster_report
from raykeeper.actors.transport import relay
from raykeeper.cli import main, near_cluster, options, relay_client, top
from raykeeper.cli.json_forms import FORMS, misfit
from raykeeper.proxy_notices import ProxyNotice, find_notice, leave_notice, relay_path, start_of

RAY = "10.0.0.1:6379"


class Attached:
    """Counts how often a command attaches to Ray."""

    def __init__(self) -> None:
        self.times = 0

    def join(self, address: str | None) -> None:
        self.times += 1


class Straight:
    """In the place of ``StreamingCommand``."""

    def write(self, output: Callable[[], None]) -> None:
        output()

    ending_when_unread = contextlib.nullcontext


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Attached:
    attached = Attached()
    monkeypatch.setattr(options, "join", attached.join)
    return attached


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray: Attached) -> Iterator[OneMember]:
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / "r"))
    for module in (relay, relay_client, near_cluster):  # each has the constant's name
        monkeypatch.setattr(module, "RELAY_TIMEOUT_S", PATIENCE)
    for name in ("RELAY_SEND_TIMEOUT_S", "RELAY_RAY_VIEW_S", "RELAY_MOVE_LEADER_S"):
        monkeypatch.setattr(relay, name, PATIENCE)
    monkeypatch.setattr(cluster_report, "STATUS_TIMEOUT_S", PATIENCE)
    with one_member(by_lane=True) as member:
        monkeypatch.setenv("RAYKEEPER_CLUSTER", member.name)
        monkeypatch.setenv("RAY_ADDRESS", RAY)
        yield member
        hub_pool._close_all()


@pytest.fixture
def served(member: OneMember) -> Iterator[Served]:
    """A proxy of the cluster has left its notice."""
    served = Served(member, relay_path())
    notice = ProxyNotice(
        member.name, member.cluster, RAY, "http://127.0.0.1:1", "", False, os.getpid(), start_of(os.getpid())
    )
    leave_notice(notice._replace(relay=served.path))
    yield served
    served.end()


def run(*words: str) -> Result:
    """A command in a process of its own has no hub yet."""
    hub_pool._close_all()
    return CliRunner().invoke(main.cli, [*words, "--timeout", f"{PATIENCE:g}"])


def test_commands_go_by_it_without_ray(served: Served, ray: Attached) -> None:
    granted = run("lease", "grant", "600")
    assert granted.stdout.startswith("lease "), granted.output
    id = granted.stdout.split()[1]
    assert id in run("lease", "list").stdout
    assert run("user", "add", "ann", "--no-password").stdout == "user ann added\n"
    assert run("put", "k", "v", "--request-id", "once").stdout == "OK\n"
    assert run("locks").stdout == "no locks\n"
    assert ray.times == 0


ASKED = (
    "status",
    "member list",
    "move-leader m1",
    "health",
    "events",
    "clients",
    "top -n 1",
    "check",
    "config get timings",
    "config set timings.replace_after=90",
    "endpoint status",
    "endpoint health",
    "alarm list",
    "alarm disarm",
)
"""What Ray, or the actors of the members, would be asked for otherwise."""


def test_an_operator_s_commands_go_by_it_without_ray(
    served: Served, member: OneMember, ray: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "run_streaming", lambda work: asyncio.run(work(Straight())))
    for words in ASKED:
        done = run(*words.split(), "-o", "json")
        assert (done.exit_code, done.stderr) == (0, ""), (words, done.output, done.exception)
        command = next(name for n in (2, 1) if (name := " ".join(words.split()[:n])) in FORMS)
        assert misfit(FORMS[command], json.loads(done.stdout)) == "", (words, done.stdout)
    assert ray.times == 0
    assert not member_access._ways, "a command leaves nothing to the next one of its process"


NOT_NEEDED = {
    "ray",
    "rocksdict",
    "asyncio",
    "http.client",
    "ssl",
    "subprocess",
    "tempfile",
    "yaml",
    "rich",
    "google.protobuf",
    "prometheus_client",
    "raykeeper.cluster",
    "raykeeper.spec",
    "raykeeper.store",
    "raykeeper.actors.client.hub",
    "raykeeper.actors.member",
    "raykeeper.actors.proxy",
    "raykeeper.actors.transport.lane",
}
"""What takes long to load, and none of these commands has a use for."""
LISTING = """
import sys
from raykeeper import limits
for name in ("RELAY_TIMEOUT_S", "RELAY_SEND_TIMEOUT_S", "RELAY_RAY_VIEW_S", "STATUS_TIMEOUT_S"):
    setattr(limits, name, 60.0)  # before what copies them is loaded
from raykeeper.cli.main import cli
try:
    cli()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    ["status", "member list", "events", "clients", "config get", "endpoint status", "endpoint health", "alarm list"],
)
def test_such_a_command_loads_little(served: Served, words: str) -> None:
    command = [sys.executable, "-c", LISTING, *words.split(), "--timeout", f"{PATIENCE:g}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    assert sorted(NOT_NEEDED.intersection(done.stderr.split())) == []


def test_a_status_has_what_the_proxy_s_ray_knows(served: Served, ray: Attached) -> None:
    said = json.loads(run("status", "-o", "json").stdout)
    assert [each["role"] for each in said["members"]] == ["leader"]
    assert [(each["name"], each["url"]) for each in said["proxies"]] == [("proxy-ab12", "http://10.0.0.1:2379")]
    for form in ([], ["-o", "table"]):
        assert "http://10.0.0.1:2379" in run("status", *form).stdout, "for those who want to reach it"
    assert "a disk is slow" in said["alarms"]
    served.ray.around = replace(AROUND, situation=("m9 waits for a spare host",))
    assert "m9 waits for a spare host" not in run("status").stdout, "nothing is wrong"
    assert ray.times == 0


def test_an_operator_s_user_is_logged_in_by_it(served: Served, ray: Attached, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    for words in ("user add root --new-password-file {}", "user grant-role root root", "auth enable"):
        assert run(*words.format(secret).split()).exit_code == 0
    who = ("--user", "root", "--password-file", str(secret))
    assert run("events").exit_code == 1, "a user is needed"
    for words in ("events", "health", "config set timings.replace_after=95", "status"):
        done = run(*words.split(), *who)
        assert done.exit_code == 0, (words, done.output)
    assert run("auth", "disable", *who).exit_code == 0
    assert ray.times == 0


def test_a_command_that_opens_two_things_asks_for_the_password_once(
    served: Served, ray: Attached, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    for words in ("user add root --new-password-file {}", "user grant-role root root", "put k 1", "put k 2"):
        assert run(*words.format(secret).split()).exit_code == 0
    revision = json.loads(run("get", "k", "-o", "json").stdout)["revision"]
    assert run("auth", "enable").exit_code == 0
    hub_pool._close_all()
    words = ["compact", str(revision), "--physical", "--user", "root", "--timeout", f"{PATIENCE:g}"]
    done = CliRunner().invoke(main.cli, words, input="secret\n")  # one answer: a second question would find none
    assert (done.exit_code, done.stdout) == (0, f"compacted: {revision}\n"), done.output
    assert done.stderr.count("Password of root") == 1
    assert run("auth", "disable", "--user", "root", "--password-file", str(secret)).exit_code == 0
    assert ray.times == 0


def test_without_it_they_go_by_ray(member: OneMember, served: Served, ray: Attached) -> None:
    assert run("lease", "list").exit_code == 0
    served.end()
    assert run("lease", "list").exit_code == 0
    assert ray.times == 1


def test_a_proxy_of_another_cluster_is_not_asked(served: Served, member: OneMember, ray: Attached) -> None:
    notice = ProxyNotice(member.name, 9, RAY, "http://127.0.0.1:1", "", False, os.getpid(), start_of(os.getpid()))
    for file in os.listdir(os.environ["RAYKEEPER_RUNTIME_DIR"]):
        if file.startswith("proxy-"):
            os.unlink(os.path.join(os.environ["RAYKEEPER_RUNTIME_DIR"], file))
    leave_notice(notice._replace(relay=served.path))
    assert run("lease", "list").exit_code == 0
    assert ray.times == 1


def test_ray_can_be_asked_for(served: Served, ray: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYKEEPER_ENDPOINT", "ray")
    assert run("lease", "list").exit_code == 0
    assert ray.times == 1


def test_a_proxy_that_finds_no_member_is_left(
    served: Served, member: OneMember, ray: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = find_notice(member.name, RAY)
    assert notice is not None
    monkeypatch.setattr(relay_client, "RELAY_TIMEOUT_S", 1.0)
    member.cut = True
    assert relay_client.open_by_relay(notice, PATIENCE, {}, lambda: ray.join(None)) is None
    until(lambda: not served.server._connections, what="the end of the connection")
    assert ray.times == 0
