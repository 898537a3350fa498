"""What the commands print as JSON has the fields of the table, by real results; and the table has all commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from raykeeper import BackupInfo, ClientInfo, Comparison, EventInfo
from raykeeper import cluster as cluster_module
from raykeeper.actors import discovery
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.load_tables import ClientTop, ClusterTop, PrefixTop, SlowInfo
from raykeeper.actors.cluster import ray_nodes
from raykeeper.actors.cluster.health import HealthCheck
from raykeeper.actors.cluster.node_logs import LogText
from raykeeper.actors.cluster.status import ClusterStatus, MemberInfo
from raykeeper.actors.ray_view import ProxyInfo, RayNode
from raykeeper.cli import (
    check,
    config,
    event_commands,
    health_command,
    holders,
    lease,
    lock,
    main,
    maintenance,
    member_commands,
    node_log_command,
    options,
    top,
    up_down,
    watch,
)
from raykeeper.cli.json_forms import BYTES, FORMS, INT, NUMBER, TEXT, Keyed, Nullable, OneOf, Optional, misfit
from raykeeper.limits import Settings

ELSEWHERE = {
    "alarm disarm": "test_by_relay.py",
    "alarm list": "test_by_relay.py",
    "check datascale": "test_check.py",
    "defrag": "test_endpoint_commands.py",
    "doctor": "test_doctor.py",
    "down": "test_cluster_commands.py",
    "endpoint hashkv": "test_endpoint_commands.py",
    "endpoint health": "test_by_relay.py",
    "endpoint status": "test_by_relay.py",
    "make-mirror": "test_mirror.py",
    "proxy": "../../cluster/test_cli_proxy.py",
    "snapshot save": "test_mirror.py",
    "snapshot status": "test_mirror.py",
}
"""Where the others are compared."""


class _Ended(BaseException):
    """Ends a command that would run until a signal comes."""


class _Stream:
    """In the place of ``StreamingCommand``: the command ends once it has printed something."""

    def write(self, output: Callable[[], None]) -> None:
        output()
        raise _Ended

    ending_when_unread = contextlib.nullcontext

    def start_release(self) -> None: ...


def _run_streaming(work: Callable[[_Stream], Any]) -> None:
    with contextlib.suppress(_Ended):
        asyncio.run(work(_Stream()))


def compare(*words: str, stdin: str = "", **environment: str) -> Any:
    """Run a command, and compare what it prints with the table."""
    result = CliRunner().invoke(main.cli, [*words, "-o", "json"], input=stdin, env=environment)
    assert result.exit_code == 0, (words, result.output, result.exception)
    value = json.loads(result.stdout)
    command = next(name for n in (2, 1) if (name := " ".join(words[:n])) in FORMS)
    assert misfit(FORMS[command], value) == "", (words, value)
    return value


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMember]:
    monkeypatch.setattr(options, "join", lambda address: None)
    for file in (lease, lock, watch, top):
        monkeypatch.setattr(file, "run_streaming", _run_streaming)
    with one_member() as member:
        monkeypatch.setenv("RAYKEEPER_CLUSTER", member.name)
        monkeypatch.setenv("RAYKEEPER_ENDPOINT", "ray")
        yield member
        hub_pool._close_all()


PATIENT = ("--timeout", f"{PATIENCE:g}")


def test_keys_leases_and_recipes(member: OneMember) -> None:
    compare("put", "k", "v", *PATIENT)
    compare("put", "k", "\udcff", "--prev", *PATIENT)
    revision = compare("get", "k", *PATIENT)["revision"]
    compare("txn", *PATIENT, stdin='version("k") > 0\n\nput k w --prev\nget k\ndel none\n\nget k\n')
    compare("watch", "k", "--rev", str(revision), "--prev", *PATIENT)
    compare("watch", "k", "--rev", "1", "--progress", *PATIENT)
    compare("del", "k", "--prev", *PATIENT)
    id = f"{int(compare('lease', 'grant', '600', *PATIENT)['id']):x}"
    compare("put", "held", "v", "--lease", id, *PATIENT)
    compare("lease", "timetolive", id, "--keys", *PATIENT)
    compare("lease", "ttl", id, *PATIENT)
    compare("lease", "list", *PATIENT)
    compare("lease", "keep-alive", id, "--once", *PATIENT)
    compare("lock", "free", "--ttl", "600", *PATIENT)
    compare("elect", "none", "me", "--ttl", "600", *PATIENT)
    with (
        member.client() as kv,
        kv.lock("held", ttl=600),
        kv.semaphore("s", 2, ttl=600),
        kv.election("e", ttl=600),
    ):
        kv.queue("q").put(b"item")
        for listing in ("locks", "semaphores", "elections", "queues", "barriers", "services"):
            found = compare(listing, *PATIENT)[listing]
            assert found or listing in ("barriers", "services")
        compare("elect", "e", "--listen")
    compare("lease", "revoke", id, *PATIENT)
    compare("compact", str(revision), *PATIENT)
    compare("bench", "--seconds", "0.05", "--in-flight", "2", *PATIENT)


def test_users_and_roles(member: OneMember, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    as_root = {"RAYKEEPER_USER": "root", "RAYKEEPER_PASSWORD_FILE": str(secret)}
    compare("user", "add", "root", "--new-password-file", str(secret), *PATIENT)
    compare("user", "passwd", "root", "--new-password-file", str(secret), *PATIENT)
    compare("role", "add", "team", *PATIENT)
    compare("role", "grant-permission", "team", "read", "a", "\udcff", *PATIENT)
    compare("role", "grant-permission", "team", "write", "b", *PATIENT)
    compare("role", "get", "team", *PATIENT)
    compare("user", "grant-role", "root", "team", *PATIENT)
    compare("user", "get", "root", *PATIENT)
    compare("user", "revoke-role", "root", "team", *PATIENT)
    compare("user", "grant-role", "root", "root", *PATIENT)
    compare("auth", "status", *PATIENT)
    compare("auth", "enable", *PATIENT)
    compare("user", "list", *PATIENT, **as_root)
    compare("role", "list", *PATIENT, **as_root)
    compare("auth", "disable", *PATIENT, **as_root)
    compare("role", "revoke-permission", "team", "b", *PATIENT)
    compare("role", "delete", "team", *PATIENT)
    compare("user", "delete", "root", *PATIENT)


MEMBER = MemberInfo(1, "m1", "leader", "ab", 4711, silent_for=1.5, without_lane={2: "a firewall"})
STATUS = ClusterStatus(
    "c", 1 << 60, 1, 3, 9, ("an alarm",), (MEMBER, MemberInfo(2, "m2", "silent")), (ProxyInfo("p", "http://x", "ab"),)
)
CLIENT = ClientInfo(1 << 60, "rk1", 4711)


class FakeCluster:
    """Answers with results of the real types."""

    name = "c"
    id = 7

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "status": STATUS,
            "add_member": MEMBER,
            "remove_member": None,
            "promote": None,
            "move_leader": None,
            "upgrade": 4,
            "health": (HealthCheck("disk", "m1", ""), HealthCheck("alarms", "", "")),
            "events": [EventInfo(1, 1000.5, "election", 2, "m2 leads")],
            "clients": [CLIENT],
            "top": ClusterTop(
                (ClientTop(CLIENT, "", 1.5, 0, 0, 10), ClientTop(None, "process 9", 0, 1, 0, 3)),
                (PrefixTop(b"\xff/", False, 1.5, 0, 0, 10),),
                (SlowInfo("m1", 1000.5, 0.25, "put of 'a'"),),
                ("m3",),
            ),
            "check": Comparison(8, 9, 3, {1: "aa", 2: "aa"}, (), True, ()),
            "backup": BackupInfo("/b", "c", 7, 1, 9, 3, 4711),
            "settings": Settings(),
            "configure": Settings(),
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: self.answers[name]


def test_the_cluster_and_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (check, config, event_commands, health_command, holders, maintenance, member_commands, top):
        for opening in ("open_cluster", "open_operations"):
            monkeypatch.setattr(file, opening, lambda name, address: FakeCluster(), raising=False)
    monkeypatch.setattr(top, "run_streaming", _run_streaming)
    for words in (
        "status",
        "member list",
        "member add",
        "member remove m1",
        "member promote m1",
        "move-leader m1",
        "upgrade",
        "health",
        "events",
        "clients",
        "top",
        "check",
        "backup /b",
        "config get",
        "config set timings.election_timeout=2",
    ):
        result = CliRunner().invoke(main.cli, [*words.split(), "-o", "json"])
        command = next(name for n in (2, 1) if (name := " ".join(words.split()[:n])) in FORMS)
        assert misfit(FORMS[command], json.loads(result.stdout)) == "", (words, result.output)


def test_what_starts_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(up_down, "join", lambda address: None)
    monkeypatch.setattr(cluster_module, "launch", lambda spec: FakeCluster())
    monkeypatch.setattr(cluster_module, "restore", lambda source, spec, timeout: FakeCluster())
    monkeypatch.setattr(up_down, "UP_SETTLE_S", 0.0)
    for words in ("up", "restore /b"):
        result = CliRunner().invoke(main.cli, [*words.split(), "--address", "10.0.0.1:6379", "-o", "json"])
        assert misfit(FORMS[words.split()[0]], json.loads(result.stdout)) == "", (words, result.output)


def test_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    node = RayNode("ab12", "10.0.0.1", frozenset())
    monkeypatch.setattr(node_log_command, "join", lambda address: None)
    monkeypatch.setattr(discovery, "alive_nodes", lambda: [node])
    monkeypatch.setattr(
        ray_nodes, "run_where_possible", lambda *_: {"ab12": [LogText("/l/m1.log", ["a line", "\x1b"])]}
    )
    compare("logs", "m1")


def commands(group: click.Group = main.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_the_table_has_the_commands_that_print_json() -> None:
    printing = {name for name, command in commands() if any(each.name == "output" for each in command.params)}
    assert printing == set(FORMS)
    here = Path(__file__).parent
    for name, file in ELSEWHERE.items():
        text = (here / file).read_text(encoding="utf-8")
        assert "misfit(" in text, file
        words = name.split()
        listed = f'"{name}"' in text or '", "'.join(words) in text or f'FORMS["{name}"]' in text
        assert listed, f"{name} in {file}"


def test_what_does_not_fit() -> None:
    for form, value in (
        ({"a": INT}, {"a": 1.5}),
        ({"a": INT}, {"a": True}),
        ({"a": INT}, {"a": "12"}),
        ({"a": INT}, {"a": 1, "b": 2}),
        ({"a": INT}, {}),
        ({"a": INT}, {"a": 1, "base64": ["a"]}),
        ({"a": BYTES}, {"a": None}),
        ([TEXT], {}),
        ([TEXT], ["a", 1]),
        (Nullable(NUMBER), "x"),
        (OneOf((TEXT, [TEXT])), 1),
        (Keyed("a name", TEXT, {"a": INT}), {"b": "x"}),
        ({"a": Optional("--a", TEXT)}, {"a": 1}),
    ):
        assert misfit(form, value), (form, value)
    for form, value in (
        ({"a": INT}, {"a": "9007199254740993"}),
        ({"a": BYTES}, {"a": "/w==", "base64": ["a"]}),
        ({"a": Optional("--a", TEXT)}, {}),
        (Keyed("a name", TEXT, {"a": INT}), {"a": 1, "b": "x"}),
        (Nullable(NUMBER), None),
    ):
        assert misfit(form, value) == ""
