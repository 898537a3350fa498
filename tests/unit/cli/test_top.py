"""`raykeeper top`: rounds, forms, and where it goes if no terminal is there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from raykeeper.actors.client.client_info import ClientInfo
from raykeeper.actors.client.load_tables import ClientTop, ClusterTop, PrefixTop, SlowInfo
from raykeeper.cli import main, top

WORKER = ClientInfo(12, "rk1", 4711, "ab", "10.0.0.1", "01000000", "shards-3", "worker.py")
SEEN = ClusterTop(
    (ClientTop(WORKER, "session 12", 1234.0, 5.5, 0.0, 2.5e6), ClientTop(None, "process 9\x1b", 0, 1, 0, 10)),
    (PrefixTop(b"jobs/\xff", False, 1234.0, 0, 0, 2.5e6), PrefixTop(b"lock/", True, 1, 0, 0, 12)),
    (SlowInfo("m1", 1000.0, 0.5, "put of 'a'"),),
    ("m3",),
)


class FakeCluster:
    name = "default"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def top(self, **asked: Any) -> ClusterTop:
        self.asked.append(asked)
        return SEEN


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(top, "open_operations", lambda name, address: fake)
    return fake


def test_rounds_without_a_terminal_are_plain_lines(cluster: FakeCluster) -> None:
    said = CliRunner().invoke(main.cli, ["top", "-n", "2", "--interval", "0.01", "--limit", "3", "--timeout", "4"])
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert "\x1b" not in said.stdout
    assert [line for line in lines if line.startswith("cluster ")] == [lines[0], lines[len(lines) // 2]]
    assert lines[0].endswith("no answer from m3")
    assert any("1,234" in line and "2.5 MB" in line and line.endswith("job 01000000)") for line in lines)
    assert any(line.endswith("jobs/\\xff") for line in lines)
    assert any(line.endswith("lock/ (locks, queues and the like)") for line in lines)
    assert any(line.endswith("m1 0.500 s: put of 'a'") for line in lines)
    assert cluster.asked == [{"limit": 3, "timeout": 4.0}] * 2


def test_json_is_one_object_a_round(cluster: FakeCluster) -> None:
    said = CliRunner().invoke(main.cli, ["top", "-n", "1", "-o", "json"])
    (line,) = said.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == ["clients", "prefixes", "slow", "silent"]
    assert found["clients"][0]["client"]["pid"] == 4711
    assert found["clients"][1]["client"] is None
    assert found["prefixes"][0] == {
        "prefix": "am9icy//",
        "reserved": False,
        "puts": 1234.0,
        "gets": 0,
        "events": 0,
        "bytes": 2.5e6,
        "base64": ["prefix"],
    }
    assert found["slow"] == [{"member": "m1", "at": 1000.0, "took": 0.5, "what": "put of 'a'"}]
    assert found["silent"] == ["m3"]
