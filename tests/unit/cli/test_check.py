"""`check perf` and `check datascale` against one real member: what they judge, and that they leave no keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lab.onemember import OneMember, one_member
from raykeeper import Unavailable
from raykeeper.actors.cluster.status import ClusterStatus, MemberInfo
from raykeeper.cli import check, endpoint, main, options
from raykeeper.cli.json_forms import FORMS, misfit
from raykeeper.limits import OPERATOR_TIMEOUT_S

SMALL = check.CheckLoad(4, 20, 500)


class FakeCluster:
    def __init__(self) -> None:
        self.size = 0

    def status(self, *, timeout: float) -> ClusterStatus:
        self.size += 1000
        members = (MemberInfo(1, "m1", "leader", pid=7, db_size=self.size), MemberInfo(2, "m2", "silent"))
        return ClusterStatus("c", 7, 1, 1, 1, (), members)


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMember]:
    with one_member() as made:
        monkeypatch.setattr(check, "open_client", lambda cluster, address, timeout: made.client().with_timeout(timeout))
        monkeypatch.setattr(check, "open_operations", lambda cluster, address, one=FakeCluster(): one)
        monkeypatch.setitem(check.LOADS, "s", SMALL)
        monkeypatch.setattr(check, "CHECK_DELETE_KEYS", 7)
        yield made


def run(*words: str) -> Result:
    return CliRunner().invoke(main.cli, ["check", *words])


def test_perf_leaves_nothing_and_touches_nothing_else(member: OneMember) -> None:
    with member.client() as kv:
        kv.put("mine", "x")
        before = kv.revision()
        result = run("perf", "--seconds", "1", "--timeout", "60", "--prefix", "check/", "--auto-compact", "-o", "json")
        assert result.exit_code in (0, 1), result.output  # a busy machine may be too slow
        said = json.loads(result.stdout)
        assert misfit(FORMS["check perf"], said) == ""
        assert said["passed"] == (result.exit_code == 0)
        assert [item.key for item in kv.range(prefix="")] == [b"mine"]
        assert kv.revision() >= before + said["puts"]
        assert "there are keys" in run("perf", "--seconds", "1", "--prefix", "mi").stderr
        assert kv.get("mine") is not None
        assert run("perf", "--prefix", "").exit_code == 2


def test_datascale_says_by_how_much_each_member_has_grown(member: OneMember) -> None:
    result = run("datascale", "--timeout", "60", "-o", "json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert misfit(FORMS["check datascale"], said) == ""
    assert (said["keys"], said["members"]) == (500, [{"member": "m1", "grown_bytes": 1000}])
    with member.client() as kv:
        assert not kv.range(prefix="").items


def test_members_are_defragmented_once_the_keys_are_gone(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[int] = []

    def defragmented(cluster: str, address: str | None, name: int | None, timeout: float) -> list[dict[str, Any]]:
        assert timeout == 60
        with member.client() as kv:
            keys.append(kv.range(prefix="", count_only=True).count)
        return [{"endpoint": "m1", "took_s": 0.1, "error": ""}, {"endpoint": "m2", "took_s": 0.1, "error": error}]

    monkeypatch.setattr(endpoint, "defragmented", defragmented)
    for error, status in (("", 0), ("it is gone", 1)):
        result = run("datascale", "--timeout", "60", "--auto-compact", "--auto-defrag")
        assert result.exit_code == status, result.output
        assert error in result.stderr
        assert "PASS" in result.stdout, "what was measured is shown, whatever comes of this"
    assert keys == [0, 0]


def test_the_verdict_of_perf_is_shown_before_the_members_are_defragmented(
    member: OneMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defragmented(*_: Any) -> list[dict[str, Any]]:
        raise Unavailable("no member is there")

    monkeypatch.setattr(endpoint, "defragmented", defragmented)
    result = run("perf", "--seconds", "1", "--timeout", "60", "--auto-defrag", "-o", "json")
    assert result.exit_code == 1
    assert misfit(FORMS["check perf"], json.loads(result.stdout)) == ""
    assert "no member is there" in result.stderr


def test_defragmenting_has_the_time_that_was_given_or_that_of_defrag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(endpoint, "defragmented", lambda cluster, address, name, timeout: asked.append(timeout) or [])

    @click.command()
    @options.beginning_option
    def command(timeout: float) -> None:
        check._defragment("c", None, timeout)

    for words in (["--timeout", "7"], []):
        assert CliRunner().invoke(command, words).exit_code == 0
    assert asked == [7.0, OPERATOR_TIMEOUT_S]


def test_an_interrupt_leaves_no_keys(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(kv: Any, prefix: bytes, *_: Any) -> None:
        await kv.put(prefix + b"x", "v")
        raise SystemExit(130)

    monkeypatch.setattr(check, "_put_at_rate", interrupted)
    assert run("perf", "--timeout", "60").exit_code == 130
    with member.client() as kv:
        assert not kv.range(prefix="").items


def test_what_is_judged() -> None:
    def verdicts(times: list[float], failed: int = 0, took: float = 1.0) -> list[bool]:
        return [ok for ok, _ in check.judged(times, failed, 10, took)]

    assert verdicts([0.01] * 10) == [True, True, True]
    assert verdicts([0.01] * 10, failed=1) == [True, True, True, False]
    assert verdicts([0.01] * 8) == [False, True, True]
    assert verdicts([0.01] * 9 + [0.6]) == [True, False, False]
    assert verdicts([]) == [False, False, False]
    assert [said for _, said in check.judged([], 0, 10, 1.0)][1].endswith(f"{math.inf:f}s")
