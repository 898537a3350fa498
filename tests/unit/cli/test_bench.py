"""The command `bench` against one real member: what it prints, and that it leaves no keys."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from lab.onemember import OneMember, one_member
from raykeeper import Unavailable
from raykeeper.cli import bench, main
from raykeeper.cli.bench import percentile


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMember]:
    with one_member() as made:
        monkeypatch.setattr(bench, "open_client", lambda cluster, address, timeout: made.client().with_timeout(timeout))
        yield made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main.cli, ["bench", "--seconds", "0.05", *arguments])


def test_it_measures_one_at_a_time_and_many_and_leaves_nothing(member: OneMember) -> None:
    with member.client() as kv:
        kv.put("mine", "x")
        result = run("--in-flight", "7", "-o", "json")
        assert result.exit_code == 0, result.output
        measured = json.loads(result.stdout)["measured"]
        assert [(each["call"], each["in_flight"]) for each in measured] == [
            (call, crowd) for call in ("put", "get", "serializable get") for crowd in (1, 7)
        ]
        for each in measured:
            assert each["calls"] >= each["in_flight"]
            assert 0 < each["p50_ms"] <= each["p99_ms"]
        assert [item.key for item in kv.range(prefix="")] == [b"mine"]
        assert kv.reserved("bench").range(prefix="", count_only=True).count == 0
        assert kv.revision() > sum(each["calls"] for each in measured if each["call"] == "put")


def test_people_get_a_line_for_each_measure(member: OneMember) -> None:
    result = run("--in-flight", "1", "--bytes", "0")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{call}, 1 in flight" for call in ("put", "get", "serializable get")
    ]
    assert all("/s, p50 " in line for line in lines)


def test_a_cluster_that_refuses_is_one_line_on_stderr(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise Unavailable("overloaded")

    monkeypatch.setattr(bench, "_summary", refuse)
    result = run()
    assert result.exit_code == 1
    assert result.stderr == "raykeeper: overloaded\n"
    with member.client() as kv:
        assert kv.reserved("bench").range(prefix="", count_only=True).count == 0


@pytest.mark.parametrize("wrong", [["--in-flight", "0"], ["--seconds", "-1"], ["--bytes", "-1"], ["extra"]])
def test_bad_usage_is_two(wrong: list[str]) -> None:
    assert run(*wrong).exit_code == 2


def test_percentiles_are_of_what_was_measured() -> None:
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
