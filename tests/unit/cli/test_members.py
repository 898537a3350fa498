"""The commands on members: what they ask of the cluster, and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raykeeper import errors
from raykeeper.actors.cluster.status import MemberInfo
from raykeeper.cli import main, member_commands


class FakeCluster:
    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Any = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    for opening in ("open_cluster", "open_operations"):
        monkeypatch.setattr(member_commands, opening, lambda name, address: fake)
    return fake


def run(*args: str) -> Result:
    return CliRunner().invoke(main.cli, args)


def test_add_says_where_and_how(cluster: FakeCluster) -> None:
    cluster.answer = MemberInfo(4, "m4", "follower", node="abc")
    result = run("member", "add", "10.0.0.4", "--learner", "--timeout", "7", "-o", "json")
    assert json.loads(result.stdout) == {"added": "m4", "id": 4, "role": "follower", "node": "abc"}
    assert run("member", "add").exit_code == 0
    assert cluster.asked == [
        ("add_member", ("10.0.0.4",), {"promote": False, "timeout": 7.0}),
        ("add_member", (None,), {"promote": True, "timeout": 120.0}),
    ]


@pytest.mark.parametrize("name", ["m4", "4"])
def test_members_are_named_as_the_status_does_or_by_id(cluster: FakeCluster, name: str) -> None:
    assert run("member", "remove", name).stdout == "removed: m4\n"
    assert run("member", "promote", name).stdout == "promoted: m4\n"
    assert run("move-leader", name).stdout == "leader: m4\n"
    assert cluster.asked == [
        ("remove_member", (4,), {"timeout": 120.0}),
        ("promote", (4,), {"timeout": 120.0}),
        ("move_leader", (4,), {"timeout": 10.0}),
    ]


def test_upgrade_says_what_all_know_then(cluster: FakeCluster) -> None:
    cluster.answer = 2
    result = run("upgrade", "--cluster", "jobs", "--timeout", "60", "-o", "json")
    assert json.loads(result.stdout) == {"upgraded": "jobs", "commands_version": 2}
    assert run("upgrade").stdout == "upgraded: default\ncommands_version: 2\n"
    assert cluster.asked == [("upgrade", (), {"timeout": 60.0}), ("upgrade", (), {"timeout": 300.0})]


def test_an_upgrade_that_cannot_begin_says_why(cluster: FakeCluster) -> None:
    cluster.answer = errors.Unavailable("the members cannot be restarted one by one: m2 does not answer")
    result = run("upgrade")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "raykeeper: the members cannot be restarted one by one: m2 does not answer\n"


@pytest.mark.parametrize("arguments", [["member", "remove", "four"], ["member", "promote"], ["move-leader", "m"]])
def test_what_is_no_member_is_bad_usage(cluster: FakeCluster, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert cluster.asked == []


def test_a_refusal_is_one_line_and_status_one(cluster: FakeCluster) -> None:
    cluster.answer = errors.NotCaughtUp("m4 has not caught up yet")
    result = run("member", "promote", "m4")
    assert (result.exit_code, result.stderr) == (1, "raykeeper: m4 has not caught up yet\n")
